"""Targets: what `kvstore.connect` and `--target` take.

None                        a node inside this process, or what KVSTORE_TARGET says
kv://HOST:PORT[,HOST:PORT]  the nodes at these control addresses, over the best fabric
tcp://HOST:PORT[,...]       the same, over tcp even on one host
verbs://HOST:PORT[,...]     the same, over RDMA only
shm://NAME                  the node of this host with that socket, without a control plane
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvstore.errors import ConfigurationError

TARGET_VARIABLE: Final = "KVSTORE_TARGET"
TOKEN_FILE_VARIABLE: Final = "KVSTORE_TOKEN_FILE"
EMBEDDED: Final = "embedded"
_FORMS: Final = "kv://HOST:PORT[,HOST:PORT], tcp://…, verbs://… or shm://NAME"
_MEMBERS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed target."""

    #: `embedded`, `kv`, `tcp`, `verbs` or `shm`.
    scheme: str
    #: Control addresses, sorted, or the one name of a shm socket; `embedded` otherwise.
    members: tuple[str, ...]

    def __str__(self) -> str:
        if self.scheme == EMBEDDED:
            return EMBEDDED
        return f"{self.scheme}://{','.join(self.members)}"


def parse_target(text: str | None) -> Target:
    """Return what a target says; None asks the environment. ConfigurationError if it is none."""
    if text is None:
        text = os.environ.get(TARGET_VARIABLE) or None
    if text is None or text == EMBEDDED:
        return Target(EMBEDDED, (EMBEDDED,))
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("kv", "tcp", "verbs", "shm"):
        raise ConfigurationError(f"{text!r} is no target: give {_FORMS}")
    if scheme == "shm":
        if not rest or "\0" in rest or "\n" in rest:
            raise ConfigurationError(f"{text!r} names no socket: give shm://NAME")
        return Target(scheme, (rest,))
    members = [_checked_address(part.strip(), text) for part in rest.rstrip("/").split(",")]
    if len(set(members)) != len(members):
        raise ConfigurationError(f"{text!r} names a node twice")
    if len(members) > _MEMBERS_MAX:
        raise ConfigurationError(f"{text!r} names more than {_MEMBERS_MAX} nodes")
    return Target(scheme, tuple(sorted(members)))


def read_token(token: str | None) -> str | None:
    """Return the token that was given, or the one in the file that the environment names."""
    if token is not None:
        return token
    name = os.environ.get(TOKEN_FILE_VARIABLE)
    return read_token_file(name) if name else None


def read_token_file(name: str) -> str:
    """Return the token in a file, without white space around it."""
    try:
        token = Path(name).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the token file {name}: {error}") from error
    if not token:
        raise ConfigurationError(f"the token file {name} is empty")
    return token


def _checked_address(address: str, target: str) -> str:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigurationError(
            f"{address!r} in {target!r} is no HOST:PORT: give {_FORMS}; the usual port is 7400"
        )
    return f"{host}:{int(port)}"
