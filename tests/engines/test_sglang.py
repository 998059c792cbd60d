"""The SGLang backend through SGLang's own factory, with its own delays and failures.

Runs where SGLang is installed: `make test-engines`. The host pools here lay out their pages as
SGLang's do (`get_page_buffer_meta`); SGLang's own need its GPU packages to be imported.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engines.conftest import engine_module

torch = engine_module("torch")
engine_module("sglang")

from sglang.srt.mem_cache.hicache_storage import (  # noqa: E402
    HiCacheStorage,
    HiCacheStorageConfig,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory  # noqa: E402

from kvstore.errors import ConfigurationError  # noqa: E402
from kvstore.llm.sglang import KvStoreHiCache  # noqa: E402
from tests.support.nodes import NodeProcess, start_node  # noqa: E402

PAGE_TOKENS, LAYERS, HEADS, CHANNELS, TOKENS = 16, 3, 2, 8, 256
KEYS = [f"{i:064x}" for i in range(8)]


class HostPool:
    """Pages of keys and values in one buffer, in one of SGLang's layouts."""

    def __init__(self, layout: str, dtype: Any = torch.bfloat16) -> None:
        self.layout, self.dtype, self.page_size = layout, dtype, PAGE_TOKENS
        # layer_first: [2, layer, token, ...]; page_first: [2, token, layer, ...].
        inner = (LAYERS, TOKENS) if layout == "layer_first" else (TOKENS, LAYERS)
        self.kv_buffer = torch.zeros((2, *inner, HEADS, CHANNELS), dtype=dtype)

    def get_page_buffer_meta(self, indices: Any) -> tuple[list[int], list[int]]:
        assert len(indices) % PAGE_TOKENS == 0
        pointers: list[int] = []
        size = 0
        for token in indices[::PAGE_TOKENS].tolist():
            pages = slice(token, token + PAGE_TOKENS)
            if self.layout == "layer_first":
                views = [self.kv_buffer[kv, la, pages] for la in range(LAYERS) for kv in (0, 1)]
            else:
                views = [self.kv_buffer[kv, pages] for kv in (0, 1)]
            assert all(view.is_contiguous() for view in views)
            pointers += [view.data_ptr() for view in views]
            size = views[0].numel() * views[0].element_size()
        return pointers, [size] * len(pointers)

    def fill(self) -> None:
        self.kv_buffer.copy_(torch.randn(self.kv_buffer.shape))

    def page(self, number: int) -> Any:
        tokens = slice(number * PAGE_TOKENS, (number + 1) * PAGE_TOKENS)
        if self.layout == "layer_first":
            return self.kv_buffer[:, :, tokens].clone()
        return self.kv_buffer[:, tokens].clone()


def indices(pages: list[int]) -> Any:
    return torch.cat([torch.arange(PAGE_TOKENS) + PAGE_TOKENS * page for page in pages])


@pytest.fixture
def node() -> Iterator[NodeProcess]:
    with start_node() as started:
        yield started


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    """Backends that are closed after the test."""
    backends: list[Any] = []
    yield backends
    for backend in backends:
        backend.close()


def config_of(node: NodeProcess, **changes: Any) -> HiCacheStorageConfig:
    extra = {
        "backend_name": "kvstore",
        "module_path": "kvstore.llm.sglang",
        "class_name": "KvStoreHiCache",
        "interface_v1": 1,
        "target": node.target,
        "load_timeout_s": 2.0,
        **changes.pop("extra", {}),
    }
    config = HiCacheStorageConfig(
        tp_rank=0,
        tp_size=1,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=False,
        is_page_first_layout=True,
        model_name="model",
        extra_config=extra,
    )
    return dataclasses.replace(config, **changes)


def backend_of(
    node: NodeProcess, opened: list[Any], pool: HostPool, **changes: Any
) -> HiCacheStorage:
    backend = StorageBackendFactory.create_backend("dynamic", config_of(node, **changes), pool)
    opened.append(backend)
    backend.register_mem_pool_host(pool)
    return backend


def test_the_contract() -> None:
    assert set(HiCacheStorage.__abstractmethods__) == {
        "batch_get",
        "batch_set",
        "exists",
        "get",
        "set",
    }
    assert not KvStoreHiCache.__abstractmethods__
    for name, ours in vars(KvStoreHiCache).items():
        theirs = getattr(HiCacheStorage, name, None)
        if not name.startswith("_") and theirs is not None:
            assert list(inspect.signature(ours).parameters) == list(
                inspect.signature(theirs).parameters
            ), name
    assert {p.name for p in PoolHitPolicy} == {"ALL_PAGES", "TRAILING_PAGES", "BLOCK_GROUPS"}


