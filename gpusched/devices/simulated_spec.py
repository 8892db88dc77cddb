"""How simulated devices are asked for: `sim:4x24G`, `sim:4x80G:H100`, `sim:2x24G,2x80G:A100`. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from gpusched.model.errors import UsageError
from gpusched.model.units import parse_size

PREFIX = "SIM-"
_GROUP = re.compile(r"(\d{1,4})x([^:]+?)(?::([A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}))?", re.ASCII)
_HINT = "write for example sim:4x24G (four devices of 24 GiB), sim:2x80G:H100 (a model name) or sim:2x24G,2x80G:A100"
_MOST = 64


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """One device that does not exist. Memory in MiB."""

    total_mib: int
    model: str = ""

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
    kind, separator, groups = text.strip().partition(":")
    if kind != "sim" or not separator:
        raise UsageError(f"devices {text!r} cannot be read", _HINT)
    devices: list[SimulatedDevice] = []
    for group in groups.split(","):
        found = _GROUP.fullmatch(group.strip())
        if found is None or int(found[1]) == 0:
            raise UsageError(f"{group.strip()!r} in devices {text!r} is not COUNTxMEMORY or COUNTxMEMORY:MODEL", _HINT)
        try:
            total = parse_size(found[2])
        except UsageError as error:
            raise UsageError(f"devices {text!r}: {error.message}", _HINT) from error
        devices += [SimulatedDevice(total, (found[3] or "").strip())] * int(found[1])
    if len(devices) > _MOST:
        raise UsageError(f"devices {text!r} are {len(devices)}; at most {_MOST} can be simulated", _HINT)
    return SimulatedSpec(tuple(devices))
