"""The SSD tier of one memory node, from the client's side.

Every call ends within its time-out and raises `NodeUnreachable` where it did not succeed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from kvstore import errors
from kvstore.cluster import rpc
from kvstore.cluster.proto import tier_pb2
from kvstore.cluster.summary import Filter, hash_of
from kvstore.cluster.tls import TlsConfig

_SERVICE: Final = tier_pb2.DESCRIPTOR.services_by_name["Tier"].full_name
#: Left of a call's time for the way there and back.
_WAY_S: Final = 0.005
#: For how long a filter counts after it was brought up to date.
SUMMARY_S: Final = 1.0
#: Outcomes of a promotion; see `proto/tier.proto`.
IN_MEMORY: Final = 1


@dataclass(frozen=True, slots=True)
class TierAddress:
    """Where a tier is asked."""

    address: str
    token: str | None
    tls: TlsConfig | None


class TierBusy(errors.NodeUnreachable):
    """The tier has as many calls as it takes at once."""


class TierClient:
    """Asks the tier at an address. Thread-safe.

    Calls are begun and finished apart, so that those to several nodes overlap: `begin_*` returns
    what `lookup` and `promote` take.
    """

    def __init__(self, where: TierAddress) -> None:
        """Connects to nothing yet."""
        self._where = where
        self._lock = threading.Lock()
        self._filter: Filter | None = None
        self._epoch = self._version = 0
        self._current_until = 0.0
        self._channel = rpc.Channel(
            rpc.Call(
                address=where.address,
                method="",
                token=where.token,
                request=b"",
                timeout_s=0,
                is_secure=where.tls is not None,
                authorities=where.tls.read_ca() if where.tls is not None else None,
                server_name=where.tls.server_name if where.tls is not None else None,
            )
        )

    def may_have(self, key: bytes) -> bool:
        """False: the tier had no record of the key within the last second, as its filter says."""
        with self._lock:
            if self._filter is None or time.monotonic() >= self._current_until:
                return True
            return self._filter.may_have(hash_of(key))

    def begin_lookup(self, keys: Sequence[bytes], timeout_s: float) -> Any:
        """Begins to ask which keys have a record."""
        request = tier_pb2.LookupRequest(keys=keys)
        now = time.monotonic()
        with self._lock:
            request.wants_summary = now >= self._current_until
            request.summary_epoch, request.summary_version = self._epoch, self._version
        return now, self._begin("Lookup", request, timeout_s)

    def lookup(self, begun: Any, count: int) -> list[bool]:
        """What became of it."""
        asked, call = begun
        answer = self._end(call, tier_pb2.LookupResponse())
        found = self._counted(answer.found, count)
        if answer.HasField("summary"):
            self._learn(answer.summary, asked)
        return [byte == 1 for byte in found]

    def _learn(self, summary: Any, asked: float) -> None:
        """Brings the filter up to date, as of when that was asked for."""
        size = len(summary.content)
        with self._lock:
            if summary.epoch == self._epoch and summary.version < self._version:
                return  # overtaken by another answer
            if size:
                if size & (size - 1):
                    raise self._failed(f"its filter has {size} bytes")
                self._filter = Filter(summary.content)
                self._epoch, self._version = summary.epoch, summary.version
            elif self._filter is not None and summary.epoch == self._epoch:
                self._filter.add(summary.added)
                self._version = summary.version
            else:
                return
            self._current_until = max(self._current_until, asked + SUMMARY_S)

    def begin_promote(self, keys: Sequence[bytes], timeout_s: float, *, waits: bool) -> Any:
        """Begins to bring blocks into memory; the node answers when they are there, or at once."""
        wait_ms = int(max(1.0, 1000 * (timeout_s - _WAY_S))) if waits else 0
        request = tier_pb2.PromoteRequest(keys=keys, wait_ms=wait_ms)
        return self._begin("Promote", request, timeout_s)

    def promote(self, begun: Any, count: int) -> list[bool]:
        """Which of them are in memory."""
        outcomes = self._end(begun, tier_pb2.PromoteResponse()).outcomes
        return [byte == IN_MEMORY for byte in self._counted(outcomes, count)]

    def forget(self, prefix: bytes, timeout_s: float) -> int:
        """Drops the records whose keys begin with `prefix`; returns how many there were."""
        begun = self._begin("Forget", tier_pb2.ForgetRequest(prefix=prefix), timeout_s)
        return int(self._end(begun, tier_pb2.ForgetResponse()).records)

    def close(self) -> None:
        """Ends the calls under way; they fail."""
        self._channel.close()

    def _begin(self, method: str, request: Message, timeout_s: float) -> Any:
        try:
            return self._channel.start(
                f"/{_SERVICE}/{method}", request.SerializeToString(), timeout_s
            )
        except (rpc.CallFailed, ValueError) as error:
            raise self._failed(str(error)) from None

    def _end(self, begun: Any, answer: Any) -> Any:
        try:
            answer.ParseFromString(self._channel.result(begun))
        except rpc.CallFailed as failure:
            kind = TierBusy if failure.code == "RESOURCE_EXHAUSTED" else errors.NodeUnreachable
            raise self._failed(f"{failure.code}: {failure.details}", kind) from None
        except DecodeError as error:
            raise self._failed(str(error)) from None
        return answer

    def _counted(self, outcomes: bytes, count: int) -> bytes:
        if len(outcomes) != count:
            raise self._failed(f"it answered for {len(outcomes)} of {count} keys")
        return outcomes

    def _failed(
        self, why: str, kind: type[errors.NodeUnreachable] = errors.NodeUnreachable
    ) -> errors.NodeUnreachable:
        return kind(f"the SSD tier of {self._where.address}: {why}")
