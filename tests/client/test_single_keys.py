"""Operations on one key: what they return, and what they refuse."""

from __future__ import annotations

import time

import pytest

import kvstore

#: A time to live that outlasts a call.
TTL_S = 1.0
#: After this long on top the value is gone: expiry is rounded up to ticks.
EXPIRY_S = 0.2


def test_an_absent_key(store: kvstore.Store) -> None:
    assert store.get("k") is None
    assert store.get_versioned("k") is None
    assert store.get_into("k", bytearray(8)) is None
    assert store.get_object("k") is None
    assert store.get_object("k", 7) == 7
    assert store.contains("k") is False
    assert store.delete("k") is False
    assert "k" not in store
    with pytest.raises(KeyError, match="'k'"):
        store["k"]
    with pytest.raises(KeyError, match="'k'"):
        del store["k"]


def test_put_get_replace_delete(store: kvstore.Store) -> None:
    first = store.put("k", b"one")
    assert store.get("k") == b"one"
    assert store.get_versioned("k") == (b"one", first)
    second = store.put("k", b"another")
    assert second != first
    assert store.get_versioned("k") == (b"another", second)
    assert store.contains("k") is True
    assert store.delete("k") is True
    assert store.get("k") is None
    assert store.delete("k") is False


def test_it_is_a_mapping(store: kvstore.Store) -> None:
    store["a"] = b"1"
    store[b"b"] = b"2"
    assert store["a"] == b"1"
    assert "b" in store
    assert len(store) == 2
    assert sorted(store) == [b"a", b"b"]
    assert sorted(store.keys()) == [b"a", b"b"]
    del store["a"]
    assert len(store) == store.size() == 1
    assert store.clear() == 1
    assert list(store) == []
    assert bool(store)


def test_a_walk_over_more_than_one_page(store: kvstore.Store) -> None:
    keys = {b"key-%d" % i for i in range(1500)}
    assert all(isinstance(v, int) for v in store.put_many((key, b"v") for key in keys))
    walked = list(store)
    assert len(walked) == len(keys)
    assert set(walked) == keys
    assert len(store) == len(keys)


@pytest.mark.parametrize(
    "key",
    [b"x", b"\0", b"\0" * 1024, b"\xff\xfe", "text", "ключ", bytearray(b"ba"), memoryview(b"mv")],
    ids=["byte", "zero", "longest", "not-utf8", "text", "cyrillic", "bytearray", "memoryview"],
)
def test_keys_of_every_kind(store: kvstore.Store, key: bytes | str) -> None:
    store.put(key, b"v")
    assert store.get(key) == b"v"
    plain = key.encode() if isinstance(key, str) else bytes(key)
    assert store.get(plain) == b"v"
    assert list(store) == [plain]


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (b"", "empty"),
        ("", "empty"),
        (b"x" * 1025, "1025 bytes is too long"),
        ("é" * 513, "1026 bytes is too long"),
        (7, "not int"),
        (None, "not NoneType"),
        ("\ud800", "UTF-8"),
        (memoryview(b"abcdef")[::2], "contiguous"),
    ],
)
def test_keys_that_are_refused(store: kvstore.Store, key: object, why: str) -> None:
    bad: list[object] = [
        lambda: store.get(key),  # type: ignore[arg-type]
        lambda: store.put(key, b"v"),  # type: ignore[arg-type]
        lambda: store.delete(key),  # type: ignore[arg-type]
        lambda: store.contains(key),  # type: ignore[arg-type]
        lambda: store.get_into(key, bytearray(1)),  # type: ignore[arg-type]
    ]
    for call in bad:
        with pytest.raises(kvstore.KeyInvalid, match=why):
            call()  # type: ignore[operator]
    assert len(store) == 0


