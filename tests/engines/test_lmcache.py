"""The LMCache L2 adapter: LMCache's own check, its contract, and failures.

Runs where LMCache is installed: `make test-engines`.
"""

from __future__ import annotations

import inspect
import json
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engines.conftest import engine_module

torch = engine_module("torch")
engine_module("lmcache")

from lmcache.v1.check.check_mode_test_l2_adapter import _create_memory_obj  # noqa: E402
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey  # noqa: E402
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface  # noqa: E402
from lmcache.v1.platform import consume_fd  # noqa: E402

from kvstore.errors import ConfigurationError  # noqa: E402
from kvstore.llm.lmcache import KvStoreL2Adapter  # noqa: E402
from tests.support.nodes import NodeProcess, start_node  # noqa: E402

ELEMENTS = 1024
WAIT_MS = 30_000


@pytest.fixture
def node() -> Iterator[NodeProcess]:
    with start_node() as started:
        yield started


@pytest.fixture
def adapter(node: NodeProcess) -> Iterator[KvStoreL2Adapter]:
    opened = KvStoreL2Adapter({"target": node.target})
    yield opened
    opened.close()


def keys_of(count: int, **fields: Any) -> list[ObjectKey]:
    fields = {"model_name": "model", "kv_rank": 1, **fields}
    return [ObjectKey(chunk_hash=bytes([i]) * 32, **fields) for i in range(count)]


def objects_of(count: int, dtype: Any = torch.bfloat16, fill: float = 0.0) -> list[Any]:
    made = [_create_memory_obj(obj_size=ELEMENTS, dtype=dtype) for _ in range(count)]
    for number, item in enumerate(made):
        item.raw_data.fill_(fill and fill + number)
    return made


