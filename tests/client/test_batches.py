"""Batches: one outcome a key, in the order of the keys, and no key's trouble is another's."""

from __future__ import annotations

import pytest

import kvstore


def test_every_batch_operation(store: kvstore.Store) -> None:
    versions = store.put_many({"a": b"1", b"b": b"22"})
    assert store.get_many(["b", "none", "a"]) == [b"22", None, b"1"]
    assert store.get_versioned_many(["a", "none"]) == [(b"1", versions[0]), None]
    assert store.contains_many(["a", "none"]) == [True, False]
    buffers = [bytearray(2), bytearray(2), bytearray(2)]
    assert store.get_many_into(["a", "none", "b"], buffers) == [1, None, 2]
    assert (buffers[0][:1], buffers[2]) == (b"1", b"22")
    assert store.delete_many(["a", "none", "b"]) == [True, False, True]
    assert len(store) == 0


@pytest.mark.parametrize("count", [0, 1, 2, 64, 65, 256, 257, 1023, 1024, 1025, 2500])
def test_batches_of_every_length(store: kvstore.Store, count: int) -> None:
    items = [(b"key-%d" % i, b"value-%d" % i) for i in range(count)]
    versions = store.put_from_many(items)
    assert len(versions) == len(set(versions)) == count
    assert all(isinstance(version, int) for version in versions)
    keys = [key for key, _ in items]
    assert store.get_many(keys) == [value for _, value in items]
    assert store.get_many(iter(keys)) == [value for _, value in items]
    assert store.match_prefix(keys) == count
    assert store.delete_many(tuple(keys)) == [True] * count


def test_large_and_small_values_in_one_batch(store: kvstore.Store) -> None:
    items = {f"k{i}": bytes([i]) * size for i, size in enumerate([1, 200_000, 0, 65_536, 70_000])}
    store.put_many(items)
    assert store.get_many(items) == list(items.values())
    assert store.get_many(list(items) * 3) == list(items.values()) * 3


def test_errors_stay_with_their_keys(store: kvstore.Store) -> None:
    store.put("a", b"1234")
    outcomes = store.get_many(["a", "", 5, "none", "x" * 2000, "a"])  # type: ignore[list-item]
    assert outcomes[0] == outcomes[5] == b"1234"
    assert outcomes[3] is None
    assert all(isinstance(outcomes[i], kvstore.KeyInvalid) for i in (1, 2, 4))
    small, absent, invalid, good = store.get_many_into(
        ["a", "none", "", "a"], [bytearray(1), bytearray(1), bytearray(4), bytearray(4)]
    )
    assert isinstance(small, kvstore.BufferTooSmall)
    assert small.needed == 4
    assert absent is None
    assert isinstance(invalid, kvstore.KeyInvalid)
    assert good == 4
    read_only = store.get_many_into(["a"], [b"bytes"])  # type: ignore[list-item]
    assert isinstance(read_only[0], kvstore.ValueInvalid)
    taken, new = store.put_many({"a": b"x", "b": b"y"}, if_absent=True)
    assert isinstance(taken, kvstore.ConditionFailed)
    assert isinstance(new, int)
    assert store.get_many(["a", "b"]) == [b"1234", b"y"]
    [deleted, bad] = store.delete_many(["a", ""])
    assert deleted is True
    assert isinstance(bad, kvstore.KeyInvalid)
    [there, bad_too] = store.contains_many(["b", b""])
    assert there is True
    assert isinstance(bad_too, kvstore.KeyInvalid)


def test_match_prefix(store: kvstore.Store) -> None:
    store.put_many({"0": b"", "1": b"", "3": b""})
    assert store.match_prefix([]) == 0
    assert store.match_prefix(["0", "1", "2", "3"]) == 2
    assert store.match_prefix(["2", "0"]) == 0
    assert store.match_prefix(["3", "1", "0"]) == 3
    assert store.match_prefix(["0", "", "1"]) == 1


def test_what_makes_no_sense_as_a_whole(store: kvstore.Store) -> None:
    with pytest.raises(TypeError, match="not one key"):
        store.get_many("abc")
    with pytest.raises(TypeError, match="not one key"):
        store.delete_many(b"abc")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        store.get_many(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 keys but 1 buffers"):
        store.get_many_into(["a", "b"], [bytearray(1)])
    with pytest.raises(ValueError, match="item 1 is not a pair"):
        store.put_many([("a", b""), ("b",)])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        store.put_many([7])  # type: ignore[list-item]

    def broken() -> object:
        yield "a"
        raise RuntimeError("from the caller's generator")

    with pytest.raises(RuntimeError, match="generator"):
        store.get_many(broken())  # type: ignore[arg-type]
    assert len(store) == 0


def test_ttl_of_a_batch(store: kvstore.Store) -> None:
    import time

    store.put_many({"a": b"1"}, ttl_s=1)
    assert store.get("a") == b"1"
    time.sleep(1.2)  # Expiry is rounded up to ticks.
    assert store.get_many(["a"]) == [None]


def test_a_list_that_changes_under_a_batch_is_no_matter(store: kvstore.Store) -> None:
    store.put("a", b"1")
    keys: list[object] = ["a"]

    class Shrinking:
        """Text by conversion: looking at it empties the list that it stands in."""

        def __buffer__(self, flags: int) -> memoryview:
            keys.clear()
            return memoryview(b"a")

    keys += [Shrinking(), "a"]
    outcomes = store.get_many(keys)  # type: ignore[arg-type]
    assert len(outcomes) == 3
    assert outcomes[0] == outcomes[2] == b"1"
