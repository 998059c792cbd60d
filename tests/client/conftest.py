"""Stores on an embedded node, for the tests of the Python client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvstore

CAPACITY_BYTES = 64 << 20


@pytest.fixture(scope="module")
def shared_store() -> Iterator[kvstore.Store]:
    with kvstore.connect("embedded", capacity_bytes=CAPACITY_BYTES) as opened:
        yield opened


@pytest.fixture
def store(shared_store: kvstore.Store) -> kvstore.Store:
    """An empty store."""
    shared_store.clear()
    return shared_store
