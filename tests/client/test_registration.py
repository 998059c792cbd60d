"""Registering buffers, where nothing is to be done for it; tests/rxe does it where something is."""

from __future__ import annotations

import pytest

import kvstore


def test_a_registered_buffer_is_used_like_any(store: kvstore.Store) -> None:
    buffer = bytearray(100_000)
    with store.register(buffer) as registration:
        store.put("key", b"x" * 100_000)
        assert store.get_into("key", buffer) == 100_000
        assert buffer == b"x" * 100_000
        with pytest.raises(BufferError):
            buffer.extend(b"more")  # its memory must not move
    registration.close()
    buffer.extend(b"more")


def test_what_cannot_be_registered(store: kvstore.Store) -> None:
    with pytest.raises(kvstore.errors.ValueInvalid):
        store.register(b"read-only")
    with pytest.raises(kvstore.errors.ValueInvalid):
        store.register(memoryview(bytearray(100))[::2])
    with pytest.raises(kvstore.ConfigurationError):
        store.register(bytearray())


def test_twice_is_refused(store: kvstore.Store) -> None:
    buffer = bytearray(5000)
    with store.register(buffer), pytest.raises(kvstore.ConfigurationError, match="already"):
        store.register(buffer)


def test_a_registration_may_outlive_its_store() -> None:
    with kvstore.connect("embedded", capacity_bytes=16 << 20) as store:
        registration = store.register(bytearray(5000))
    registration.close()
