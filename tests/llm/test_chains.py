"""Turns of conversations and shared beginnings, inferred from prompts alone."""

from __future__ import annotations

import pickle
import time

import pytest

from kvstore.llm.chains import Chains, Prompt, Serving

#: Two readings of two clocks, by a process that may be put to sleep in between.
_APART_NS = 50_000_000


def keys(name: str, count: int) -> list[bytes]:
    return [f"{name}{place}".encode() for place in range(count)]


def categories(prompt: Prompt, first: int = 0) -> list[int]:
    return [number >> 16 for number in prompt.reuse(first, prompt.blocks - first).numbers]


def serve(chains: Chains, blocks: list[bytes]) -> Prompt:
    prompt = chains.prompt(blocks)
    chains.served(blocks, prompt)
    return prompt


def test_a_prompt_that_contains_the_end_of_another_is_its_next_turn() -> None:
    chains = Chains()
    blocks = keys("a", 12)
    assert serve(chains, blocks[:4]).turn == 1
    assert serve(chains, blocks[:6]).turn == 2
    # Of an end that was not whole only the block before it comes again.
    assert serve(chains, [*blocks[:9], b"partial"]).turn == 3
    assert serve(chains, blocks).turn == 4
    assert chains.prompt([*blocks, b"more"]).turn == 5
    assert serve(chains, keys("b", 4)).turn == 1


def test_asking_changes_nothing() -> None:
    chains = Chains()
    prompt = chains.prompt(keys("a", 4))
    assert chains.prompt(keys("a", 5)) == Prompt(1, 5, 0, [1] * 5)
    chains.served(keys("a", 4), prompt)
    assert chains.prompt(keys("a", 5)) == Prompt(2, 5, 0, [2, 2, 2, 2, 1])


def test_a_beginning_that_many_share_is_no_conversation() -> None:
    chains = Chains()
    system = keys("system", 3)
    for number in range(8):
        assert serve(chains, [*system, *keys(f"user{number}-", 3)]).turn == 1
    prompt = chains.prompt([*system, *keys("new", 3)])
    assert prompt.uses == [9, 9, 9, 1, 1, 1]
    shared, own = categories(prompt)[:3], categories(prompt)[3:]
    assert len(set(shared)) == 1
    assert not set(shared) & set(own)
    # Also where the shared part is all of a prompt, once or again and again.
    assert serve(chains, system).turn == 1
    assert serve(chains, [*system, b"another"]).turn == 1
    for _ in range(4):
        assert serve(chains, system[:1]).turn == 1


def test_places_and_the_last_block_are_told() -> None:
    prompt = Prompt(turn=2, blocks=6)
    numbers = list(prompt.reuse(2, 4).numbers)
    assert [number & 0xFFFF for number in numbers] == [2, 3, 4, 5]
    middle, *rest = (number >> 16 for number in numbers)
    assert rest == [middle, middle, middle + 1]
    assert Prompt(turn=2, blocks=6, kind=1).reuse(2, 1).numbers[0] >> 16 != middle
    (far,) = Prompt(turn=1 << 40, blocks=100_000, kind=3).reuse(70_000, 1).numbers
    assert 0 < far >> 16 < 256
    assert far & 0xFFFF == 0xFFFF


def test_gets_and_puts_find_the_prompt_that_was_matched() -> None:
    serving = Serving()
    blocks = keys("a", 6)
    assert list(serving.reuse(blocks).numbers) == [0] * 6
    assert not serving.reuse([]).numbers
    serving.matched(blocks, 2)
    got, put = serving.reuse(blocks[:2]), serving.reuse(blocks[2:])
    assert [number & 0xFFFF for number in [*got.numbers, *put.numbers]] == list(range(6))
    serving.matched([*blocks, b"more"], 6)
    (again,) = serving.reuse([b"more"]).numbers
    assert again >> 16 == Prompt(turn=2, blocks=7).reuse(6, 1).numbers[0] >> 16


@pytest.mark.parametrize("loaded", range(4))
def test_what_a_get_has_not_brought_is_put_as_part_of_its_prompt(loaded: int) -> None:
    serving = Serving()
    blocks = keys("a", 6)
    serving.matched(blocks, 4)
    serving.reuse(blocks[:4])
    serving.fell_short(blocks[:4], loaded)
    put = serving.reuse(blocks[loaded:])
    assert [number & 0xFFFF for number in put.numbers] == list(range(loaded, 6))


def test_a_prompt_that_is_computed_in_chunks_is_used_at_one_moment() -> None:
    serving = Serving()
    blocks = keys("a", 9)
    serving.matched(blocks, 2)
    matched_ns = time.monotonic_ns()
    parts = []
    for first, end in ((0, 2), (2, 5), (5, 6), (6, 9)):
        parts.append(serving.reuse(blocks[first:end]))
        time.sleep(0.05)
    assert [number & 0xFFFF for part in parts for number in part.numbers] == list(range(9))
    assert all(abs(part.used_ns - matched_ns) < _APART_NS for part in parts)
    for later in (keys("b", 1), blocks[2:5]):
        assert serving.reuse(later).used_ns - matched_ns > 3 * _APART_NS
    assert parts[1].at([2, 0]).used_ns == parts[1].used_ns
    assert list(parts[1].at([2, 0]).numbers) == [parts[1].numbers[2], parts[1].numbers[0]]


def test_another_process_understands_when_a_prompt_began() -> None:
    prompt = Prompt(blocks=4, began_ns=time.time_ns() - 10_000_000_000)
    told = pickle.loads(pickle.dumps(prompt)).reuse(0, 4)
    assert abs(time.monotonic_ns() - told.used_ns - 10_000_000_000) < _APART_NS
    # By a clock that is behind.
    ahead = Prompt(blocks=4, began_ns=time.time_ns() + 10_000_000_000).reuse(0, 4)
    assert 0 <= time.monotonic_ns() - ahead.used_ns < _APART_NS
    assert Prompt(blocks=4, began_ns=0).reuse(0, 4).used_ns > 0
