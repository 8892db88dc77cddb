"""How simulated devices are asked for: `sim:4x24G`, `sim:2x4x24G` (two groups of four), `sim:4x80G:H100`,
`sim:2x24G,2x80G:A100`. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from gpusched.model.errors import UsageError
from gpusched.model.units import parse_size

PREFIX = "SIM-"
_PART = re.compile(r"(?:(\d{1,4})x)?(\d{1,4})x([^:x]+?)(?::([A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}))?", re.ASCII)
_HINT = (
    "write for example sim:4x24G (four devices of 24 GiB), sim:2x4x24G (two groups of four), sim:2x80G:H100 (a model "
    "name) or sim:2x24G,2x80G:A100"
)
_MOST = 64


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """One device that does not exist. Memory in MiB."""

    total_mib: int
    model: str = ""
    group: str = ""  # devices of one group have a fast link between them

    @property
    def name(self) -> str:
        """Always says that it is simulated, so that nobody takes it for a real one."""
        return f"Simulated {self.model or 'GPU'}"


@dataclass(frozen=True, slots=True)
class SimulatedSpec:
    """The devices of a simulated machine, in the order of their index."""

    devices: tuple[SimulatedDevice, ...]

    def uuid(self, index: int, namespace: str) -> str:
        """The same for ever for an index and a namespace, and different between namespaces."""
        digest = hashlib.blake2b(namespace.encode(), digest_size=8, person=b"gpusched-sim").hexdigest()
        return f"{PREFIX}{index}-{digest[:8]}-{digest[8:]}"


def parse_simulated(text: str) -> SimulatedSpec:
    """Read what `--devices` says after `sim:`. Raises UsageError with an example."""
    kind, separator, parts = text.strip().partition(":")
    if kind != "sim" or not separator:
        raise UsageError(f"devices {text!r} cannot be read", _HINT)
    devices: list[SimulatedDevice] = []
    groups = 0
    for part in parts.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None or 0 in (int(found[1] or 1), int(found[2])):
            forms = "COUNTxMEMORY, GROUPSxCOUNTxMEMORY or either with :MODEL"
            raise UsageError(f"{part.strip()!r} in devices {text!r} is not {forms}", _HINT)
        try:
            total = parse_size(found[3])
        except UsageError as error:
            raise UsageError(f"devices {text!r}: {error.message}", _HINT) from error
        total_count = len(devices) + int(found[1] or 1) * int(found[2])
        if total_count > _MOST:
            raise UsageError(f"devices {text!r} are {total_count}; at most {_MOST} can be simulated", _HINT)
        model = (found[4] or "").strip()
        for _ in range(int(found[1] or 1)):
            group = f"group:{groups}" if found[1] else ""
            devices += [SimulatedDevice(total, model, group)] * int(found[2])
            groups += bool(found[1])
    return SimulatedSpec(tuple(devices))
