"""Who is calling: SO_PEERCRED of the connection, and nothing else."""

from __future__ import annotations

import functools
import os
import pwd
import socket
import struct

from gpusched.model.errors import NotAllowed
from gpusched.model.job import Caller

_NOBODY = 65534
_UID_MAX = 2**32 - 1


def caller_of(connection: socket.socket, *, service_uid: int) -> Caller:
    """The caller at the other end of a Unix socket. Raises NotAllowed for an identity that cannot be real.

    A service that runs as root serves everybody; one that runs as a user serves that user and root. Root and the
    service's own user are administrators.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    _pid, uid, gid = struct.unpack("iII", raw)
    if uid in (_UID_MAX, _NOBODY):
        raise NotAllowed("the kernel does not say who is calling", "connect from a process of your own, on this host")
    if service_uid != 0 and uid not in (service_uid, 0):
        raise NotAllowed(
            f"this is the personal gpusched of {user_name(service_uid)}", "start your own: unset GPUSCHED_SOCKET"
        )
    return Caller(uid, gid, user_name(uid), admin=uid in (0, service_uid))


@functools.lru_cache(maxsize=1024)
def user_name(uid: int) -> str:
    """The user's name, or the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def own_name() -> str:
    return user_name(os.geteuid())
