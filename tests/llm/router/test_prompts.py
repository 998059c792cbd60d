"""Shapes of prompts: what of a request tells where it goes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvstore.llm.router.prompts import BLOCK_TOKENS, PromptShape, shape_of

LONG = "x" * 5000


def shape(**request: Any) -> PromptShape:
    return shape_of(json.dumps({"model": "m", **request}).encode())


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"not json", b"[]", b"3", b"{}", b"\xff\xfe", b"[" * 100_000),
        *(b'{"prompt": ""}', b'{"prompt": null}', b'{"messages": []}', b'{"messages": 3}'),
    ],
)
def test_what_has_no_prompt_has_no_shape(body: bytes) -> None:
    assert shape_of(body) == PromptShape()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": LONG + "a" * 512}, {"prompt": LONG + "b" * 512}),
        ({"prompt": [7] * 1000}, {"prompt": [7] * 900 + [8] * 100}),
        ({"messages": [user(LONG)]}, {"messages": [user(LONG), user("and more")]}),
        ({"input": LONG}, {"input": LONG + "and more" * 100}),
        ({"prompt": [LONG, "p"]}, {"prompt": [LONG, "q"]}),
        ({"prompt": LONG, "max_tokens": 1}, {"prompt": LONG, "temperature": 0.5}),
    ],
)
def test_prompts_that_begin_alike_have_hashes_that_begin_alike(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    first, second = shape(**one), shape(**other)
    common = min(len(first.hashes), len(second.hashes)) - 1
    assert common > 5
    assert first.hashes[:common] == second.hashes[:common]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": LONG}, {"prompt": LONG, "model": "n"}),
        ({"prompt": LONG}, {"prompt": LONG, "cache_salt": "tenant"}),
        ({"prompt": "a"}, {"prompt": "b"}),
        ({"prompt": [1]}, {"prompt": [2]}),
        ({"messages": [user("a" + LONG)]}, {"messages": [user("b" + LONG)]}),
        ({"messages": [user(LONG)]}, {"messages": [user(LONG)], "tools": [{"type": "f"}]}),
    ],
)
def test_prompts_that_differ_from_the_beginning_share_nothing(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert not set(shape(**one).hashes) & set(shape(**other).hashes)


def test_tokens_are_counted_four_bytes_each() -> None:
    assert shape(prompt=[5] * 1000).input_tokens == 1000
    assert len(shape(prompt=[5] * 1000).hashes) == 1000 // BLOCK_TOKENS
    assert shape(prompt="abcdefgh").input_tokens == 2


def test_the_work_of_a_giant_prompt_is_bounded() -> None:
    assert len(shape(prompt=[7] * 300_000).hashes) == 300_000 // BLOCK_TOKENS
    giant = shape(prompt="x" * 10_000_000)
    assert (giant.hashes, giant.input_tokens // 1000) == ((), 2500)


def test_what_is_kept_is_told() -> None:
    assert not shape(prompt=LONG, store=False).is_kept
    assert shape(prompt=LONG, store=True).is_kept
    assert shape(input=LONG, background=True).is_kept


def test_no_depth_of_a_prompt_is_too_much() -> None:
    # Parsing and writing JSON have limits of their own, at different depths.
    for depth in range(700, 1000):
        deep = b'{"prompt": {"a": ' + b"[" * depth + b"]" * depth + b"}}"
        assert len(shape_of(deep).hashes) <= 5
