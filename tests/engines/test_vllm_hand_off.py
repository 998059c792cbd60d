"""Hand-off between two vLLM engines: the decode engine's tokens are those of a recomputation.

The decode engine is asked first, so that it waits while the prefill engine computes.
"""

from __future__ import annotations

import random
import time
from array import array
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kvstore
from kvstore.errors import ConfigurationError
from kvstore.llm import directory
from kvstore.llm.keys import KeyMaker
from tests.engines.conftest import PROMPTS, engine_module
from tests.engines.vllm_engines import Answer, Engine, block_keys, engine, wait_for
from tests.support.nodes import NodeProcess

engine_module("vllm")
pytestmark = pytest.mark.timeout(600)
PREFILL = {"do_remote_decode": True}
DECODE = {"do_remote_prefill": True}
BLOCK_TOKENS, LAYERS = 32, 4
WAIT_S = 20.0
#: How often something is tried for which a process may come too late.
TRIES = 5
#: Steps of 64 tokens: a prompt comes in chunks, and lasts long enough to be broken off.
OPTIONS: dict[str, Any] = {
    "block_size": BLOCK_TOKENS,
    "max_num_batched_tokens": 64,
    "max_num_seqs": 4,
}


def settings(node: NodeProcess, end: str) -> Answer:
    return {"target": node.target, "hand_off": end, "hand_off_wait_s": WAIT_S}


