"""The HiCache storage backend for SGLang. Made for SGLang 0.5.

    --enable-hierarchical-cache --hicache-storage-backend dynamic
    --hicache-storage-backend-extra-config '{"backend_name": "kvstore",
        "module_path": "kvstore.llm.sglang", "class_name": "KvStoreHiCache", "interface_v1": 1,
        "target": "kv://host:7400"}'

Other keys: `revision` (names the weights), `salt`, `match_timeout_s`, `load_timeout_s`,
`store_timeout_s`.

Pages move between SGLang's host pool and the store without a copy: a page is one object for each
contiguous piece of it (two in the page_first layouts, two a layer in layer_first). SGLang's keys
are hashes of tokens alone; model, ranks, element type and layout make the namespace.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy
import sglang
import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

import kvstore
from kvstore.errors import ConfigurationError
from kvstore.llm.core import Limits
from kvstore.llm.namespace import Namespace, Ranks
from kvstore.llm.prefix_cache import PrefixCache

#: The piece that stands for a whole page where SGLang hands over flat tensors.
_FLAT: Final = -1
#: Pools whose state is split over tensor-parallel ranks also where the model's KV is not.
_ALWAYS_SPLIT: Final = (str(PoolName.MAMBA),)


class _Pool:
    """One of SGLang's host pools, and the cache of its pages."""

    def __init__(self, pool: Any, cache: PrefixCache) -> None:
        self.cache = cache
        self._pool = pool
        self._page_tokens: int = getattr(pool, "page_size", 1) or 1
        pointers, _ = pool.get_page_buffer_meta(torch.arange(self._page_tokens))
        #: Contiguous pieces of a page.
        self.pieces = len(pointers)

    def hashes(self, keys: Sequence[str]) -> list[bytes]:
        """Return the hash of every piece of every page."""
        return [_piece(key, piece) for key in keys for piece in range(self.pieces)]

    def memory(self, host_indices: torch.Tensor, pages: int) -> list[Any] | None:
        """Return the memory of every piece; None if the indices are not those of `pages` pages."""
        if host_indices is None or host_indices.numel() != pages * self._page_tokens:
            return None
        pointers, sizes = self._pool.get_page_buffer_meta(host_indices)
        return [_memory(at, size) for at, size in zip(pointers, sizes, strict=True)]

    def whole(self, good: Sequence[bool]) -> list[bool]:
        """Return which pages have all their pieces."""
        step = self.pieces
        return [all(good[i : i + step]) for i in range(0, len(good), step)]


