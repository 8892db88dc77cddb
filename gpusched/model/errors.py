"""Every error a user can meet, in one tree. Each says what, why, and (hint) what to do next.

GpuschedError
├── UsageError       bad input: a malformed size, an unknown option or QoS            exit 2   HTTP 400
├── NotFound         no such job or device                                            exit 3   HTTP 404
├── NotAllowed       somebody else's job                                              exit 4   HTTP 403
├── Refused          understood, but not possible now (job already ended, …)          exit 1   HTTP 409
├── Degraded         the daemon cannot record anything (disk full, read-only)         exit 1   HTTP 507
├── VersionMismatch  client and daemon do not speak the same protocol                 exit 1   HTTP 426
└── Unavailable      no daemon answers                                                exit 69  HTTP 503
"""

from __future__ import annotations

from typing import Any


class GpuschedError(Exception):
    """An error with a machine-readable code, a sentence, and the next step for a tired person."""

    code = "error"
    exit_code = 1
    http_status = 500

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_json(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class UsageError(GpuschedError):
    """Bad input: nothing was changed."""

    code = "usage"
    exit_code = 2
    http_status = 400


class NotFound(GpuschedError):
    """No job or device of that name."""

    code = "not-found"
    exit_code = 3
    http_status = 404


class NotAllowed(GpuschedError):
    """The caller may not do this to somebody else's job."""

    code = "not-allowed"
    exit_code = 4
    http_status = 403


class Refused(GpuschedError):
    """Understood, but not possible in the job's present state."""

    code = "refused"
    exit_code = 1
    http_status = 409


class Degraded(GpuschedError):
    """The daemon runs but cannot record new work."""

    code = "degraded"
    exit_code = 1
    http_status = 507


class VersionMismatch(GpuschedError):
    """Client and daemon speak different versions of the protocol."""

    code = "version"
    exit_code = 1
    http_status = 426


class Unavailable(GpuschedError):
    """No daemon answers at the socket."""

    code = "unavailable"
    exit_code = 69
    http_status = 503


def known(kind: str, name: str, names: list[str] | tuple[str, ...]) -> UsageError:
    """The error for an unknown name: it always lists the known ones."""
    listed = ", ".join(sorted(names)) or "none"
    return UsageError(f"unknown {kind} {name!r}", f"known: {listed}")


_BY_CODE = {cls.code: cls for cls in GpuschedError.__subclasses__()}


def from_json(body: dict[str, Any]) -> GpuschedError:
    """The error that `to_json` of the other side described."""
    detail = body.get("error", {})
    cls = _BY_CODE.get(detail.get("code", ""), GpuschedError)
    return cls(str(detail.get("message", "unknown error")), str(detail.get("hint", "")))
