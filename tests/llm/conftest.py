"""Stores on an embedded node, and blocks of random bytes, for the tests of the prefix cache."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvstore
from kvstore.llm import Namespace

BLOCK_BYTES = 4096


@pytest.fixture(scope="module")
def shared_store() -> Iterator[kvstore.Store]:
    with kvstore.connect("embedded", capacity_bytes=64 << 20) as opened:
        yield opened


@pytest.fixture
def store(shared_store: kvstore.Store) -> kvstore.Store:
    """An empty store."""
    shared_store.clear()
    return shared_store


@pytest.fixture
def namespace() -> Namespace:
    return Namespace(model="tiny", dtype="float32", layout="test", block_tokens=16)