class KvStoreHiCache(HiCacheStorage):
    """Serves SGLang's pages from a kvstore: interfaces v1 (zero copy), v2 (pools) and flat."""

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: Any = None) -> None:
        extra = dict(storage_config.extra_config or {})
        if not extra.get("target"):
            raise ConfigurationError(
                'the backend needs its memory nodes: {"target": "kv://host:7400"} in'
                " --hicache-storage-backend-extra-config"
            )
        if storage_config.should_split_heads:
            raise ConfigurationError("pages split by heads (tp_lcm_size) are not supported")
        defaults = Limits()
        self._limits = Limits(
            match_s=float(extra.get("match_timeout_s", defaults.match_s)),
            load_s=float(extra.get("load_timeout_s", defaults.load_s)),
            store_s=float(extra.get("store_timeout_s", defaults.store_s)),
        )
        self._extra = extra
        self._config = storage_config
        self._store = kvstore.connect(extra["target"])
        self._zero_copy = bool(extra.get("interface_v1"))
        self._pools: dict[str, _Pool] = {}
        # Flat pages say nothing of their layout before a pool is registered.
        self._flat = self._cache("flat", "", "")

    def _cache(self, pool: str, dtype: str, layout: str, page_tokens: int = 0) -> PrefixCache:
        config = self._config
        split = not config.is_mla_model or pool in _ALWAYS_SPLIT
        if split:
            rank, size = config.tp_rank, config.tp_size
        else:
            # Ranks hold the same bytes, but for what decode context parallelism spreads.
            rank, size = config.dcp_rank, config.dcp_size
        namespace = Namespace(
            model=config.model_name or "",
            revision=str(self._extra.get("revision", "")),
            dtype=dtype,
            layout=f"sglang {sglang.__version__} {pool} {layout}",
            block_tokens=page_tokens,
            ranks=Ranks(
                tensor_rank=rank,
                tensor_size=size,
                pipeline_rank=config.pp_rank,
                pipeline_size=config.pp_size,
                context_rank=config.attn_cp_rank,
                context_size=config.attn_cp_size,
            ),
            salt=str(self._extra.get("salt", "")),
        )
        return PrefixCache(self._store, namespace, limits=self._limits, prefetch_bytes=0)

    # ---- pools ----

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """See HiCacheStorage."""
        super().register_mem_pool_host(mem_pool_host)
        self._register(str(PoolName.KV), mem_pool_host)
        dtype, layout = str(mem_pool_host.dtype), str(mem_pool_host.layout)
        self._flat = self._cache("flat", dtype, layout, mem_pool_host.page_size)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """See HiCacheStorage."""
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        self._register(str(host_pool_name), host_pool)

    def _register(self, name: str, pool: Any) -> None:
        page_tokens: int = getattr(pool, "page_size", 1) or 1
        pointers, sizes = pool.get_page_buffer_meta(torch.arange(page_tokens))
        layout = f"{getattr(pool, 'layout', '')} {len(pointers)} {sorted(set(sizes))}"
        cache = self._cache(name, str(getattr(pool, "dtype", "")), layout, page_tokens)
        self._pools[name] = _Pool(pool, cache)

    @property
    def _kv(self) -> _Pool:
        return self._pools[str(PoolName.KV)]

    # ---- v1: zero copy ----

    def batch_get_v1(
        self,
        keys: list[str],
        host_indices: torch.Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        """See HiCacheStorage."""
        return self._load(self._kv, keys, host_indices)

    def batch_set_v1(
        self,
        keys: list[str],
        host_indices: torch.Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        """See HiCacheStorage."""
        return self._save(self._kv, keys, host_indices)

    def _load(self, pool: _Pool, keys: Sequence[str], host_indices: Any) -> list[bool]:
        memory = pool.memory(host_indices, len(keys))
        if memory is None:
            return [False] * len(keys)
        return pool.whole(pool.cache.get(pool.hashes(keys), memory).ok)

    def _save(self, pool: _Pool, keys: Sequence[str], host_indices: Any) -> list[bool]:
        memory = pool.memory(host_indices, len(keys))
        if memory is None:
            return [False] * len(keys)
        failed = pool.cache.put(pool.hashes(keys), memory).failed
        return pool.whole([place not in failed for place in range(len(memory))])

    # ---- v2: several pools ----

    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """See HiCacheStorage."""
        return {
            transfer.name: self._load(
                self._pools[str(transfer.name)], transfer.keys or [], transfer.host_indices
            )
            for transfer in transfers
        }

    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """See HiCacheStorage."""
        return {
            transfer.name: self._save(
                self._pools[str(transfer.name)], transfer.keys or [], transfer.host_indices
            )
            for transfer in transfers
        }

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        """See HiCacheStorage: the longest prefix that every pool can restore."""
        kv_pages = self._matched_pages(keys)
        hits: dict[str, int] = {PoolName.KV: kv_pages} if kv_pages else {}
        restorable = list(range(1, kv_pages + 1))
        for transfer in pool_transfers or []:
            if not restorable:
                break
            pool = self._pools[str(transfer.name)]
            here = pool.whole(pool.cache.contains(pool.hashes(keys[:kv_pages])))
            lengths = _restorable(here, transfer)
            if lengths:
                hits[transfer.name] = max(lengths)
            restorable = [length for length in restorable if length in lengths]
        return PoolTransferResult(restorable[-1] if restorable else 0, hits, restorable)

    # ---- existence, and flat pages ----

    def batch_exists(
        self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> int:
        """See HiCacheStorage."""
        if self._zero_copy:
            return self._matched_pages(keys)
        return self._flat.match([_piece(key, _FLAT) for key in keys])

    def _matched_pages(self, keys: Sequence[str]) -> int:
        """Pages from the first on that have all their pieces."""
        return self._kv.cache.match(self._kv.hashes(keys)) // self._kv.pieces

    def exists(self, key: str) -> bool:
        """See HiCacheStorage."""
        return self.batch_exists([key]) == 1

    def get(
        self, key: str, target_location: Any = None, target_sizes: Any = None
    ) -> torch.Tensor | None:
        """See HiCacheStorage: fills the flat tensor `target_location`."""
        return self.batch_get([key], [target_location])[0]

    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[torch.Tensor | None]:
        """See HiCacheStorage."""
        hashes = [_piece(key, _FLAT) for key in keys]
        ok = self._flat.get(hashes, list(target_locations)).ok
        return [tensor if good else None for tensor, good in zip(target_locations, ok, strict=True)]

    def set(
        self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None
    ) -> bool:
        """See HiCacheStorage: stores the flat tensor `value`."""
        return self.batch_set([key], [value])

    def batch_set(
        self,
        keys: list[str],
        values: Any = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        """See HiCacheStorage."""
        hashes = [_piece(key, _FLAT) for key in keys]
        return not self._flat.put(hashes, [value.contiguous() for value in values]).failed

    # ---- the rest ----

    def clear(self) -> None:
        """Delete this worker's pages; see `PrefixCache.clear`."""
        for cache in (self._flat, *(pool.cache for pool in self._pools.values())):
            cache.clear()

    def close(self) -> None:
        """Leave the store."""
        self._store.close()


def _piece(key: str, piece: int) -> bytes:
    return b"%s.%d" % (key.encode(), piece)


def _memory(address: int, size: int) -> Any:
    """The host pool's memory as an array; the pool outlives the backend."""
    memory: Any = (ctypes.c_ubyte * size).from_address(address)
    return numpy.frombuffer(memory, numpy.uint8)


def _restorable(here: Sequence[bool], transfer: PoolTransfer) -> set[int]:
    """The lengths of prefixes that a pool with these pages can restore."""
    if transfer.hit_policy == PoolHitPolicy.ALL_PAGES:
        leading = next((i for i, page in enumerate(here) if not page), len(here))
        return set(range(1, leading + 1))
    if transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
        trailing = max(1, len(transfer.keys or ()))
        ends = range(1, len(here) + 1)
        return {end for end in ends if all(here[max(0, end - trailing) : end])}
    raise ValueError(f"unsupported hit policy: {transfer.hit_policy}")
