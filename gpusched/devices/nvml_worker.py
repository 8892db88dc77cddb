"""The NVML worker: a process of its own that reads the devices and may hang or die without hurting the daemon.

    python -P -m gpusched.devices.nvml_worker [--library /abs/path/libnvidia-ml.so.1]

One JSON object a line. On stdin: {"id": 7, "op": "sample"} or {"id": 7, "op": "read", "uuids": [...]}. On stdout first
{"ready": {"driver", "error"}}, then for each request one {"id": 7, "device": {...}} per device as it is read (so that
the other side knows where a hang began) and {"id": 7, "done": {"driver", "error"}}. A request {"id": 7, "op":
"topology"} asks for the groups of the devices that have been read: they come in "done" as "groups": {uuid: group}.

It ends by itself, with exit code 0, when stdin ends and whenever a fresh process is better than this one: NVML failed
after its library was loaded, the library on disk was replaced (a driver upgrade), or this process has grown old or big.
It imports nothing but the standard library, pynvml (through nvml.py) and the model, and starts no process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from gpusched.devices.nvml import Nvml, NvmlUnavailable
from gpusched.devices.reading_json import encode

_OLDEST = 24 * 3600.0  # seconds; long-lived NVML processes have leaked file descriptors and memory
_BIGGEST = 256 << 20  # bytes of resident memory


def _say(**message: Any) -> None:
    os.write(1, json.dumps(message, separators=(",", ":")).encode() + b"\n")


def _start(nvml: Nvml) -> str | None:
    """None, or the sentence that says why there are no devices."""
    try:
        nvml.start()
    except NvmlUnavailable as error:
        return str(error)
    return None


def _answer(nvml: Nvml, request: dict[str, Any]) -> str | None:
    """Answer one request. Returns the error that was told, if any."""
    error = None if nvml.started else _start(nvml)
    if request["op"] == "topology":
        _say(id=request["id"], done={"driver": nvml.driver, "error": error, "groups": {} if error else nvml.topology()})
        return error
    if error is None:
        try:
            for reading in nvml.readings(request.get("uuids")):
                _say(id=request["id"], device=encode(reading))
        except NvmlUnavailable as unavailable:
            error = str(unavailable)
    _say(id=request["id"], done={"driver": nvml.driver, "error": error})
    return error


def _library_loaded() -> bool:
    try:
        with open("/proc/self/maps", "rb") as file:
            return b"libnvidia-ml" in file.read()
    except OSError:
        return False


def _resident() -> int:
    """Bytes now. Not ru_maxrss: exec hands on the high-water mark of whoever started us."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def serve(nvml: Nvml) -> None:
    """Answer requests until stdin ends or a fresh process would be better."""
    born = time.monotonic()
    error = _start(nvml)
    _say(ready={"driver": nvml.driver, "error": error})
    while error is None or not _library_loaded():
        line = sys.stdin.buffer.readline()
        if not line or nvml.stale:
            return
        error = _answer(nvml, json.loads(line))
        if _resident() > _BIGGEST or time.monotonic() - born > _OLDEST:
            return


def main(arguments: list[str]) -> int:
    library = arguments[1] if arguments[:1] == ["--library"] and len(arguments) == 2 else None
    try:
        serve(Nvml(library))
    except BrokenPipeError:  # the daemon is gone
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
