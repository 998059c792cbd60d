"""A kvstore below vLLM's own offloading, in real engines: the same tokens, loaded by another one.

Engines on processors need `ProcessorTieringSpec`; with a device vLLM's own takes its place.
"""

from __future__ import annotations

import random
from array import array
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import kvstore
from kvstore.errors import ConfigurationError
from tests.engines.conftest import engine_module
from tests.engines.vllm_engines import Answer, Engine, block_keys, engine, wait_for
from tests.support.nodes import NodeProcess

engine_module("vllm")
pytestmark = pytest.mark.timeout(600)


def offloading(model: Path, tier: Answer) -> AbstractContextManager[Engine]:
    transfer = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "spec_name": "ProcessorTieringSpec",
            "spec_module_path": "kvstore.llm.vllm.processors",
            "cpu_bytes_to_use": 64 << 20,
            "secondary_tiers": [
                {"type": "KvStoreTier", "module_path": "kvstore.llm.vllm.offloading", **tier}
            ],
        },
    }
    return engine(model, kv_transfer_config=transfer)


def forget(engine: Engine) -> None:
    """Drops vLLM's own cache and the memory of the host: every hit is the store's."""
    assert engine.ask({"reset": "everything"})["done"]


def test_a_fresh_engine_loads_what_another_one_offloaded(
    llama: Path, node: NodeProcess, expected: Answer
) -> None:
    tier = {"target": node.target}
    with kvstore.connect(node.target) as store:
        with offloading(llama, tier) as writer:
            assert writer.generate()["tokens"] == expected["tokens"]
            # Five blocks of the shared part, and one more of the second and the third prompt.
            wait_for(lambda: len(block_keys(store)) == 7)
        with offloading(llama, tier) as reader:
            answer = reader.generate()
            assert answer["cached"] == [640, 768, 768]
            assert answer["tokens"] == expected["tokens"]
            keys = block_keys(store)
            assert len(keys) == 7
            check_that_loaded_bytes_are_used(reader, store, keys, expected)
            check_that_a_failed_load_is_computed(reader, store, keys, expected)
            node.kill()
            forget(reader)
            assert reader.generate()["tokens"] == expected["tokens"]


def check_that_loaded_bytes_are_used(
    reader: Engine, store: kvstore.Store, keys: list[bytes], expected: Answer
) -> None:
    """The negative control: other bytes, other tokens."""
    kept = {key: store[key] for key in keys}
    noise = random.Random(1)
    for key in keys:
        numbers = (noise.uniform(-1, 1) for _ in range(len(kept[key]) // 4))
        store[key] = array("f", numbers).tobytes()
    forget(reader)
    answer = reader.generate()
    assert answer["cached"] == [640, 768, 768]
    assert answer["tokens"][0] != expected["tokens"][0]
    for key, value in kept.items():
        store[key] = value
    forget(reader)
    assert reader.generate()["tokens"] == expected["tokens"]


def check_that_a_failed_load_is_computed(
    reader: Engine, store: kvstore.Store, keys: list[bytes], expected: Answer
) -> None:
    """Blocks that are there but cannot be used: computed and stored again, and no loop."""
    kept = {key: store[key] for key in keys}
    for key, value in kept.items():
        store[key] = value[:-4]
    forget(reader)
    answer = reader.generate()
    assert answer["tokens"] == expected["tokens"]
    assert answer["finish"] == ["length"] * 3
    wait_for(lambda: all(store[key] == value for key, value in kept.items()))


def test_a_tier_without_a_target_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVSTORE_TARGET", raising=False)
    tier = engine_module("kvstore.llm.vllm.offloading").KvStoreTier
    with pytest.raises(ConfigurationError, match="needs the target"):
        tier(None, memoryview(bytearray(8)).cast("B", (2, 4)), "KvStoreTier")
