"""Which devices are near to each other: groups from NVLink, else from NUMA nodes. No NVML in here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

PCI_DEVICES = Path("/sys/bus/pci/devices")


def groups(
    uuids: Sequence[str], linked: Callable[[str, str], bool], near: Callable[[str, str], bool | None]
) -> dict[str, str]:
    """The group of each device, in the order of the indexes; empty where nothing is known.

    linked: two devices have NVLink between them, directly or through switches. Devices that are joined over others
    are one group (`nvlink:0`); on a machine with NVLink, a device without any is a group of its own.
    near: two devices hang on one NUMA node (`numa:0`); None: that is not known. Asked only where there is no NVLink.
    """
    if len(uuids) < 2:
        return dict.fromkeys(uuids, "")
    joined = _joined(uuids, linked)
    if len(set(joined.values())) < len(uuids):
        return _named(joined, "nvlink")
    unknown = {one for one in uuids for other in uuids if one != other and near(one, other) is None}
    known = [uuid for uuid in uuids if uuid not in unknown]
    return dict.fromkeys(uuids, "") | _named(_joined(known, lambda one, other: bool(near(one, other))), "numa")


def _joined(uuids: Sequence[str], together: Callable[[str, str], bool]) -> dict[str, int]:
    """A number for each device, the same for those that are joined, also over others."""
    number = {uuid: place for place, uuid in enumerate(uuids)}
    for place, one in enumerate(uuids):
        for other in uuids[:place]:
            if number[one] != number[other] and together(other, one):
                old, new = max(number[one], number[other]), min(number[one], number[other])
                number = {uuid: new if value == old else value for uuid, value in number.items()}
    return number


def _named(numbers: dict[str, int], kind: str) -> dict[str, str]:
    order = {number: place for place, number in enumerate(sorted(set(numbers.values())))}
    return {uuid: f"{kind}:{order[number]}" for uuid, number in numbers.items()}


def numa_node(pci_bus_id: str | None, root: Path = PCI_DEVICES) -> int | None:
    """The NUMA node of a PCI device as the kernel tells it; None where it does not (one node, a container).

    pci_bus_id: as NVML writes it, `00000000:01:00.0`; the kernel's domain has four digits.
    """
    if not pci_bus_id or pci_bus_id.count(":") != 2:
        return None
    domain, _, rest = pci_bus_id.lower().partition(":")
    try:
        node = int((root / f"{domain[-4:]}:{rest}" / "numa_node").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None
