"""The gRPC service of a node's SSD tier: kvstore.tier.v1.

Every call takes a thread of the server: one that waits for the device until it has answered, one
that only looks at the index until it has looked. Only so many of each kind run at once, on threads
that the server has beside those of the control plane; the rest are refused at once. So attachments
and health never wait for a thread behind them, nor does what a user has to forget find its places
taken by what is on its way up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc

from kvstore.cluster.proto import tier_pb2, tier_pb2_grpc

if TYPE_CHECKING:
    from kvstore.node.ssd.tier import SsdTier

TIER_SERVICE_NAME: Final = tier_pb2.DESCRIPTOR.services_by_name["Tier"].full_name
KEYS_MAX: Final = 1024
#: Calls that wait for the device, and calls that do not.
WAITS_AT_ONCE: Final = 16
GLANCES_AT_ONCE: Final = 32
FORGETS_AT_ONCE: Final = 2
#: What the server needs for all of them.
THREADS: Final = WAITS_AT_ONCE + GLANCES_AT_ONCE + FORGETS_AT_ONCE
_KEY_BYTES_MAX: Final = 1024
_WAIT_S_MAX: Final = 60.0
#: Left of a call's time for the way back.
_RETURN_S: Final = 0.002
_Answer = TypeVar("_Answer")


class TierService(tier_pb2_grpc.TierServicer):  # type: ignore[misc,unused-ignore]
    """Answers for one `SsdTier`."""

    def __init__(self, tier: SsdTier) -> None:
        self._tier = tier
        self._waits = threading.BoundedSemaphore(WAITS_AT_ONCE)
        self._glances = threading.BoundedSemaphore(GLANCES_AT_ONCE)
        self._forgets = threading.BoundedSemaphore(FORGETS_AT_ONCE)

    def Lookup(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, D102
        keys = _checked(request.keys, context)

        def look() -> Any:
            answer = tier_pb2.LookupResponse(found=bytes(self._tier.lookup(keys)))
            if request.wants_summary:
                change = self._tier.summary.since(request.summary_epoch, request.summary_version)
                if change is not None:
                    answer.summary.epoch, answer.summary.version = change.epoch, change.version
                    answer.summary.content = change.content
                    answer.summary.added.extend(change.added)
            return answer

        return _placed(self._glances, context, look)

    def Promote(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, D102
        keys = _checked(request.keys, context)
        left_s = context.time_remaining()
        wanted_s = _WAIT_S_MAX if left_s is None else min(left_s - _RETURN_S, _WAIT_S_MAX)
        wait_s = min(request.wait_ms / 1000, wanted_s)

        def promote() -> Any:
            outcomes = self._tier.promote(keys, wait_s, wanted_s)
            return tier_pb2.PromoteResponse(outcomes=bytes(outcomes))

        return _placed(self._waits if request.wait_ms else self._glances, context, promote)

    def Forget(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, D102
        prefix = _checked([request.prefix], context)[0]

        def forget() -> Any:
            try:
                return tier_pb2.ForgetResponse(records=self._tier.forget(prefix))
            except OSError as error:
                context.abort(grpc.StatusCode.UNAVAILABLE, f"the SSD failed: {error.strerror}")

        return _placed(self._forgets, context, forget)


def _placed(
    places: threading.BoundedSemaphore, context: grpc.ServicerContext, call: Callable[[], _Answer]
) -> _Answer:
    if not places.acquire(blocking=False):
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls of the SSD tier at once")
    try:
        return call()
    finally:
        places.release()


def _checked(keys: Sequence[bytes], context: grpc.ServicerContext) -> list[bytes]:
    if len(keys) > KEYS_MAX:
        context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, f"at most {KEYS_MAX} keys a call, not {len(keys)}"
        )
    if not all(0 < len(key) <= _KEY_BYTES_MAX for key in keys):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a key has 1 to {_KEY_BYTES_MAX} bytes")
    return list(keys)
