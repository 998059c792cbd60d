"""What goes down to the SSD of a node and what comes back up.

*Demotion* is ahead of need: a thread walks over the memory and writes every block that has no
record yet, as an ordinary client of the node. So eviction, which the clients do among themselves,
asks nobody and waits for nothing; what was in memory when the node died is on the SSD as well; and
no more is written than by writing what is evicted, since in the long run everything is.

*Promotion* reads a record, verifies it and puts it, if the key is absent. To all clients that is a
put like any other, so the store's guarantees do not depend on the tier.

Only blocks of prefix caches have a place here: a key of theirs stands for one content for ever, so
an old record is never wrong. A block that was replaced all the same is written again.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from enum import IntEnum
from typing import Final

from kvstore.errors import ConditionFailed, KvError
from kvstore.llm.keys import BLOCK_PREFIX
from kvstore.node.log import Log
from kvstore.node.memory_node import MemoryNode
from kvstore.node.ssd import format as form
from kvstore.node.ssd.log import INDEX_BYTES_A_RECORD, Entry, SsdLog
from kvstore.node.ssd.region import Held, RegionClient
from kvstore.node.ssd.summary import TierSummary

READ_THREADS: Final = 4
#: Promotions under way or waiting for a thread; more fail at once.
PROMOTIONS_MAX: Final = 4096
#: Between two walks: the least, and the most while there is nothing to write.
_PAUSE_FIRST_S: Final = 0.1
_PAUSE_LAST_S: Final = 2.0
#: Walking takes at most this share of one core while nothing is written.
_WALK_SHARE: Final = 0.05
_CRC_END: Final = 1 << 32
#: After the device refused a write.
_RETRY_FIRST_S: Final = 1.0
_RETRY_LAST_S: Final = 60.0
#: Between two warnings of a kind.
_SILENT_S: Final = 60.0


class Outcome(IntEnum):
    """What became of a block that was asked for: a byte of the tier's answers."""

    #: It has no record, or one that is damaged.
    ABSENT = 0
    #: It is in memory now.
    IN_MEMORY = 1
    #: It has a record, and could not be brought up: no time, no room, or the device failed.
    FAILED = 2


