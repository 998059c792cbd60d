"""The half of the connector that runs in vLLM's workers: it moves blocks.

A block is stored as one object: the bytes of all layers of its group in this worker, as they are.
What a step completes is copied out behind the step, on a GPU by the GPU itself, so vLLM may reuse
its blocks at once; a thread stores the copies. Loads run on threads of their own, between steps:
a step that began with blocks that had failed to load would have what it computes of them stored.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from vllm.v1.kv_cache_interface import group_kernel_blocks

import kvstore
from kvstore.llm.block_memory import BlockMemory, Memories, Moment, Transfer
from kvstore.llm.chains import Prompt
from kvstore.llm.codecs import Codec
from kvstore.llm.core import left_s
from kvstore.llm.hand_off import HandOff
from kvstore.llm.prefix_cache import PrefixCache
from kvstore.llm.vllm.hand_off import Publisher, Receiver, Room
from kvstore.llm.vllm.loads import Loads
from kvstore.llm.vllm.metadata import GroupBlocks, HandOffJob, Job
from kvstore.llm.vllm.settings import Geometry, Settings

_log = logging.getLogger("kvstore.llm.vllm")


class WorkerSide:
    """See the module. Called by the worker's thread; what threads share is behind the lock."""

    def __init__(
        self, settings: Settings, geometry: Geometry, *, tensor_rank: int, pipeline_rank: int
    ) -> None:
        self._settings = settings
        self._stores = geometry.stores(tensor_rank)
        #: Loads that the engine has asked for, and what has become of them.
        self.loads = Loads(several_groups=len(geometry.group_ids) > 1)
        self._store = kvstore.connect(settings.target)
        ranks = geometry.ranks_of(tensor_rank, pipeline_rank)
        self._namespaces = [
            geometry.namespace(group, ranks) for group in range(len(geometry.group_ids))
        ]
        self._caches: list[PrefixCache] = []
        self._memories = Memories()
        self._memory: list[BlockMemory] = []
        self._changed = threading.Condition()
        self._saving_bytes = 0
        self._counts: dict[str, float] = {}
        self._geometry = geometry
        self._ranks = ranks
        self._publisher: Publisher | None = None
        self._receiver: Receiver | None = None
        self._load_threads = ThreadPoolExecutor(
            settings.load_threads, "kvstore-load", self._memories.enter_thread
        )
        #: What happens once a request, however many workers there are, one worker counts.
        self._counts_requests = tensor_rank == 0 and pipeline_rank == 0
        self._save_thread = ThreadPoolExecutor(1, "kvstore-save")

    def register(self, groups: list[list[torch.Tensor]], num_blocks: int) -> None:
        """Take the KV tensors of each group."""
        self._memory = [
            self._memories.of([group_kernel_blocks(tensor, num_blocks) for tensor in tensors])
            for tensors in groups
        ]
        self._caches = [
            PrefixCache(
                self._store,
                namespace,
                codec=self._codec(groups[group][0].element_size()),
                limits=self._settings.limits(),
                prefetch_bytes=0,
            )
            for group, namespace in enumerate(self._namespaces)
        ]

    def register_layers(self, layers: dict[str, torch.Tensor], num_blocks: int) -> None:
        """Take the KV tensors of the layers that are handed off one by one, where they are."""
        if self._settings.hand_off == "none":
            return
        blocks = {
            name: self._memories.of([group_kernel_blocks(tensor, num_blocks)])
            for name, tensor in layers.items()
        }
        limits = self._settings.limits()
        cache = PrefixCache(
            self._store,
            self._geometry.piece_namespace(self._ranks),
            limits=limits,
            prefetch_bytes=0,
        )
        hand_off = HandOff(self._store, cache, len(blocks))
        if self._settings.hand_off == "receive":
            self._receiver = Receiver(
                hand_off,
                list(blocks.values()),
                waiting_max=self._settings.hand_offs_max,
                enter_thread=self._memories.enter_thread,
            )
        elif self._stores:
            room = Room(self._room_by, self._reserve, self._release)
            self._publisher = Publisher(hand_off, blocks, room, self._count, self._count_requests)

    def _codec(self, element_bytes: int) -> Codec | None:
        if self._settings.codec == "none":
            return None
        from kvstore.llm.codecs.planes import ZstdPlanes

        return ZstdPlanes(element_bytes)

    # ---- loading ----

    def start_loads(self, jobs: list[Job]) -> None:
        """Begin loads."""
        # What the step before queued may still use the blocks.
        after = [memory.moment() for memory in self._memory] if jobs else []
        self.loads.begin(len(jobs))
        for job in jobs:
            if job.handed is not None:
                self._start_receiving(job, job.handed, after)
            else:
                self._load_threads.submit(self._load_and_tell, job, partial(self._load, job, after))

    def _start_receiving(self, job: Job, handed: GroupBlocks, after: list[Moment | None]) -> None:
        receiver = self._receiver
        assert receiver is not None, "the scheduler expects a hand-off only where one is received"
        tokens = len(handed.block_ids) * self._geometry.block_tokens[handed.group]
        wait_s = self._settings.hand_off_timeout_s(tokens)
        # Others may have to be received first, but not for ever.
        latest = time.monotonic() + 2 * wait_s

        def load() -> set[int]:
            failed = self._load(job, after)
            # A prefix ends where a block is missing: what comes behind it is of no use.
            if failed:
                return failed | set(handed.block_ids)
            deadline = min(time.monotonic() + wait_s, latest)
            if receiver.receive(handed, deadline, after[handed.group]):
                self._count_requests(hand_offs_received=1)
                return set()
            self._count_requests(hand_offs_failed=1)
            return set(handed.block_ids) - self._load_stored(handed, job, after)

        receiver.submit(lambda: self._load_and_tell(job, load))

    def _load_and_tell(self, job: Job, load: Callable[[], set[int]]) -> None:
        failed = set()
        try:
            failed = load()
        except Exception:
            # Nothing must keep a request waiting for ever, a defect of ours neither.
            _log.exception("a load failed")
            handed = [job.handed] if job.handed is not None else []
            failed = {block for group in [*job.groups, *handed] for block in group.block_ids}
        finally:
            self.loads.end(job.request_id, failed)

    def _load(self, job: Job, after: list[Moment | None]) -> set[int]:
        """Loads the blocks of a request; returns the ids of those that could not be."""
        begin = time.monotonic()
        failed: set[int] = set()
        for blocks in job.groups:
            if blocks.block_ids:
                prompt = job.prompts[blocks.group]
                loaded = self._load_group(blocks, prompt, after[blocks.group])
                failed |= set(blocks.block_ids) - loaded
        if any(blocks.block_ids for blocks in job.groups):
            self._count(load_seconds=time.monotonic() - begin)
            self._count_requests(requests_loaded=1)
        return failed

    def _load_stored(self, handed: GroupBlocks, job: Job, after: list[Moment | None]) -> set[int]:
        """Load what is stored by now of a prompt that was not handed off, as whole blocks."""
        count = self._caches[handed.group].match(handed.hashes)
        if count == 0:
            return set()
        there = GroupBlocks(
            handed.group, handed.block_ids[:count], handed.hashes[:count], handed.first
        )
        return self._load_group(there, job.prompts[handed.group], after[handed.group])

    def _load_group(self, blocks: GroupBlocks, prompt: Prompt, after: Moment | None) -> set[int]:
        """Returns the ids of the blocks that were loaded. A prefix ends with its first failure."""
        memory = self._memory[blocks.group]
        cache = self._caches[blocks.group]
        deadline = time.monotonic() + cache.load_timeout_s(len(blocks.block_ids))
        loaded: list[int] = []
        transfer: Transfer | None = None
        try:
            # A part crosses to the device while the next one comes from the store.
            for part in memory.parts(len(blocks.block_ids)):
                rows = memory.rows(part.stop - part.start)
                result = cache.get(
                    blocks.hashes[part],
                    list(rows.numpy()),
                    timeout_s=left_s(deadline),
                    prompt=prompt,
                    first=blocks.first + part.start,
                )
                if transfer is not None:
                    transfer.wait()
                good = [place for place, ok in enumerate(result.ok) if ok]
                if good:
                    ids = [blocks.block_ids[part.start + place] for place in good]
                    transfer = memory.scatter(ids, rows if result.all_ok else rows[good], after)
                    loaded += ids
                if not result.all_ok:
                    break
        finally:
            # Nothing writes to the blocks any more when vLLM hears of them, good or bad.
            if transfer is not None:
                transfer.wait()
        return set(loaded)

    # ---- storing ----

    def save(self, jobs: list[Job]) -> None:
        """Copy the blocks of a step and have them stored."""
        if not self._stores:
            return
        deadline = self._room_by()
        for job in jobs:
            for blocks in job.groups:
                self._save_group(blocks, job.prompts[blocks.group], deadline)

    def _save_group(self, blocks: GroupBlocks, prompt: Prompt, deadline: float) -> None:
        memory = self._memory[blocks.group]
        for part in memory.parts(len(blocks.block_ids)):
            ids = blocks.block_ids[part]
            size = memory.block_bytes * len(ids)
            if not self._reserve(size, deadline):
                self._count(dropped_blocks=len(blocks.block_ids) - part.start)
                return
            names = GroupBlocks(blocks.group, ids, blocks.hashes[part], blocks.first + part.start)
            self._save_thread.submit(self._put, names, prompt, memory.gather(ids), size)

    def _room_by(self) -> float:
        """When a step that wants room for copies now gives up."""
        return time.monotonic() + self._settings.save_wait_s

    def _reserve(self, size: int, deadline: float) -> bool:
        """Waits for room for copies; false where there is none in time."""
        with self._changed:
            fits = size <= self._settings.save_bytes and self._changed.wait_for(
                lambda: self._saving_bytes + size <= self._settings.save_bytes,
                max(0.0, deadline - time.monotonic()),
            )
            if fits:
                self._saving_bytes += size
            return fits

    def _release(self, size: int) -> None:
        with self._changed:
            self._saving_bytes -= size
            self._changed.notify_all()

    # ---- handing off ----

    def begin_layer(self, layer_name: str, jobs: list[HandOffJob]) -> None:
        """Before a layer is computed."""
        if self._publisher is not None:
            self._publisher.begin(layer_name, jobs)

    def save_layer(self, layer_name: str, jobs: list[HandOffJob]) -> None:
        """Copy what the step computed of a layer and have it handed off."""
        if self._publisher is not None:
            self._publisher.save(layer_name, jobs)

    def finish(self, request_ids: set[str]) -> None:
        """Requests that have ended hand nothing off any more."""
        if self._publisher is not None:
            self._publisher.finish(request_ids)

    # ---- the storing thread ----

    def _put(self, blocks: GroupBlocks, prompt: Prompt, copies: Transfer, size: int) -> None:
        begin = time.monotonic()
        try:
            rows = copies.wait()
            self._caches[blocks.group].put(
                blocks.hashes, list(rows.numpy()), prompt=prompt, first=blocks.first
            )
        except Exception:
            _log.exception("a store failed")
        finally:
            self._release(size)
        self._count(save_seconds=time.monotonic() - begin)

    # ---- telling and ending ----

    def _count(self, **counts: float) -> None:
        with self._changed:
            for name, count in counts.items():
                self._counts[name] = self._counts.get(name, 0) + count

    def _count_requests(self, **counts: float) -> None:
        if self._counts_requests:
            self._count(**counts)

    def counts(self) -> dict[str, float]:
        """Return what no prefix cache counts."""
        with self._changed:
            return dict(self._counts)

    def caches(self) -> list[PrefixCache]:
        """The caches, for their counters."""
        return self._caches

    def shutdown(self) -> None:
        """End the threads once what they do is done, each by its own deadline; leave the store."""
        self._load_threads.shutdown(wait=True, cancel_futures=True)
        if self._receiver is not None:
            self._receiver.shutdown()
        if self._publisher is not None:
            self._publisher.shutdown()
        self._save_thread.shutdown(wait=True)
        self._store.close()


def group_tensors(kv_caches: dict[str, Any], layer_names: list[str]) -> list[torch.Tensor]:
    """Return the tensors of a group's layers that this worker has, in the order of the group."""
    return [kv_caches[name] for name in layer_names if name in kv_caches]
