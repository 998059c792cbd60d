"""A kvstore as secondary tier of vLLM's own KV offloading, below its memory of the host.

    --kv-transfer-config '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both",
                           "kv_connector_extra_config": {
                             "spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 10737418240,
                             "secondary_tiers": [{"type": "KvStoreTier",
                                                  "module_path": "kvstore.llm.vllm.offloading",
                                                  "target": "kv://host:7400"}]}}'

vLLM copies chunks between the device and a mapped file, and calls the tier in its scheduler, which
must not wait: look-ups and transfers run on threads. What fails to load is a miss from then on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy
import vllm
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

import kvstore
from kvstore.errors import ConfigurationError
from kvstore.llm.core import Limits
from kvstore.llm.namespace import Namespace, Ranks
from kvstore.llm.prefix_cache import PrefixCache
from kvstore.llm.vllm.settings import machine

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingSpec

_log = logging.getLogger("kvstore.llm.vllm")
#: How long `drain_jobs` goes on after the deadlines of what it waits for.
_GRACE_S: Final = 5.0


class KvStoreTier(SecondaryTierManager):
    """Keeps chunks in a kvstore. Called by the scheduler's thread; see SecondaryTierManager."""

    medium: ClassVar[Medium] = Medium.CPU

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        *,
        target: str = "",
        revision: str = "",
        salt: str = "",
        match_timeout_s: float = 0.5,
        load_timeout_s: float = 5.0,
        store_timeout_s: float = 10.0,
        threads: int = 2,
    ) -> None:
        """Take vLLM's arguments, and the keys of the tier's configuration.

        Args:
            offloading_spec: vLLM's.
            primary_kv_view: The memory of the host, a row a chunk.
            tier_type: vLLM's name of the tier.
            backpressure_detector: vLLM's.
            target: What `kvstore.connect` takes. Default: the environment's KVSTORE_TARGET.
            revision: Names the weights: of the model vLLM tells a tier the name alone.
            salt: Keeps tenants apart; all engines that share must agree.
            match_timeout_s: For one batch of look-ups.
            load_timeout_s: For the chunks of one load.
            store_timeout_s: For the chunks of one store.
            threads: Loads at one time, and stores.
        """
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        target = target or os.environ.get("KVSTORE_TARGET", "")
        if not target:
            raise ConfigurationError("the tier needs the target of its nodes, or KVSTORE_TARGET")
        self.locality = Locality.REMOTE
        self._rows = numpy.asarray(primary_kv_view)
        self._wait_s = max(load_timeout_s, store_timeout_s) + _GRACE_S
        self._store = kvstore.connect(target)
        self._cache = PrefixCache(
            self._store,
            namespace_of(offloading_spec, self.block_size_bytes, revision=revision, salt=salt),
            limits=Limits(match_s=match_timeout_s, load_s=load_timeout_s, store_s=store_timeout_s),
            prefetch_bytes=0,
        )
        self._lookups = _Lookups(tier_type, self._cache)
        self._load_threads = ThreadPoolExecutor(threads, "kvstore-tier-load")
        self._store_threads = ThreadPoolExecutor(threads, "kvstore-tier-store")
        #: Transfers whose end was not told yet.
        self._begun: set[Future[None]] = set()
        self._ended: SimpleQueue[tuple[JobResult, list[OffloadKey]]] = SimpleQueue()

    # ---- looking up ----

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """See SecondaryTierManager."""
        return RequestOffloadingContext()

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """See SecondaryTierManager. The first answer is "ask again": a thread asks the store."""
        found = self._lookups.lookup(key, req_context)
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """See SecondaryTierManager. What the step asked goes to the store as one batch."""
        self._lookups.flush()

    def on_request_finished(self, req_context: ReqContext) -> None:
        """See SecondaryTierManager."""
        self._lookups.cleanup(req_context.req_id)

    # ---- moving ----

    def submit_store(self, job_metadata: TransferJob) -> None:
        """See SecondaryTierManager."""
        self._submit(self._store_threads, self._put, job_metadata)

    def submit_load(self, job_metadata: TransferJob) -> None:
        """See SecondaryTierManager."""
        self._submit(self._load_threads, self._get, job_metadata)

    def _submit(self, threads: ThreadPoolExecutor, move: Any, job: TransferJob) -> None:
        keys = list(job.keys)
        rows = [self._rows[int(chunk)] for chunk in job.chunk_ids]

        def run() -> None:
            begin = time.monotonic()
            done: Collection[OffloadKey] = ()
            try:
                done = move(keys, rows)
            except Exception:
                # A job that never ends would keep its chunks for ever.
                _log.exception("a transfer of the tier failed")
            failed = [key for key in keys if key not in done]
            result = JobResult(
                job_id=job.job_id,
                success=not failed,
                successful_keys=tuple(done) if done and failed else None,
                transfer_time=time.monotonic() - begin,
                transfer_bytes=len(done) * self.block_size_bytes,
            )
            self._ended.put((result, failed if job.is_promotion else []))

        self._begun = {future for future in self._begun if not future.done()}
        self._begun.add(threads.submit(run))

    def _put(self, keys: list[OffloadKey], rows: list[numpy.ndarray]) -> set[OffloadKey]:
        failed = self._cache.put(keys, rows).failed
        return {key for place, key in enumerate(keys) if place not in failed}

    def _get(self, keys: list[OffloadKey], rows: list[numpy.ndarray]) -> set[OffloadKey]:
        loaded = self._cache.get(keys, rows).ok
        return {key for key, ok in zip(keys, loaded, strict=True) if ok}

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """See SecondaryTierManager. A key that failed to load is a miss: it would fail again."""
        results: list[JobResult] = []
        while True:
            try:
                result, failed = self._ended.get_nowait()
            except Empty:
                return results
            self._lookups.mark_miss(failed)
            results.append(result)

    def drain_jobs(self) -> None:
        """See SecondaryTierManager. Each transfer ends by its own deadline."""
        queued = 1 + len(self._begun)
        wait(self._begun, timeout=queued * self._wait_s)

    def shutdown(self) -> None:
        """See SecondaryTierManager."""
        self._lookups.shutdown()
        self._load_threads.shutdown(wait=True, cancel_futures=True)
        self._store_threads.shutdown(wait=True)
        self._cache.close()
        self._store.close()