class SsdTier:
    """The tier of one node. Owns the log. Thread-safe."""

    def __init__(self, node: MemoryNode, log: SsdLog, events: Log) -> None:
        """Attaches to the node and begins to demote."""
        self._log = log
        self._events = events
        #: Begun by the first walk.
        self.summary = TierSummary()
        self._region = RegionClient(node, READ_THREADS + 2)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._under_way: dict[bytes, Future[Outcome]] = {}
        #: Of what is under way: until when anybody waits for it.
        self._wanted_until: dict[bytes, float] = {}
        self._buffers = threading.local()
        self._closed = False
        #: The device did not answer when the tier was closed; threads that wait for it are left.
        self.stuck = False
        self._closing = threading.Event()
        #: Of each kind of warning.
        self._silent_until: dict[str, float] = {}
        self._retry_at = 0.0
        self._retry_s = _RETRY_FIRST_S
        #: The part of the blocks that is written: all, where the index has room for twice those
        #: that are in memory. What it drops and memory still has would be written for ever.
        self._share = 1.0
        self._pool = ThreadPoolExecutor(READ_THREADS, "ssd-read")
        self._demoter = threading.Thread(target=self._demote, name="ssd-write", daemon=True)
        self._demoter.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Ends what is under way and closes the log. May be called again.

        Where the device does not answer in that time, it leaves what waits for it, and is `stuck`.
        """
        deadline = time.monotonic() + timeout_s
        with self._lock:
            if self._closed:
                return
            self._closed = True
            under_way = set(self._under_way.values())
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for future in under_way:
            if future.cancelled():
                # Whoever waits for it is told only so.
                future.set_running_or_notify_cancel()
        self._demoter.join(timeout_s)
        wait(under_way, max(0.0, deadline - time.monotonic()))
        self.stuck = self._demoter.is_alive() or any(not future.done() for future in under_way)
        if not self.stuck:
            self._region.close()
            self.stuck = not self._log.close(max(0.0, deadline - time.monotonic()))
        if self.stuck:
            self._events.warning("the SSD does not answer: left as it is", file=self._log.path)

    @property
    def capacity_bytes(self) -> int:
        """What the file takes."""
        return self._log.capacity_bytes

    # ---- asking ----

    def lookup(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether each key has a record. It is not verified before it is read."""
        return [self._log.find(key) is not None for key in keys]

    def promote(
        self, keys: Sequence[bytes], wait_s: float, wanted_s: float = math.inf
    ) -> list[Outcome]:
        """Brings blocks into memory, and says what became of each within `wait_s`.

        What is late goes on and may be there soon; so a time of 0 begins without waiting. What has
        not begun after `wanted_s` is given up: nobody waits for it any more.
        """
        wanted_until = time.monotonic() + max(wait_s, wanted_s)
        outcomes: dict[bytes, Outcome] = {}
        futures: dict[bytes, Future[Outcome]] = {}
        with self._lock:
            for key in keys:
                if self._log.find(key) is None:
                    outcomes[key] = Outcome.ABSENT
                    self._counts["misses"] += 1
                elif key in self._under_way:
                    futures[key] = self._under_way[key]
                    self._wanted_until[key] = max(self._wanted_until[key], wanted_until)
                elif len(self._under_way) < PROMOTIONS_MAX and not self._closed:
                    self._wanted_until[key] = wanted_until
                    futures[key] = self._under_way[key] = self._pool.submit(self._bring_up, key)
        wait(set(futures.values()), max(0.0, wait_s))
        for key, future in futures.items():
            done = future.done() and not future.cancelled()
            outcomes[key] = future.result() if done else Outcome.FAILED
        return [outcomes.get(key, Outcome.FAILED) for key in keys]

    def forget(self, prefix: bytes) -> int:
        """Drops all records whose keys begin with `prefix`; returns how many. OSError if it fails.

        For whoever has deleted the blocks from memory before.
        """
        return self._log.forget(prefix)

    def stats(self) -> dict[str, int]:
        """The figures of the tier, by their names in the node's statistics."""
        with self._lock:
            counts = dict(self._counts)
        names = (
            *("demoted", "demoted_bytes", "hits", "hit_bytes"),
            *("misses", "failed", "expired", "errors"),
        )
        figures = {f"ssd_{name}": counts.get(name, 0) for name in names}
        return figures | {
            "ssd_capacity_bytes": self._log.capacity_bytes,
            "ssd_bytes": self._log.live_bytes,
            "ssd_records": len(self._log),
            "ssd_records_max": self._log.records_max,
            "ssd_damaged": self._log.damaged,
            "ssd_waiting": counts.get("waiting", 0),
        }

    # ---- up ----

    def _bring_up(self, key: bytes) -> Outcome:
        with self._lock:
            # In one step: who asks from here on begins anew.
            if time.monotonic() >= self._wanted_until[key]:
                self._end_promotion(key)
                self._counts["expired"] += 1
                return Outcome.FAILED
        try:
            return self._brought_up(key)
        except KvError:
            # No room, or the node is about to end.
            self._count(failed=1)
            return Outcome.FAILED
        except OSError as error:
            self._report("read", error)
            return Outcome.FAILED
        finally:
            with self._lock:
                self._end_promotion(key)

    def _end_promotion(self, key: bytes) -> None:
        del self._under_way[key], self._wanted_until[key]

    def _brought_up(self, key: bytes) -> Outcome:
        if self._region.contains(key):
            return Outcome.IN_MEMORY
        generation = self._log.generation
        found = self._read(key)
        if found is None:
            self._count(misses=1)
            return Outcome.ABSENT
        entry, value = found
        try:
            version = self._region.put_if_absent(key, value, entry.codec)
        except ConditionFailed:
            return Outcome.IN_MEMORY
        finally:
            size = len(value)
            value.release()
        adopted = self._log.adopt(key, entry, version)
        if (
            not adopted
            and self._log.forgotten_since(key, generation)
            and self._undone(key, version)
        ):
            return Outcome.ABSENT
        self._count(hits=1, hit_bytes=size)
        return Outcome.IN_MEMORY

    def _read(self, key: bytes) -> tuple[Entry, memoryview] | None:
        # The first time it may move while it is read.
        for _ in range(2):
            entry = self._log.find(key)
            if entry is None:
                return None
            value = self._log.read(key, entry, self._buffer())
            if value is not None:
                return entry, value
        return None

    def _undone(self, key: bytes, version: int) -> bool:
        """Takes back what was put, if the key was forgotten meanwhile: after the deletions."""
        entry = self._log.find(key)
        if entry is not None and entry.version != version:
            # It has moved, or a client has put it since.
            return False
        self._region.delete(key, version)
        # It may have gone down again already, or be about to.
        self._log.forget(key)
        return True

    def _buffer(self) -> bytearray:
        """The memory of this thread, which grows to its largest block."""
        if not hasattr(self._buffers, "memory"):
            self._buffers.memory = bytearray(1 << 20)
        memory: bytearray = self._buffers.memory
        return memory

    # ---- down ----

    def _demote(self) -> None:
        pause_s = _PAUSE_FIRST_S
        while not self._closing.wait(pause_s):
            began = time.monotonic()
            try:
                written = self._demote_once()
            except KvError as error:
                # The node's own client was cut off, or the node is about to end.
                if not self._closing.is_set():
                    self._events.warning("demotion interrupted", reason=str(error))
                written = 0
            except Exception as error:  # whatever it is, the next walk may succeed
                self._count(errors=1)
                self._events.error("demotion failed", reason=repr(error))
                written = 0
            pause_s = _PAUSE_FIRST_S if written else min(2 * pause_s, _PAUSE_LAST_S)
            if not written:
                pause_s = max(pause_s, (time.monotonic() - began) / _WALK_SHARE)

    def _demote_once(self) -> int:
        """One walk; returns how many blocks it wrote."""
        if self.summary.is_full:
            self.summary.begin(self._log.held())
        blocks = written = waiting = 0
        for held in self._region.walk():
            if self._closing.is_set():
                break
            if not held.key.startswith(BLOCK_PREFIX):
                continue
            blocks += 1
            if self._share < 1 and form.crc32c(held.key) >= self._share * _CRC_END:
                continue
            entry = self._log.find(held.key)
            if entry is not None and entry.version == held.version:
                continue
            if not self._log.fits(held.key, held.value_bytes):
                continue
            if self._write(held, entry):
                written += 1
            else:
                waiting += 1
        else:
            self._set_share(blocks)
        with self._lock:
            self._counts["waiting"] = waiting
        return written

    def _set_share(self, blocks: int) -> None:
        """The same keys are of the part from walk to walk, so that it comes to an end."""
        share = min(1.0, self._log.records_max / (2 * max(blocks, 1)))
        if share < 1 and self._share == 1 and self._is_due("share"):
            self._events.warning(
                "only a part of the blocks goes to the SSD, where prefixes will hardly match: give"
                f" --ssd-index-bytes={2 * blocks * INDEX_BYTES_A_RECORD} or more",
                in_memory=blocks,
                records_max=self._log.records_max,
            )
        self._share = share

    def _write(self, held: Held, entry: Entry | None) -> bool:
        """Copies a block to the SSD, unless it is there already; false if it is not there now."""
        if time.monotonic() < self._retry_at:
            return False
        generation = self._log.generation
        block = self._region.read(held.key, self._buffer())
        if block is None:
            return False
        try:
            if entry is not None and _same(entry, block.value, block.codec):
                return self._log.adopt(held.key, entry, block.version)
            # First, so that the filter never says no of what can be found.
            self.summary.add(held.key)
            appended = self._log.append(
                held.key, block.value, block.codec, version=block.version, generation=generation
            )
            if appended:
                self._count(demoted=1, demoted_bytes=len(block.value))
                self._retry_s = _RETRY_FIRST_S
            return appended
        except OSError as error:
            self._retry_at = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, _RETRY_LAST_S)
            self._report("write", error)
            return False
        finally:
            block.value.release()

    # ---- accounts ----

    def _count(self, **counts: int) -> None:
        with self._lock:
            self._counts.update(counts)

    def _report(self, what: str, error: OSError) -> None:
        """Counts a failure of the device; logs each kind once a minute at most."""
        self._count(errors=1)
        if self._is_due(what):
            self._events.warning(
                "the SSD failed; blocks count as misses",
                operation=what,
                file=self._log.path,
                reason=error.strerror or str(error),
            )

    def _is_due(self, what: str) -> bool:
        """Whether this was not said within the last minute."""
        now = time.monotonic()
        with self._lock:
            if now < self._silent_until.get(what, 0.0):
                return False
            self._silent_until[what] = now + _SILENT_S
            return True


def _same(entry: Entry, value: memoryview, codec: int) -> bool:
    return (
        entry.value_bytes == len(value)
        and entry.codec == codec
        and entry.value_crc == form.crc32c(value)
    )
