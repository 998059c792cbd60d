"""The vLLM connector in real engines: the same tokens, loaded; and what each failure does.

Runs where vLLM is installed: `make test-engines`. Every engine is a process of its own; a second
one never computed what it is served.
"""

from __future__ import annotations

import contextlib
import json
import random
from array import array
from pathlib import Path

import pytest

import kvstore
from kvstore.bench.processes import ProcessError
from kvstore.llm import directory
from tests.engines.conftest import PROMPTS, SHARED, engine_module, save_model
from tests.engines.vllm_engines import Answer, Engine, block_keys, engine, wait_for
from tests.support.nodes import NodeProcess
from tests.support.processes import is_running

engine_module("vllm")
pytestmark = pytest.mark.timeout(600)


def test_a_fresh_engine_loads_what_another_one_stored(
    llama: Path, node: NodeProcess, expected: Answer
) -> None:
    target = {"target": node.target}
    with engine(llama, target) as writer:
        answer = writer.generate()
        assert answer == expected
        assert answer["cached"] == [0, 640, 640]
    with kvstore.connect(node.target) as store, engine(llama, target) as reader:
        # Five blocks of the shared part, and one more of the second and the third prompt.
        keys = block_keys(store)
        assert len(keys) == 7
        answer = reader.generate()
        assert answer["cached"] == [640, 768, 768]
        assert answer["tokens"] == expected["tokens"]
        assert reader.count("kvstore_loaded_remote") == 7
        assert reader.count("kvstore_stored") == 0
        assert reader.count("external_prefix_cache_hits") == 640 + 128 + 128
        check_that_the_store_is_given_what_it_lost(reader, store, keys, expected)
        check_that_loaded_bytes_are_used(reader, store, keys, expected)
        check_that_a_failed_load_is_computed(reader, store, keys, expected)
        check_that_a_dead_node_costs_no_request(reader, node, expected)


def check_that_the_store_is_given_what_it_lost(
    reader: Engine, store: kvstore.Store, keys: list[bytes], expected: Answer
) -> None:
    """Blocks that only vLLM's own cache still has go to the store with the next requests."""
    kept = {key: store[key] for key in keys}
    del store[keys[2]]
    store.delete_many(keys[4:])
    assert reader.generate()["tokens"] == expected["tokens"]
    wait_for(lambda: block_keys(store) == keys)
    assert {key: store[key] for key in keys} == kept


