"""From the supervisor's files to the model: outcomes and acknowledgements. Never raises on a field missing."""

from __future__ import annotations

import json
from typing import Any

from gpusched.model.state import Outcome, OutcomeKind, Saved

ORDER_LIMIT = 64 << 20  # bytes of order.json; submits are refused long before


def read_present(path: str) -> dict[str, Any] | None:
    """The JSON object in a file; None only if it is not there or is no whole object.

    Raises OSError if it cannot be read now (no descriptor is free, say): that must never look like "not there".
    """
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def saved_of(value: dict[str, Any] | None) -> Saved | None:
    """The acknowledgement in status.json or exit.json."""
    if not value:
        return None
    return Saved(checkpoint=value["checkpoint"], step=value.get("step"), at=value.get("at"))


def outcome_of(ending: dict[str, Any]) -> Outcome:
    """The outcome that exit.json tells. One of a kind that this version does not know is LOST, never success."""
    try:
        kind = OutcomeKind(ending["kind"])
    except (KeyError, ValueError):
        return Outcome(OutcomeKind.LOST, text=f"Its end is recorded in words unknown here: {ending.get('kind')!r}.")
    return Outcome(
        kind=kind,
        code=ending.get("code"),
        signal=ending.get("signal"),
        errno=ending.get("errno"),
        text=ending.get("text", ""),
        saved=saved_of(ending.get("saved")),
        killed=bool(ending.get("killed")),
        max_rss_mib=ending.get("max_rss_mib"),
        cpu_s=ending.get("cpu_s"),
        ended_wall=ending.get("ended_wall"),
        ended_boot=ending.get("ended_boot"),
    )