def test_if_absent(store: kvstore.Store) -> None:
    version = store.put("k", b"first", if_absent=True)
    with pytest.raises(kvstore.ConditionFailed, match="'k'"):
        store.put("k", b"second", if_absent=True)
    assert store.get_versioned("k") == (b"first", version)
    store.delete("k")
    store.put("k", b"third", if_absent=True)
    assert store.get("k") == b"third"


def test_if_version(store: kvstore.Store) -> None:
    with pytest.raises(kvstore.ConditionFailed):
        store.put("k", b"none", if_version=1)
    with pytest.raises(kvstore.ConditionFailed):
        store.delete("k", if_version=1)
    first = store.put("k", b"first")
    second = store.put("k", b"second", if_version=first)
    with pytest.raises(kvstore.ConditionFailed):
        store.put("k", b"third", if_version=first)
    with pytest.raises(kvstore.ConditionFailed):
        store.delete("k", if_version=first)
    assert store.get_versioned("k") == (b"second", second)
    assert store.delete("k", if_version=second) is True
    assert store.get("k") is None


def test_a_version_never_comes_back(store: kvstore.Store) -> None:
    old = store.put("k", b"v")
    store.delete("k")
    new = store.put("k", b"v")
    assert new != old
    with pytest.raises(kvstore.ConditionFailed):
        store.put("k", b"w", if_version=old)


def test_ttl(store: kvstore.Store) -> None:
    store.put("brief", b"v", ttl_s=TTL_S)
    store.put("long", b"v", ttl_s=60)
    assert store.get("brief") == b"v"
    time.sleep(TTL_S + EXPIRY_S)
    assert store.get("brief") is None
    assert "brief" not in store
    assert store.get_many(["brief", "long"]) == [None, b"v"]
    store.put("brief", b"again", if_absent=True)
    assert store.get("brief") == b"again"


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e300])
def test_durations_that_are_refused(store: kvstore.Store, seconds: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        store.get("k", timeout_s=seconds)
    with pytest.raises(ValueError, match="ttl_s"):
        store.put("k", b"v", ttl_s=seconds)
    with pytest.raises(kvstore.ConfigurationError, match="timeout_s"):
        kvstore.connect("embedded", timeout_s=seconds if seconds < 1e300 else float("inf"))


def test_arguments_that_are_refused(store: kvstore.Store) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        store.put("k", b"v", if_version=1, if_absent=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'timeout'"):
        store.get("k", timeout=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing required argument: 'value'"):
        store.put("k")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="at most 2 positional"):
        store.put("k", b"v", 7)  # type: ignore[misc]
    with pytest.raises(TypeError, match="multiple values for argument 'key'"):
        store.get("k", key="k")  # type: ignore[call-arg,misc]
    with pytest.raises(OverflowError):
        store.put("k", b"v", if_version=-1)
    assert store.get(key="k", timeout_s=5) is None


def test_a_buffer_that_is_too_small(store: kvstore.Store) -> None:
    store.put("k", b"x" * 100)
    buffer = bytearray(b"-" * 100)
    assert store.get_into("k", buffer) == 100
    assert buffer == b"x" * 100
    with pytest.raises(kvstore.BufferTooSmall, match="100 bytes") as caught:
        store.get_into("k", bytearray(99))
    assert caught.value.needed == 100
    with pytest.raises(kvstore.BufferTooSmall):
        store.get_into("k", bytearray())
    store.put("k", b"")
    assert store.get_into("k", bytearray()) == 0


def test_a_value_that_cannot_fit(store: kvstore.Store) -> None:
    with pytest.raises(kvstore.ValueTooLarge, match="however empty"):
        store.put("k", bytes(65 << 20))
    store.put("k", b"small")
    assert store.get("k") == b"small"


def test_the_docstrings_and_signatures_are_there() -> None:
    import inspect

    for name in ("get", "put", "get_many", "put_many", "delete", "match_prefix", "get_object"):
        method = getattr(kvstore.Store, name)
        assert method.__doc__
        assert "timeout_s" in inspect.signature(method).parameters