def described(dtype: Any = torch.bfloat16) -> dict[int, MemoryLayoutDesc]:
    # The shape is another one than the objects'; their sizes are what counts.
    return {0: MemoryLayoutDesc([torch.Size([2, ELEMENTS // 2])], [dtype])}


def wait(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    assert poll.poll(WAIT_MS)
    consume_fd(descriptor)


def store(adapter: KvStoreL2Adapter, keys: list[Any], objects: list[Any]) -> Any:
    task = adapter.submit_store_task(keys, objects)
    wait(adapter.get_store_event_fd())
    results = adapter.pop_completed_store_tasks()
    assert list(results) == [task]
    assert adapter.pop_completed_store_tasks() == {}
    return results[task]


def look_up(adapter: KvStoreL2Adapter, keys: list[Any], descriptions: Any) -> list[bool]:
    task = adapter.submit_lookup_and_lock_task(keys, descriptions)
    wait(adapter.get_lookup_and_lock_event_fd())
    found = adapter.query_lookup_and_lock_result(task)
    assert adapter.query_lookup_and_lock_result(task) is None
    assert found is not None
    return [found.test(i) for i in range(len(keys))]


def load(adapter: KvStoreL2Adapter, keys: list[Any], objects: list[Any]) -> list[bool]:
    task = adapter.submit_load_task(keys, objects)
    wait(adapter.get_load_event_fd())
    loaded = adapter.query_load_result(task)
    assert adapter.query_load_result(task) is None
    assert loaded is not None
    return [loaded.test(i) for i in range(len(keys))]


def test_lmcache_checks_it(node: NodeProcess) -> None:
    plugin = {
        "type": "plugin",
        "module_path": "kvstore.llm.lmcache",
        "class_name": "KvStoreL2Adapter",
        "adapter_params": {"target": node.target},
    }
    command = [sys.executable, "-m", "lmcache.v1.basic_check", "--mode", "test_l2_adapter"]
    finished = subprocess.run(
        [*command, "--l2-adapter", json.dumps(plugin)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "Validation: 5/5 correctly absent" in finished.stdout
    assert "Batch store OK" in finished.stdout
    assert "Validation: 5/5 found" in finished.stdout
    assert "Validation (loaded): 5/5" in finished.stdout
    assert "Validation (content): 5/5" in finished.stdout


def test_the_contract() -> None:
    assert set(L2AdapterInterface.__abstractmethods__) == {
        "close",
        "get_load_event_fd",
        "get_lookup_and_lock_event_fd",
        "get_store_event_fd",
        "pop_completed_store_tasks",
        "query_load_result",
        "query_lookup_and_lock_result",
        "submit_load_task",
        "submit_lookup_and_lock_task",
        "submit_store_task",
        "submit_unlock",
    }
    for name in L2AdapterInterface.__abstractmethods__:
        theirs, ours = getattr(L2AdapterInterface, name), getattr(KvStoreL2Adapter, name)
        assert list(inspect.signature(ours).parameters) == list(
            inspect.signature(theirs).parameters
        )


def test_the_events_are_three(adapter: KvStoreL2Adapter) -> None:
    assert (
        len(
            {
                adapter.get_store_event_fd(),
                adapter.get_lookup_and_lock_event_fd(),
                adapter.get_load_event_fd(),
            }
        )
        == 3
    )


def test_another_server_finds_what_this_one_stored(
    node: NodeProcess, adapter: KvStoreL2Adapter
) -> None:
    keys, objects = keys_of(4), objects_of(4, fill=1.0)
    result = store(adapter, keys[:3], objects[:3])
    assert result.is_successful()
    assert result.bytes_transferred() == 3 * ELEMENTS * 2
    assert adapter.get_usage().total_bytes_used == 3 * ELEMENTS * 2
    other = KvStoreL2Adapter({"target": node.target})
    try:
        # A description is needed where nothing was stored yet.
        assert look_up(other, keys, {}) == [False] * 4
        assert look_up(other, keys, described()) == [True, True, True, False]
        loaded = objects_of(4)
        assert load(other, keys, loaded) == [True, True, True, False]
        for one, two in zip(loaded[:3], objects[:3], strict=True):
            assert torch.equal(one.raw_data, two.raw_data)
        other.submit_unlock(keys)
        assert other.report_status()["is_healthy"]
    finally:
        other.close()


@pytest.mark.parametrize(
    "fields",
    [{"model_name": "other"}, {"kv_rank": 2}, {"object_group_id": 1}, {"cache_salt": "tenant"}],
)
def test_keys_that_differ_share_nothing(adapter: KvStoreL2Adapter, fields: dict[str, Any]) -> None:
    store(adapter, keys_of(2), objects_of(2, fill=1.0))
    everything = {group: described()[0] for group in (0, 1)}
    assert look_up(adapter, keys_of(2), everything) == [True, True]
    assert look_up(adapter, keys_of(2, **fields), everything) == [False, False]
    assert load(adapter, keys_of(2, **fields), objects_of(2)) == [False, False]


def test_element_types_of_one_size_share_nothing(adapter: KvStoreL2Adapter) -> None:
    store(adapter, keys_of(1), objects_of(1, torch.bfloat16, 1.0))
    assert look_up(adapter, keys_of(1), described(torch.float16)) == [False]
    assert load(adapter, keys_of(1), objects_of(1, torch.float16)) == [False]


def test_a_dead_node_is_a_miss(node: NodeProcess) -> None:
    adapter = KvStoreL2Adapter({"target": node.target, "load_timeout_s": 1.0})
    try:
        keys, objects = keys_of(3), objects_of(3, fill=1.0)
        assert store(adapter, keys, objects).is_successful()
        node.kill()
        assert load(adapter, keys, objects_of(3)) == [False] * 3
        assert look_up(adapter, keys, described()) == [False] * 3
        assert not store(adapter, keys_of(1, kv_rank=9), objects[:1]).is_successful()
        assert not adapter.report_status()["is_healthy"]
    finally:
        adapter.close()


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({}, "needs its memory nodes"),
        ({"target": "kv://127.0.0.1:1", "thread": 1}, "no 'thread'"),
        ({"target": 7}, "cannot be 7"),
    ],
)
def test_a_mistake_is_named(params: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        KvStoreL2Adapter(params)