@dataclass
class Pair:
    """A prefill engine, a decode engine, and what lies between them."""

    prefill: Engine
    decode: Engine
    store: kvstore.Store

    @cached_property
    def _piece_prefix(self) -> bytes:
        """Of the keys of single layers; read before a test clears the list of namespaces."""
        listed = directory.listed(self.store, timeout_s=5).items()
        (digest,) = (d for d, fields in listed if str(fields["layout"]).endswith("by layer"))
        return KeyMaker.of_digest(digest).block_prefix

    def piece_keys(self) -> list[bytes]:
        return [key for key in block_keys(self.store) if key.startswith(self._piece_prefix)]

    def whole_keys(self) -> list[bytes]:
        """Of whole blocks."""
        return sorted(set(block_keys(self.store)) - set(self.piece_keys()))

    def published(self) -> float:
        """Prompts. A thread counts them, and a step of the engine ships what is counted by then.

        The step of this prompt: it is shorter than a block, so that nothing of it is stored.
        """
        self.prefill.generate([PROMPTS[0][: BLOCK_TOKENS - 1]], new_tokens=1)
        return self.prefill.count("kvstore_hand_offs_published")

    def hand_off(self, prompt: list[int], tokens: list[int], stored: int = 0) -> None:
        """Hand off what is behind the first `stored` blocks, which the store has whole.

        The decode engine is asked first. If it looks into the store late all the same, it finds
        whole blocks that the prefill engine has computed meanwhile: then all is tried again.
        """
        for _ in range(TRIES):
            self.clear()
            if stored:
                self.store_whole(prompt[: stored * BLOCK_TOKENS + 1])
            published, received = self.published(), self.decode.count("kvstore_hand_offs_received")
            loaded = self.decode.count("kvstore_loaded_remote")
            self.decode.send({"prompts": [prompt], "transfer": DECODE})
            told = self.prefill.generate([prompt], new_tokens=1, transfer=PREFILL)["transfer"]
            answer = self.decode.receive()
            assert answer["tokens"] == [tokens]
            assert answer["cached"] == [cached_tokens(prompt)]
            assert told[0].items() >= DECODE.items()
            assert self.decode.count("kvstore_hand_offs_failed") == 0
            self.settle(prompt, published + 1)
            late = self.decode.count("kvstore_loaded_remote") - loaded - stored
            if late == 0:
                assert self.decode.count("kvstore_hand_offs_received") == received + 1
                return
            assert late > 0
        raise AssertionError(f"the decode engine loaded whole blocks {TRIES} times")

    def store_whole(self, prompt: list[int]) -> None:
        self.prefill.generate([prompt], new_tokens=1)
        wait_for(lambda: len(self.whole_keys()) == len(prompt) // BLOCK_TOKENS)
        self.prefill.reset()

    def settle(self, prompt: list[int], published: float) -> None:
        """Wait until the prompt is published, as the last of so many, and stored in whole blocks.

        Nothing of it comes to the store any more after that.
        """
        wait_for(lambda: self.published() >= published)
        assert self.published() == published
        wait_for(lambda: len(self.whole_keys()) >= len(prompt) // BLOCK_TOKENS)

    def clear(self) -> None:
        self.store.clear()
        self.prefill.reset()
        self.decode.reset()


def cached_tokens(prompt: list[int]) -> int:
    """Whole blocks, and a token left to compute."""
    return (len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS


def test_a_decode_engine_takes_over_from_a_prefill_engine(
    llama: Path, node: NodeProcess, expected: Answer
) -> None:
    with (
        kvstore.connect(node.target) as store,
        engine(llama, settings(node, "receive"), "kv_consumer", **OPTIONS) as decode,
        engine(llama, settings(node, "publish"), "kv_producer", **OPTIONS) as prefill,
    ):
        pair = Pair(prefill, decode, store)
        check_that_it_is_handed_off(pair, expected)
        check_that_the_layers_are_used(pair, expected)
        check_that_blocks_that_are_there_are_not_handed_off(pair, expected)
        check_that_a_killed_prefill_is_recomputed(pair, expected)
        check_that_nobody_is_waited_for_unasked(pair, expected)


def check_that_it_is_handed_off(pair: Pair, expected: Answer) -> None:
    """Nothing comes as a whole block."""
    pair.hand_off(PROMPTS[1], expected["tokens"][1])


def check_that_the_layers_are_used(pair: Pair, expected: Answer) -> None:
    """The negative control: other bytes in them, other tokens."""
    pieces, store = pair.piece_keys(), pair.store
    blocks = cached_tokens(PROMPTS[1]) // BLOCK_TOKENS
    assert len(pieces) == LAYERS * blocks
    store.delete_many(pair.whole_keys())
    noise = random.Random(1)
    for key in pieces:
        numbers = (noise.uniform(-1, 1) for _ in range(len(store[key]) // 4))
        store[key] = array("f", numbers).tobytes()
    pair.decode.reset()
    answer = pair.decode.generate(PROMPTS[1:2], transfer=DECODE)
    assert answer["cached"] == [cached_tokens(PROMPTS[1])]
    assert answer["tokens"] != expected["tokens"][1:2]


def check_that_blocks_that_are_there_are_not_handed_off(pair: Pair, expected: Answer) -> None:
    """What the store has is loaded whole, and only what is computed comes by layers."""
    shared = 640 // BLOCK_TOKENS
    pair.hand_off(PROMPTS[2], expected["tokens"][2], stored=shared)
    rest = cached_tokens(PROMPTS[2]) // BLOCK_TOKENS - shared
    assert len(pair.piece_keys()) == LAYERS * rest


def check_that_a_killed_prefill_is_recomputed(pair: Pair, expected: Answer) -> None:
    failed = pair.decode.count("kvstore_hand_offs_failed")
    begun = begin_and_break_off(pair)
    pair.prefill.kill()
    answer = pair.decode.receive()
    took_s = time.monotonic() - begun
    assert answer["tokens"] == expected["tokens"][2:]
    assert answer["finish"] == ["length"]
    assert len(pair.piece_keys()) < LAYERS * (cached_tokens(PROMPTS[2]) // BLOCK_TOKENS)
    assert pair.decode.count("kvstore_hand_offs_failed") == failed + 1
    # The deadline, and what computing takes.
    assert took_s < WAIT_S + 10


def begin_and_break_off(pair: Pair) -> float:
    """Begin to hand off, and stop the prefill engine while something is missing.

    Returns when it began. If it was through already, it ends that and begins again.
    """
    blocks = cached_tokens(PROMPTS[2]) // BLOCK_TOKENS
    for _ in range(TRIES):
        pair.clear()
        published = pair.published()
        begun = time.monotonic()
        pair.decode.send({"prompts": PROMPTS[2:], "transfer": DECODE})
        pair.prefill.send({"prompts": PROMPTS[2:], "new_tokens": 1, "transfer": PREFILL})
        wait_for(lambda: len(pair.piece_keys()) > 0)
        pair.prefill.pause()
        if len(pair.piece_keys()) < LAYERS * blocks and len(pair.whole_keys()) < blocks:
            return begun
        pair.prefill.resume()
        pair.prefill.receive()
        pair.decode.receive()
        pair.settle(PROMPTS[2], published + 1)
    raise AssertionError(f"the prefill engine was through {TRIES} times")


def check_that_nobody_is_waited_for_unasked(pair: Pair, expected: Answer) -> None:
    pair.store.clear()
    pair.decode.reset()
    failed = pair.decode.count("kvstore_hand_offs_failed")
    assert pair.decode.generate(PROMPTS[:1])["tokens"] == expected["tokens"][:1]
    assert pair.decode.count("kvstore_hand_offs_failed") == failed


@pytest.mark.parametrize(
    ("role", "end", "why"),
    [
        ("kv_consumer", "publish", "a kv_producer publishes"),
        ("kv_producer", "receive", "a kv_consumer receives"),
        ("kv_both", "both", "none, publish or receive"),
    ],
)
def test_an_end_of_hand_offs_that_does_not_fit_the_role(role: str, end: str, why: str) -> None:
    transfer = engine_module("vllm.config").KVTransferConfig(
        kv_connector="KvStoreConnector",
        kv_role=role,
        kv_connector_extra_config={"target": "kv://127.0.0.1:1", "hand_off": end},
    )
    settings_of = engine_module("kvstore.llm.vllm.settings").Settings.of
    with pytest.raises(ConfigurationError, match=why):
        settings_of(SimpleNamespace(kv_transfer_config=transfer))