def check_that_loaded_bytes_are_used(
    reader: Engine, store: kvstore.Store, keys: list[bytes], expected: Answer
) -> None:
    """The negative control: other bytes, other tokens."""
    kept = {key: store[key] for key in keys}
    noise = random.Random(1)
    for key in keys:
        # Small floats: random bits would be NaN here and there.
        numbers = (noise.uniform(-1, 1) for _ in range(len(kept[key]) // 4))
        store[key] = array("f", numbers).tobytes()
    reader.reset()
    answer = reader.generate()
    assert answer["cached"] == [640, 768, 768]
    assert answer["tokens"][0] != expected["tokens"][0]
    for key, value in kept.items():
        store[key] = value
    reader.reset()
    assert reader.generate()["tokens"] == expected["tokens"]


def check_that_a_failed_load_is_computed(
    reader: Engine, store: kvstore.Store, keys: list[bytes], expected: Answer
) -> None:
    """One block that is there but cannot be used: recomputed, stored again, and no loop."""
    value = store[keys[0]]
    store[keys[0]] = value[:-4]
    reader.reset()
    failed = reader.count("kvstore_failed_loads")
    answer = reader.generate()
    assert answer["tokens"] == expected["tokens"]
    assert answer["finish"] == ["length"] * 3
    assert reader.count("kvstore_failed_loads") == failed + 1
    wait_for(lambda: store[keys[0]] == value)


def check_that_a_dead_node_costs_no_request(
    reader: Engine, node: NodeProcess, expected: Answer
) -> None:
    node.kill()
    reader.reset()
    answer = reader.generate()
    assert answer["tokens"] == expected["tokens"]
    assert answer["cached"] == [0, 640, 640]


@pytest.mark.parametrize("single_flight", [True, False])
def test_four_engines_and_one_cold_prompt(
    llama: Path, node: NodeProcess, expected: Answer, single_flight: bool
) -> None:
    """One prefill, and the same tokens everywhere; without single-flight each engine computes."""
    extra = {"target": node.target, "single_flight": single_flight, "flight_wait_s": 120.0}
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(engine(llama, extra)) for _ in range(4)]
        answers, computed = ask_together(engines, PROMPTS[2])
        assert all(answer["tokens"] == expected["tokens"][2:] for answer in answers)
        if single_flight:
            assert computed == 1
            # Those that did not compute waited, or came when it was there.
            assert {tuple(answer["cached"]) for answer in answers} == {(0,), (768,)}
            assert sum(one.count("kvstore_flights_led") for one in engines) == 1
            assert sum(one.count("kvstore_flights_late") for one in engines) == 0
        else:
            # Whoever begins late finds what the first one has stored, so not every prompt shows it.
            for number in range(5):
                if computed > 1:
                    break
                prompt = [3 + (i * 41 + number * 101) % 2000 for i in range(840)]
                answers, computed = ask_together(engines, prompt)
                assert all(answer["tokens"] == answers[0]["tokens"] for answer in answers)
            assert computed > 1


def ask_together(engines: list[Engine], prompt: list[int]) -> tuple[list[Answer], int]:
    """The answers, and how many engines had nothing of the prompt cached."""
    for one in engines:
        one.send({"prompts": [prompt]})
    answers = [one.receive() for one in engines]
    return answers, sum(answer["cached"] == [0] for answer in answers)


def test_small_blocks_and_chunked_prefill(llama: Path, node: NodeProcess, expected: Answer) -> None:
    extra = {"target": node.target, "codec": "zstd"}
    options = {"block_size": 32, "max_num_batched_tokens": 256}
    with engine(llama, extra, **options) as one:
        first = one.generate()
        assert first["tokens"] == expected["tokens"]
        one.reset()
        again = one.generate()
        # 700, 770 and 840 tokens in blocks of 32, one token left to compute.
        assert again["cached"] == [672, 768, 832]
        assert again["tokens"] == expected["tokens"]
        stored, loaded = one.count("kvstore_stored"), one.count("kvstore_loaded_remote")
        # 20 shared blocks, then 1, 4 and 6 of their own.
        assert (stored, loaded) == (31, 31)
        with kvstore.connect(node.target) as store:
            spoiled = block_keys(store)[3]
            store[spoiled] = b"too short"
            one.reset()
            assert one.generate()["tokens"] == expected["tokens"]
            assert one.count("kvstore_failed_loads") == 1


def test_preempted_requests_come_back_from_the_store(llama: Path, node: NodeProcess) -> None:
    prompts = [[3 + (i * 37 + j * 301) % 2000 for i in range(300)] for j in range(6)]
    # Room for 1,120 tokens: three requests of 300 begin, and cannot all grow to 500.
    options = {"block_size": 32, "kv_cache_memory_bytes": 35 << 16, "max_model_len": 1024}
    extra = {"target": node.target, "save_decode": True}
    with engine(llama, extra, **options) as small:
        alone = [small.generate([prompt], new_tokens=200)["tokens"][0] for prompt in prompts]
        with kvstore.connect(node.target) as store:
            store.clear()
        small.reset()
        together = small.generate(prompts, together=True, new_tokens=200)
        assert small.count("num_preemptions") > 0
        assert small.count("kvstore_loaded_remote") > 0
        # A batch rounds in another way than one prompt alone, so a token here or there may differ.
        same = sum(a == b for a, b in zip(together["tokens"], alone, strict=True))
        assert same >= 5
        assert together["finish"] == ["length"] * 6


def test_several_groups_of_layers(tmp_path: Path, node: NodeProcess) -> None:
    kinds = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    model = save_model(tmp_path / "gemma", "Gemma3", sliding_window=256, layer_types=kinds)
    config = json.loads((model / "config.json").read_text())
    assert config["layer_types"] == kinds
    extra = {"target": node.target}
    with engine(model) as plain:
        expected = plain.generate()
    with engine(model, extra) as writer:
        assert writer.generate()["tokens"] == expected["tokens"]
    with kvstore.connect(node.target) as store, engine(model, extra) as reader:
        listed = directory.listed(store, timeout_s=5)
        assert len({fields["group"] for fields in listed.values()}) > 1
        answer = reader.generate()
        assert answer["tokens"] == expected["tokens"]
        assert answer["cached"][0] == 640
        # Several groups report no block: the whole request is computed again.
        spoiled = block_keys(store)[0]
        value = store[spoiled]
        store[spoiled] = b"too short"
        reader.reset()
        answer = reader.generate()
        assert answer["tokens"] == expected["tokens"]
        assert answer["finish"] == ["length"] * 3
        assert reader.count("kvstore_failed_loads") >= 1
        wait_for(lambda: store[spoiled] == value)


def test_two_tensor_parallel_ranks(llama: Path, node: NodeProcess, expected: Answer) -> None:
    extra = {"target": node.target}
    with engine(llama, extra, tensor_parallel_size=2) as writer:
        assert writer.generate()["tokens"] == expected["tokens"]
    with kvstore.connect(node.target) as store:
        assert len(block_keys(store)) == 14
        listed = directory.listed(store, timeout_s=5).values()
        assert {fields["ranks.tensor_rank"] for fields in listed} == {0, 1}
        # A block that one of the ranks lacks is no hit.
        lost = block_keys(store)[-1]
        with engine(llama, extra, tensor_parallel_size=2) as reader:
            answer = reader.generate()
            assert answer["cached"] == [640, 768, 768]
            assert answer["tokens"] == expected["tokens"]
            del store[lost]
            reader.reset()
            answer = reader.generate()
            assert answer["tokens"] == expected["tokens"]
            assert answer["cached"] != [640, 768, 768]
            # Nothing of an engine outlives it, however it ends.
            processes = reader.processes()
            assert len(processes) >= 3
            reader.kill()
            wait_for(lambda: not any(map(is_running, processes)))
    # One rank has other blocks than two.
    with engine(llama, extra) as other:
        assert other.generate([SHARED])["cached"] == [0]


def test_a_mistake_in_the_settings_is_one_clear_line(llama: Path) -> None:
    for extra, why in (
        ({}, "needs the target"),
        ({"target": "kv://127.0.0.1:1", "load_asynk": True}, "no key 'load_asynk'"),
        ({"target": "kv://127.0.0.1:1"}, "127.0.0.1:1"),
    ):
        with pytest.raises(ProcessError, match=why), engine(llama, extra):
            pass
