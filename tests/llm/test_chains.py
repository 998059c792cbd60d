"""Turns of conversations and shared beginnings, inferred from prompts alone."""

from __future__ import annotations

from kvstore.llm.chains import Chains, Prompt, Serving


def keys(name: str, count: int) -> list[bytes]:
    return [f"{name}{place}".encode() for place in range(count)]


def categories(prompt: Prompt, first: int = 0) -> list[int]:
    return [number >> 16 for number in prompt.reuse(first, prompt.blocks - first)]


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
    numbers = list(prompt.reuse(2, 4))
    assert [number & 0xFFFF for number in numbers] == [2, 3, 4, 5]
    middle, *rest = (number >> 16 for number in numbers)
    assert rest == [middle, middle, middle + 1]
    assert Prompt(turn=2, blocks=6, kind=1).reuse(2, 1)[0] >> 16 != middle
    assert 0 < Prompt(turn=1 << 40, blocks=100_000, kind=3).reuse(70_000, 1)[0] >> 16 < 256
    assert Prompt(turn=1, blocks=100_000).reuse(70_000, 1)[0] & 0xFFFF == 0xFFFF


def test_gets_and_puts_find_the_prompt_that_was_matched() -> None:
    serving = Serving()
    blocks = keys("a", 6)
    assert serving.reuse(blocks) is None
    assert serving.reuse([]) is None
    serving.matched(blocks, 2)
    got, put = serving.reuse(blocks[:2]), serving.reuse(blocks[2:])
    assert got is not None
    assert put is not None
    assert [number & 0xFFFF for number in [*got, *put]] == list(range(6))
    serving.matched([*blocks, b"more"], 6)
    again = serving.reuse([b"more"])
    assert again is not None
    assert again[0] >> 16 == Prompt(turn=2, blocks=7).reuse(6, 1)[0] >> 16