@pytest.mark.parametrize("layout", ["layer_first", "page_first"])
def test_another_engine_loads_the_pages(node: NodeProcess, opened: list[Any], layout: str) -> None:
    source = HostPool(layout)
    source.fill()
    writer = backend_of(node, opened, source)
    assert isinstance(writer, KvStoreHiCache)
    assert writer.batch_exists(KEYS) == 0
    assert writer.batch_set_v1(KEYS[:4], indices([0, 1, 2, 3])) == [True] * 4
    target = HostPool(layout)
    reader = backend_of(node, opened, target)
    assert reader.batch_exists(KEYS) == 4
    assert (reader.exists(KEYS[3]), reader.exists(KEYS[4])) == (True, False)
    # To other places of the pool.
    assert reader.batch_get_v1(KEYS[:5], indices([5, 6, 7, 8, 9])) == [True] * 4 + [False]
    for page in range(4):
        assert torch.equal(target.page(5 + page), source.page(page))
    assert not target.page(4).any()
    assert reader.batch_get_v1(KEYS[:2], indices([0])) == [False, False]


def test_a_page_without_one_of_its_pieces_is_none(node: NodeProcess, opened: list[Any]) -> None:
    pool = HostPool("layer_first")
    pool.fill()
    backend = backend_of(node, opened, pool)
    backend.batch_set_v1(KEYS[:3], indices([0, 1, 2]))
    lost = backend._kv.cache._core.keys.blocks([backend._kv.hashes(KEYS[1:2])[-1]])
    assert backend._store.delete(lost[0])
    assert backend.batch_exists(KEYS) == 1
    assert backend.batch_get_v1(KEYS[:3], indices([3, 4, 5])) == [True, False, True]


@pytest.mark.parametrize(
    "changes",
    [
        {"model_name": "other"},
        {"tp_size": 2},
        {"tp_size": 2, "tp_rank": 1},
        {"pp_size": 2},
        {"attn_cp_size": 2},
        {"extra": {"revision": "2"}},
        {"extra": {"salt": "tenant"}},
    ],
)
def test_engines_that_differ_share_nothing(
    node: NodeProcess, opened: list[Any], changes: dict[str, Any]
) -> None:
    backend = backend_of(node, opened, HostPool("page_first"))
    backend.batch_set_v1(KEYS[:2], indices([0, 1]))
    assert backend_of(node, opened, HostPool("page_first")).batch_exists(KEYS) == 2
    assert backend_of(node, opened, HostPool("page_first"), **changes).batch_exists(KEYS) == 0


@pytest.mark.parametrize(
    "pool",
    [HostPool("page_first", torch.float16), HostPool("layer_first")],
    ids=["dtype", "layout"],
)
def test_pools_that_differ_share_nothing(
    node: NodeProcess, opened: list[Any], pool: HostPool
) -> None:
    backend_of(node, opened, HostPool("page_first")).batch_set_v1(KEYS[:2], indices([0, 1]))
    assert backend_of(node, opened, pool).batch_exists(KEYS) == 0


def test_ranks_of_latent_attention_share_their_pages(node: NodeProcess, opened: list[Any]) -> None:
    first = backend_of(node, opened, HostPool("page_first"), is_mla_model=True, tp_size=2)
    first.batch_set_v1(KEYS[:2], indices([0, 1]))
    ranks = {"is_mla_model": True, "tp_size": 2, "tp_rank": 1}
    assert backend_of(node, opened, HostPool("page_first"), **ranks).batch_exists(KEYS) == 2


