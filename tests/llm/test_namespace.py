"""Namespaces: every field keeps engines apart, and the encoding is unambiguous."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvstore
from kvstore.llm import Namespace, PrefixCache, Ranks, block_hashes

BASE = Namespace(model="m", dtype="bfloat16", layout="l", block_tokens=16)


def changed(name: str) -> Namespace:
    """BASE with another value in one field."""
    if name.startswith("ranks."):
        field = name.removeprefix("ranks.")
        ranks = dataclasses.replace(BASE.ranks, **{field: getattr(BASE.ranks, field) + 1})
        return dataclasses.replace(BASE, ranks=ranks)
    value = getattr(BASE, name)
    return dataclasses.replace(BASE, **{name: value + 1 if isinstance(value, int) else value + "x"})


FIELDS = [f.name for f in dataclasses.fields(Namespace) if f.name != "ranks"] + [
    f"ranks.{f.name}" for f in dataclasses.fields(Ranks)
]


@pytest.mark.parametrize("name", FIELDS)
def test_a_difference_in_any_field_keeps_blocks_apart(name: str, store: kvstore.Store) -> None:
    hashes = block_hashes(range(64), 16)
    blocks = [bytes([i]) * 64 for i in range(4)]
    with PrefixCache(store, BASE) as ours, PrefixCache(store, changed(name)) as theirs:
        assert ours.put(hashes, blocks).stored == 4
        assert ours.match(hashes) == 4
        assert theirs.match(hashes) == 0
        buffers = [bytearray(64) for _ in hashes]
        assert not any(theirs.get(hashes, buffers).ok)
        assert buffers == [bytearray(64)] * 4


def test_equal_namespaces_share(store: kvstore.Store) -> None:
    hashes = block_hashes(range(32), 16)
    with PrefixCache(store, BASE) as first, PrefixCache(store, dataclasses.replace(BASE)) as second:
        first.put(hashes, [b"a" * 64, b"b" * 64])
        assert second.match(hashes) == 2


def test_the_salt_is_not_told() -> None:
    salted = dataclasses.replace(BASE, salt="tenant secret")
    assert "tenant secret" not in str(salted.describe())
    assert salted.describe() == BASE.describe()
    assert salted.digest() != BASE.digest()


def test_the_digest_is_the_written_one() -> None:
    """Engines of different processes and days must agree: a change here orphans every block."""
    assert BASE.digest().hex() == "22c757913798746d230e8bb873f3028a"


texts = st.text(max_size=6)
namespaces = st.builds(
    Namespace,
    model=texts,
    dtype=texts,
    layout=texts,
    block_tokens=st.integers(0, 3),
    revision=texts,
    adapter=texts,
    tokenizer=texts,
    salt=texts,
    group=st.integers(0, 3),
    codec=texts,
)


@given(namespaces, namespaces)
def test_the_encoding_is_one_to_one(one: Namespace, other: Namespace) -> None:
    assert (one.canonical() == other.canonical()) == (one == other)