class _Lookups(AsyncLookupManager):
    """Asks the store on a thread of its own."""

    def __init__(self, tier_type: str, cache: PrefixCache) -> None:
        self._cache = cache
        super().__init__(tier_type=tier_type)

    def batch_lookup(self, keys: list[OffloadKey], req_context: ReqContext) -> Iterable[bool]:
        """See AsyncLookupManager."""
        return self._cache.contains(keys)


def namespace_of(spec: OffloadingSpec, chunk_bytes: int, *, revision: str, salt: str) -> Namespace:
    """Return what an engine's chunks have in common. The group is in vLLM's keys.

    A chunk holds the parts of all workers, side by side.
    """
    config = spec.config
    parallel = config.parallel
    groups = [
        (group.group_id, group.tokens_per_block, group.layer_names) for group in config.groups
    ]
    shape = [
        *(config.kv_cache_layout, config.canonical_layout, spec.replicated_layout, chunk_bytes),
        *(config.worker_kv_bytes_per_block, config.cache.blocks_per_chunk, parallel.pcp_size),
        *(parallel.dcp_size, groups),
    ]
    return Namespace(
        model=config.model.name,
        revision=revision,
        dtype=str(config.model.dtype),
        layout=f"vllm {vllm.__version__} offloaded {machine()} {shape}",
        block_tokens=config.groups[0].tokens_per_block * config.cache.blocks_per_chunk,
        ranks=Ranks(tensor_size=parallel.tp_size, pipeline_size=parallel.pp_size),
        salt=salt,
    )