def test_several_pools(node: NodeProcess, opened: list[Any]) -> None:
    kv, state = HostPool("page_first"), HostPool("layer_first")
    kv.fill()
    state.fill()
    backend = backend_of(node, opened, kv)
    for name, pool in ((PoolName.KV, kv), (PoolName.SWA, state)):
        backend.register_mem_host_pool_v2(pool, name)
    backend.on_host_pools_registered()

    def transfer(name: Any, keys: list[str], pages: list[int], policy: Any) -> PoolTransfer:
        return PoolTransfer(name, host_indices=indices(pages), keys=keys, hit_policy=policy)

    everything, trailing = PoolHitPolicy.ALL_PAGES, PoolHitPolicy.TRAILING_PAGES
    stored = backend.batch_set_v2(
        [
            transfer(PoolName.KV, KEYS[:6], [0, 1, 2, 3, 4, 5], everything),
            transfer(PoolName.SWA, [KEYS[2], KEYS[3]], [2, 3], trailing),
        ]
    )
    assert stored == {PoolName.KV: [True] * 6, PoolName.SWA: [True] * 2}
    alone = backend.batch_exists_v2(KEYS)
    assert (alone.kv_hit_pages, alone.restorable_prefix_pages) == (6, [1, 2, 3, 4, 5, 6])
    one = backend.batch_exists_v2(
        KEYS, [PoolTransfer(PoolName.SWA, keys=["x"], hit_policy=trailing)]
    )
    assert (one.kv_hit_pages, one.restorable_prefix_pages) == (4, [3, 4])
    two = backend.batch_exists_v2(
        KEYS, [PoolTransfer(PoolName.SWA, keys=["x", "y"], hit_policy=trailing)]
    )
    assert (two.kv_hit_pages, two.extra_pool_hit_pages) == (4, {PoolName.KV: 6, PoolName.SWA: 4})
    every = backend.batch_exists_v2(KEYS, [PoolTransfer(PoolName.SWA, hit_policy=everything)])
    assert (every.kv_hit_pages, every.restorable_prefix_pages) == (0, [])
    groups = PoolTransfer(PoolName.SWA, hit_policy=PoolHitPolicy.BLOCK_GROUPS)
    with pytest.raises(ValueError, match="hit policy"):
        backend.batch_exists_v2(KEYS, [groups])
    wanted = state.page(2)
    loaded = backend.batch_get_v2([transfer(PoolName.SWA, [KEYS[2]], [9], trailing)])
    assert loaded == {PoolName.SWA: [True]}
    assert torch.equal(state.page(9), wanted)


def test_flat_pages(node: NodeProcess, opened: list[Any]) -> None:
    backend = backend_of(node, opened, HostPool("page_first"), extra={"interface_v1": 0})
    pages = [torch.randn(64) for _ in range(3)]
    assert backend.batch_exists(KEYS) == 0
    assert backend.batch_set(KEYS[:3], pages)
    assert backend.batch_exists(KEYS) == 3
    targets = [torch.zeros(64) for _ in range(4)]
    loaded = backend.batch_get(KEYS[:4], targets)
    assert loaded[3] is None
    assert all(torch.equal(a, b) for a, b in zip(loaded[:3], pages, strict=True))
    assert backend.get(KEYS[7], torch.zeros(64)) is None
    backend.clear()
    assert backend.batch_exists(KEYS) == 0


def test_with_delays_and_failures_nothing_is_ever_wrong(
    node: NodeProcess, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY", "0.002")
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE", "0.3")
    source, target = HostPool("page_first"), HostPool("page_first")
    source.fill()
    writer, reader = backend_of(node, opened, source), backend_of(node, opened, target)
    assert type(writer).__name__ == "HiCacheStorageFailureInjector"
    failures = successes = 0
    for turn in range(60):
        page = turn % 8
        writer.batch_set_v1([KEYS[page]], indices([page]))
        if not reader.batch_exists([KEYS[page]]):
            failures += 1
            continue
        (good,) = reader.batch_get_v1([KEYS[page]], indices([page]))
        failures += not good
        successes += good
        if good:
            assert torch.equal(target.page(page), source.page(page))
    assert failures > 0
    assert successes > 0


def test_a_dead_node_is_a_miss(node: NodeProcess, opened: list[Any]) -> None:
    backend = backend_of(node, opened, HostPool("page_first"))
    backend.batch_set_v1(KEYS[:2], indices([0, 1]))
    assert backend.batch_exists(KEYS) == 2
    node.kill()
    assert backend.batch_get_v1(KEYS[:2], indices([2, 3])) == [False, False]
    assert backend.batch_exists(KEYS) == 0
    assert backend.batch_set_v1(KEYS[2:3], indices([2])) == [False]


def test_mistakes_are_named(node: NodeProcess) -> None:
    with pytest.raises(ConfigurationError, match="needs its memory nodes"):
        KvStoreHiCache(config_of(node, extra={"target": ""}))
    with pytest.raises(ConfigurationError, match="split by heads"):
        KvStoreHiCache(config_of(node, should_split_heads=True))


def test_sizes() -> None:
    """The pools above hold what they claim."""
    pool = HostPool("layer_first")
    pointers, sizes = pool.get_page_buffer_meta(indices([1, 2]))
    assert len(pointers) == len(set(pointers)) == 2 * 2 * LAYERS
    assert sum(sizes) == 2 * math.prod((2, LAYERS, PAGE_TOKENS, HEADS, CHANNELS)) * 2
