"""How a client that knows a node of its host by the shm socket alone finds the node's SSD tier.

A node that has a tier listens, beside its TCP port, on a Unix socket whose name follows from that
of the shm socket. Nothing else listens there, so that the socket says whether there is a tier; and
who has no tier need not load gRPC to know it.
"""

from __future__ import annotations

import socket
import struct
from os import geteuid
from typing import Final
from urllib.parse import quote

#: Of the kernel, without the NUL in front or behind.
_NAME_BYTES_MAX: Final = 107
_CREDENTIALS: Final = struct.Struct("3i")


def local_address(shm_name: str) -> str:
    """The address, as gRPC names it, of the tier of the node that has this shm socket."""
    # gRPC takes it for a URI, and decodes it.
    if "/" in shm_name:
        return f"unix:{quote(shm_name)}.tier"
    return f"unix-abstract:{quote(_abstract(shm_name))}"


def can_listen(shm_name: str) -> bool:
    """Whether the name leaves room for that of the tier's socket."""
    return len(_name(shm_name).encode()) <= _NAME_BYTES_MAX


def listens(shm_name: str) -> bool | None:
    """Whether the node has a tier and is of this user or of root; to root any user's will do.

    None: so many connect that there is no telling. It waits for nobody: nothing is sent.

    The user is that of whoever listens now. A later connection, which gets the token, may meet
    another one that took the name in between; a name that is a path in a directory where only this
    user and root may write cannot be taken.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(_name(shm_name))
            packed = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except BlockingIOError:
        return None
    except OSError:
        return False
    _process_id, user, _group = _CREDENTIALS.unpack(packed)
    return geteuid() == 0 or user in (0, geteuid())


def _abstract(shm_name: str) -> str:
    return f"kvstore/{shm_name}.tier"


def _name(shm_name: str) -> str:
    return f"{shm_name}.tier" if "/" in shm_name else f"\0{_abstract(shm_name)}"
