"""One gRPC call in bounded time, also in a forked child.

gRPC's core does not survive a fork: in a child of a process that used it, about one call in ten
hangs and heeds no time-out. So a call in a process that was forked since this module was loaded is
made by a new process, which takes a fraction of a second. Everybody else pays nothing for that.

A channel lives for one call: attachments are rare, and an idle application keeps no threads or
sockets of gRPC. What is asked often, an SSD tier, has a `Channel` that stays. Requests and
responses are bytes here; `kvstore.cluster.control` and `kvstore.cluster.tier` know what they mean.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any, Final

import grpc

#: Trailer of a refused Attach: a serialized MembershipConflict.
MEMBERSHIP_TRAILER: Final = "kvstore-membership-bin"
_PROCESS_ID: Final = os.getpid()
#: How long a new interpreter may take to load gRPC.
_START_S: Final = 10.0
#: How soon a channel that stays open tries again, so that a node that is back is found.
_BACK_OFF: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
_PROGRAM: Final = (
    "import json, sys; call = json.load(sys.stdin); sys.path[:] = call.pop('path');"
    "from kvstore.cluster.rpc import serve_one; serve_one(call)"
)


@dataclass(frozen=True, slots=True)
class Call:
    """All that a call needs."""

    address: str
    #: `/package.Service/Method`.
    method: str
    token: str | None
    request: bytes
    timeout_s: float
    is_secure: bool
    #: The authorities in PEM; None: those of the system.
    authorities: bytes | None
    #: None: the host of the address.
    server_name: str | None


class CallFailed(Exception):
    """The call ended with a status: its code's name, what it says, and the membership trailer."""

    def __init__(self, code: str, details: str, conflict: bytes = b"") -> None:
        super().__init__(code, details, conflict)
        self.code = code
        self.details = details
        self.conflict = conflict


def call(what: Call) -> bytes:
    """Makes the call and returns the response, or raises `CallFailed`."""
    if os.getpid() != _PROCESS_ID:
        return _call_in_new_process(what)
    return _call_here(what)


def _call_here(what: Call) -> bytes:
    metadata = (("authorization", f"Bearer {what.token}"),) if what.token else ()
    try:
        with _channel(what) as channel:
            method: Any = channel.unary_unary(what.method)
            return bytes(method(what.request, timeout=what.timeout_s, metadata=metadata))
    except grpc.RpcError as error:
        trailer: Any = error.trailing_metadata() or ()
        conflict = dict(trailer).get(MEMBERSHIP_TRAILER, b"")
        raise CallFailed(error.code().name, error.details() or "", conflict) from None


def _channel(what: Call, *more: tuple[str, Any]) -> grpc.Channel:
    options: list[tuple[str, Any]] = [
        *more,
        # The environment's proxy is for the web, not for the machine room.
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if not what.is_secure:
        return grpc.insecure_channel(what.address, options)
    if what.server_name:
        options.append(("grpc.ssl_target_name_override", what.server_name))
    credentials = grpc.ssl_channel_credentials(root_certificates=what.authorities)
    return grpc.secure_channel(what.address, credentials, options)


class Channel:
    """A channel that stays open, for whoever calls often. Thread-safe.

    Not for a process that was forked since this module was loaded: there `start` fails at once.
    """

    def __init__(self, what: Call) -> None:
        """Connects with the first call; of `what` the address and the credentials count."""
        self._metadata = (("authorization", f"Bearer {what.token}"),) if what.token else ()
        self._channel = _channel(what, *_BACK_OFF)

    def start(self, method: str, request: bytes, timeout_s: float) -> Any:
        """Begins a call; `result` waits for it."""
        if os.getpid() != _PROCESS_ID:
            raise CallFailed("UNAVAILABLE", "this process was forked after gRPC had been loaded")
        call: Any = self._channel.unary_unary(method)
        return call.future(request, timeout=timeout_s, metadata=self._metadata)

    def result(self, started: Any) -> bytes:
        """The response of a call, or CallFailed."""
        try:
            return bytes(started.result())
        except grpc.RpcError as error:
            raise CallFailed(error.code().name, error.details() or "") from None
        except (grpc.FutureCancelledError, ValueError) as error:
            raise CallFailed("CANCELLED", str(error)) from None

    def close(self) -> None:
        """Ends the calls under way."""
        self._channel.close()


def _call_in_new_process(what: Call) -> bytes:
    # The token goes through the pipe: arguments and environment can be seen by others.
    fields = {name: _text(value) for name, value in asdict(what).items()}
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            input=json.dumps({**fields, "path": sys.path}).encode(),
            capture_output=True,
            timeout=what.timeout_s + _START_S,
            check=False,
        )
        answer = json.loads(ended.stdout)
    except subprocess.TimeoutExpired:
        raise CallFailed("DEADLINE_EXCEEDED", "") from None
    except (OSError, ValueError) as error:
        raise CallFailed("UNAVAILABLE", f"cannot call from a forked process: {error}") from error
    if "code" in answer:
        conflict = base64.b64decode(answer["conflict"])
        raise CallFailed(answer["code"], answer["details"], conflict)
    return base64.b64decode(answer["response"])


def serve_one(fields: dict[str, Any]) -> None:
    """The other end of `_call_in_new_process`: makes one call and prints how it ended."""
    for name in ("request", "authorities"):
        if fields[name] is not None:
            fields[name] = base64.b64decode(fields[name])
    try:
        answer = {"response": _text(_call_here(Call(**fields)))}
    except CallFailed as error:
        answer = {"code": error.code, "details": error.details, "conflict": _text(error.conflict)}
    print(json.dumps(answer))


def _text(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
