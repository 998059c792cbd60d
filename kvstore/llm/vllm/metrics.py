"""The connector's counters, for vLLM's log and its Prometheus endpoint.

Every interval brings the differences since the last one; vLLM adds them up over its workers.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from kvstore.llm.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Counter -> what Prometheus says of it. Names of `CacheStats`, then those of the worker.
COUNTERS: Final = {
    "match_blocks": "Blocks that the scheduler asked the store for",
    "matched_blocks": "Blocks of them that the store had",
    "matched_ssd": "Blocks of these that only an SSD of the store had",
    "negative_hits": "Look-ups that were cut short by a block that had failed to load lately",
    "loaded_prefetched": "Blocks loaded from this process's own memory",
    "loaded_remote": "Blocks loaded from the memory of the store's nodes",
    "loaded_ssd": "Blocks loaded from the SSDs of the store's nodes",
    "loaded_bytes": "Bytes loaded from the store",
    "failed_loads": "Blocks that could not be loaded",
    "stored": "Blocks stored",
    "stored_bytes": "Bytes stored",
    "present": "Blocks not stored because the store had them",
    "failed_stores": "Blocks that could not be stored",
    "flights_led": "Prompts computed while other engines that want them wait",
    "flights_joined": "Prompts not computed, because another engine computed them",
    "flights_late": "Waits for another engine that the deadline ended",
    "hand_offs_published": "Prompts handed off, layer by layer",
    "hand_offs_received": "Prompts taken over from a prefill engine",
    "hand_offs_failed": "Prompts that did not come from a prefill engine, or not in time",
    "dropped_blocks": "Blocks not stored because the worker had no memory for copies",
    "requests_loaded": "Requests for which blocks were loaded",
    "load_seconds": "Time that loads took, on all threads",
    "save_seconds": "Time that stores took, on the storing thread",
}


class KvStoreStats(KVConnectorStats):
    """Differences of the counters over an interval."""

    def reset(self) -> None:
        """See KVConnectorStats."""
        self.data: dict[str, float] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """See KVConnectorStats."""
        for name, count in other.data.items():
            self.data[name] = self.data.get(name, 0) + count
        return self

    def reduce(self) -> dict[str, int | float]:
        """See KVConnectorStats."""
        return {f"kvstore_{name}": round(count, 4) for name, count in sorted(self.data.items())}

    def is_empty(self) -> bool:
        """See KVConnectorStats."""
        return not any(self.data.values())


class Differences:
    """Turns running counters into differences."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def since_last(
        self, caches: Iterable[PrefixCache], counts: dict[str, float] | None = None
    ) -> KvStoreStats:
        """Return what was added since the last call."""
        now: dict[str, float] = dict(counts or {})
        for cache in caches:
            for name, count in asdict(cache.stats()).items():
                if name in COUNTERS:
                    now[name] = now.get(name, 0) + count
        changed = {n: c - self._last.get(n, 0) for n, c in now.items() if c != self._last.get(n, 0)}
        self._last = now
        return KvStoreStats(data=changed)


class KvStorePromMetrics(KVConnectorPromMetrics):
    """`vllm:kvstore_*_total`, one a counter and engine."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters: dict[str, dict[int, Any]] = {}
        for name, text in COUNTERS.items():
            counter = self._counter_cls(
                name=f"vllm:kvstore_{name}", documentation=text, labelnames=labelnames
            )
            self._counters[name] = {
                engine: counter.labels(*values) for engine, values in per_engine_labelvalues.items()
            }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """See KVConnectorPromMetrics."""
        for name, count in transfer_stats_data.items():
            if name in self._counters and count > 0:
                self._counters[name][engine_idx].inc(count)
