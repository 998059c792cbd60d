"""A store and a dict, given the same random operations, always agree."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import kvstore

# Few keys, so that they meet; some share their beginning, some are as long as can be.
KEYS = [b"a", b"b", b"ab", b"abc", b"\0", b"z" * 1024, b"k7", b"k8"]
SIZES = [0, 1, 100, 1024, 65_536, 65_537, 150_000]

keys = st.sampled_from(KEYS)
key_lists = st.lists(keys, max_size=12)
values = st.builds(
    lambda seed, size: bytes([seed]) * size, st.integers(0, 255), st.sampled_from(SIZES)
)
# Which of a key's versions a conditional operation names; 0 is the current one.
whiches = st.integers(0, 5).map(lambda number: max(0, number - 2))


class Model(RuleBasedStateMachine):
    """`content` maps each key that is there to (value, version)."""

    store: kvstore.Store

    @initialize()
    def begin(self) -> None:
        self.store.clear()
        self.content: dict[bytes, tuple[bytes, int]] = {}
        self.expired = False
        self.versions: dict[bytes, set[int]] = {key: set() for key in KEYS}

    def _note(self, key: bytes, value: bytes, version: int) -> None:
        assert version not in self.versions[key], "a version came back"
        self.versions[key].add(version)
        self.content[key] = (value, version)

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        self._note(key, value, self.store.put(key, value))

    @rule(key=keys, value=values)
    def put_if_absent(self, key: bytes, value: bytes) -> None:
        if key in self.content:
            with pytest.raises(kvstore.ConditionFailed):
                self.store.put(key, value, if_absent=True)
        else:
            self._note(key, value, self.store.put(key, value, if_absent=True))

    @rule(key=keys, value=values, which=whiches)
    def put_if_version(self, key: bytes, value: bytes, which: int) -> None:
        version = self._some_version(key, which)
        if key in self.content and self.content[key][1] == version:
            self._note(key, value, self.store.put(key, value, if_version=version))
        else:
            with pytest.raises(kvstore.ConditionFailed):
                self.store.put(key, value, if_version=version)

    @rule(key=keys, which=whiches)
    def delete_if_version(self, key: bytes, which: int) -> None:
        version = self._some_version(key, which)
        if key in self.content and self.content[key][1] == version:
            assert self.store.delete(key, if_version=version) is True
            del self.content[key]
        else:
            with pytest.raises(kvstore.ConditionFailed):
                self.store.delete(key, if_version=version)

    def _some_version(self, key: bytes, which: int) -> int:
        """The current version, an older one, or one that never was."""
        if which == 0 and key in self.content:
            return self.content[key][1]
        versions = sorted(self.versions[key]) or [1]
        return versions[which % len(versions)]

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        assert self.store.delete(key) is (self.content.pop(key, None) is not None)

    @precondition(lambda self: not self.expired)
    @rule(key=keys, value=values)
    def let_expire(self, key: bytes, value: bytes) -> None:
        """Once in a history, because it takes a tick or two of the node's clock."""
        self.expired = True
        self.store.put(key, value, ttl_s=0.001)
        self.content.pop(key, None)
        deadline = time.monotonic() + 1
        while self.store.get(key) is not None:
            assert time.monotonic() < deadline, "the value outlives its time"
            time.sleep(0.005)

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        expected = self.content.get(key)
        assert self.store.get(key) == (expected[0] if expected else None)
        assert self.store.get_versioned(key) == expected
        assert (key in self.store) is (expected is not None)

    @rule(key=keys, room=st.sampled_from(SIZES))
    def get_into(self, key: bytes, room: int) -> None:
        buffer = bytearray(room)
        value = self.content[key][0] if key in self.content else None
        if value is not None and len(value) > room:
            with pytest.raises(kvstore.BufferTooSmall) as caught:
                self.store.get_into(key, buffer)
            assert caught.value.needed == len(value)
            return
        length = self.store.get_into(key, buffer)
        assert length == (None if value is None else len(value))
        assert value is None or buffer[:length] == value

    @rule(wanted=key_lists)
    def get_many(self, wanted: list[bytes]) -> None:
        expected = [self.content.get(key) for key in wanted]
        assert self.store.get_versioned_many(wanted) == expected
        assert self.store.get_many(wanted) == [pair and pair[0] for pair in expected]
        assert self.store.contains_many(wanted) == [pair is not None for pair in expected]
        there = next((i for i, pair in enumerate(expected) if pair is None), len(expected))
        assert self.store.match_prefix(wanted) == there

    @rule(items=st.dictionaries(keys, values, max_size=8), if_absent=st.booleans())
    def put_many(self, items: dict[bytes, bytes], if_absent: bool) -> None:
        outcomes: list[Any] = self.store.put_many(items, if_absent=if_absent)
        for (key, value), outcome in zip(items.items(), outcomes, strict=True):
            if if_absent and key in self.content:
                assert isinstance(outcome, kvstore.ConditionFailed)
            else:
                self._note(key, value, outcome)

    @rule(wanted=st.lists(keys, max_size=8, unique=True))
    def delete_many(self, wanted: list[bytes]) -> None:
        expected = [self.content.pop(key, None) is not None for key in wanted]
        assert self.store.delete_many(wanted) == expected

    @rule()
    def clear(self) -> None:
        assert self.store.clear() >= len(self.content)  # Expired keys may still be counted.
        self.content.clear()

    @invariant()
    def the_same_keys(self) -> None:
        if hasattr(self, "content"):
            assert [key for key in KEYS if key in self.store] == [
                key for key in KEYS if key in self.content
            ]


def test_the_store_is_a_dict(shared_store: kvstore.Store) -> None:
    class Bound(Model):
        store = shared_store

    Bound.TestCase.settings = settings(
        max_examples=40,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    Bound.TestCase("runTest").runTest()
