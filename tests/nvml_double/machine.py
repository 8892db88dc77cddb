"""A machine with NVIDIA GPUs, as far as the real pynvml can tell: the C double and the text file that drives it.

The fixtures that make one are in device_fixtures.py.
"""

import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_double.c")
FLAGS = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
GIB = 1 << 30


class NvmlMachine:
    """Facts are lines of nvml_double.c's format; each change is visible at the next NVML call."""

    def __init__(self, directory: Path, double: Path, gpus: int = 2) -> None:
        directory.mkdir()
        self.directory = directory
        self.library = str(directory / "libnvidia-ml.so.1")
        self.install(double)
        self.facts = {
            "count *": str(gpus),
            "driver *": "580.65.06",
            "name *": "NVIDIA H100 80GB HBM3",
            "mem.total *": str(80 * GIB),
            "mem.reserved *": str(GIB // 2),
            "temp *": "41",
            "util *": "37",
            "power *": "123400",
            "limit *": "700000",
        }
        for index in range(gpus):
            self.facts[f"uuid {index}"] = self.uuid(index)
            self.facts[f"pci {index}"] = f"00000000:{index + 1:02X}:00.0"
        self.processes: dict[int, list[tuple[int, int]]] = {}
        self.graphics: dict[int, list[tuple[int, int]]] = {}
        self.write()

    @staticmethod
    def uuid(index: int) -> str:
        return f"GPU-0000000{index}-aaaa-bbbb-cccc-dddddddddddd"

    def install(self, double: Path) -> None:
        """Put a library in place as a package manager does: under another name, then renamed."""
        fresh = self.directory / "fresh.so"
        shutil.copy(double, fresh)
        os.replace(fresh, self.library)

    def set(self, **facts: object) -> None:
        """set(mem__used__0=5) sets `mem.used 0`; a value of None forgets the fact; `all` stands for `*`."""
        for name, value in facts.items():
            key, _, gpu = name.rpartition("__")
            line = f"{key.replace('__', '.')} {'*' if gpu == 'all' else gpu}"
            if value is None:
                self.facts.pop(line, None)
            else:
                self.facts[line] = str(value)
        self.write()

    def write(self) -> None:
        lines = [f"{fact} {value}" for fact, value in self.facts.items()]
        for key, lists in (("proc", self.processes), ("graphics", self.graphics)):
            lines += [f"{key} {gpu} {pid}:{size}" for gpu, held in lists.items() for pid, size in held]
        fresh = self.directory / "machine.tmp"
        fresh.write_text("\n".join(lines) + "\n")
        os.replace(fresh, self.directory / "machine.txt")


def build(directory: Path, *defines: str) -> Path | None:
    """Compile the double. None: there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    library = directory / "double.so"
    subprocess.run([compiler, *FLAGS, *defines, "-o", library, SOURCE, "-ldl"], check=True)
    return library
