"""Values of every kind and size go in and come out unchanged, without being copied in Python."""

from __future__ import annotations

import array
import ctypes
import os
from typing import Any

import pytest

import kvstore

SIZES = [0, 1, 63, 64, 65, 1023, 1024, 65_535, 65_536, 65_537, 1 << 20, (2 << 20) + 1]


@pytest.mark.parametrize("size", SIZES)
def test_sizes(store: kvstore.Store, size: int) -> None:
    value = os.urandom(size)
    store.put("k", value)
    assert store.get("k") == value
    assert store.get_versioned("k")[0] == value  # type: ignore[index]
    assert store.get_many(["k", "none", "k"]) == [value, None, value]
    buffer = bytearray(size)
    assert store.get_into("k", buffer) == size
    assert buffer == value


def test_growing_and_shrinking_values(store: kvstore.Store) -> None:
    for size in [10, 100_000, 10, 3_000_000, 0, 65_536, 65_537]:
        value = os.urandom(size)
        store["k"] = value
        assert store["k"] == value


@pytest.mark.parametrize(
    "value",
    [
        bytearray(b"bytearray"),
        memoryview(b"memoryview")[2:],
        array.array("d", [1.5, -2.5]),
        (ctypes.c_int * 3)(1, 2, 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_buffers(store: kvstore.Store, value: Any) -> None:
    expected = bytes(memoryview(value).cast("B"))
    store.put("k", value)
    assert store.get("k") == expected
    store.put_from("k2", value)
    assert store.put_many([("k3", value)]) == [store.get_versioned("k3")[1]]  # type: ignore[index]
    assert store.get_many(["k2", "k3"]) == [expected, expected]


class ArrayInterface:
    """An array of another library: it shows its memory only through `__array_interface__`."""

    def __init__(self, memory: bytearray, *, read_only: bool = False, **changes: Any) -> None:
        self._exported = (ctypes.c_char * len(memory)).from_buffer(memory)
        self.__array_interface__ = {
            "version": 3,
            "shape": (len(memory) // 4, 2),
            "typestr": "<u2",
            "data": (ctypes.addressof(self._exported), read_only),
            **changes,
        }


def test_array_interface(store: kvstore.Store) -> None:
    memory = bytearray(b"abcdefgh")
    store.put("k", ArrayInterface(memory))
    assert store.get("k") == b"abcdefgh"
    store.put("k", ArrayInterface(memory, strides=(4, 2)))
    store["k"] = b"ABCDEFG"
    assert store.get_into("k", ArrayInterface(memory)) == 7
    assert memory[:7] == b"ABCDEFG"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("text", "not text"),
        (7, "type int is no buffer"),
        (None, "NoneType is no buffer"),
        ([b"x"], "list is no buffer"),
        (memoryview(b"abcdef")[::2], "not contiguous"),
        (ArrayInterface(bytearray(8), strides=(2, 4)), "not contiguous"),
        (ArrayInterface(bytearray(8), data=None), "no address"),
    ],
)
def test_values_that_are_refused(store: kvstore.Store, value: Any, why: str) -> None:
    with pytest.raises(kvstore.ValueInvalid, match=why):
        store.put("k", value)
    [outcome, other] = store.put_many({"k": value, "other": b"v"})
    assert isinstance(outcome, kvstore.ValueInvalid)
    assert isinstance(other, int)
    assert list(store) == [b"other"]


@pytest.mark.parametrize("buffer", [b"bytes", memoryview(b"x"), "s", 7])
def test_buffers_that_are_refused(store: kvstore.Store, buffer: Any) -> None:
    store.put("k", b"v")
    with pytest.raises(kvstore.ValueInvalid):
        store.get_into("k", buffer)
    read_only = ArrayInterface(bytearray(8), read_only=True)
    with pytest.raises(kvstore.ValueInvalid, match="read-only"):
        store.get_into("k", read_only)


def test_numpy(store: kvstore.Store) -> None:
    numpy = pytest.importorskip("numpy")
    value = numpy.arange(3000, dtype=numpy.float32).reshape(50, 60)
    store.put("k", value)
    assert store.get("k") == value.tobytes()
    target = numpy.zeros_like(value)
    assert store.get_into("k", target) == value.nbytes
    assert (target == value).all()
    stacked = numpy.zeros((2, 50, 60), numpy.float32)
    assert store.get_many_into(["k", "k"], stacked) == [value.nbytes] * 2
    assert (stacked == value).all()
    with pytest.raises(kvstore.ValueInvalid, match="contiguous"):
        store.put("k", value[:, ::2])
    with pytest.raises(kvstore.ValueInvalid, match="contiguous"):
        store.get_into("k", value.T)
    when = numpy.array(["2026-01-01", "2026-01-02"], dtype="datetime64[s]")
    store.put("k", when)
    assert store.get("k") == when.tobytes()
    target.setflags(write=False)
    with pytest.raises(kvstore.ValueInvalid, match="read-only"):
        store.get_into("k", target)


def test_torch(store: kvstore.Store) -> None:
    torch = pytest.importorskip("torch")
    value = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    store.put("k", value)
    target = torch.zeros_like(value)
    assert store.get_into("k", target) == 24
    assert torch.equal(target, value)
    with pytest.raises(kvstore.ValueInvalid, match="contiguous"):
        store.put("k", value.t())


class Tensor:
    """What torch's tensors look like from outside, on real memory."""

    def __init__(self, memory: bytearray, device: str = "cpu", contiguous: bool = True) -> None:
        self._exported = (ctypes.c_char * len(memory)).from_buffer(memory)
        self._contiguous = contiguous
        self.device = type("device", (), {"type": device, "__str__": lambda _: f"{device}:0"})()

    def data_ptr(self) -> int:
        return ctypes.addressof(self._exported)

    def element_size(self) -> int:
        return 2

    def numel(self) -> int:
        return len(self._exported) // 2

    def is_contiguous(self) -> bool:
        return self._contiguous


def test_tensors_without_torch(store: kvstore.Store) -> None:
    memory = bytearray(b"tensor")
    store.put("k", Tensor(memory))  # type: ignore[arg-type]
    assert store.get("k") == b"tensor"
    with pytest.raises(kvstore.ValueInvalid, match="cuda:0"):
        store.put("k", Tensor(memory, device="cuda"))  # type: ignore[arg-type]
    with pytest.raises(kvstore.ValueInvalid, match="contiguous"):
        store.put("k", Tensor(memory, contiguous=False))  # type: ignore[arg-type]


def test_a_view_is_released(store: kvstore.Store) -> None:
    memory = bytearray(100)
    store.put("k", memory)
    store.get_into("k", memory)
    store.put_many([("k", memory)])
    store.get_many_into(["k"], [memory])
    memory.append(1)  # BufferError while a view is exported.


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -7,
        2**64 - 1,
        1.5,
        "text",
        b"bytes",
        [1, [2]],
        {"a": {"b": [None]}, 5: "int key"},
    ],
    ids=repr,
)
def test_objects(store: kvstore.Store, value: Any) -> None:
    version = store.put_object("k", value)
    found = store.get_object("k", "default")
    assert found == value
    assert type(found) is type(value)
    assert store.put_object("k", value, if_version=version) != version


def test_codecs_are_not_mixed_up(store: kvstore.Store) -> None:
    store.put("bytes", b"\x01")
    with pytest.raises(kvstore.CodecMismatch, match="plain bytes"):
        store.get_object("bytes")
    store._put_coded("new", b"x", 77)
    with pytest.raises(kvstore.CodecMismatch, match="codec 77"):
        store.get_object("new")
    store._put_coded("broken", b"\xc1", 1)
    with pytest.raises(kvstore.CodecMismatch, match="is not"):
        store.get_object("broken")
    with pytest.raises(kvstore.ValueInvalid, match="cannot store this object"):
        store.put_object("k", object())
    with pytest.raises(kvstore.ValueInvalid):
        store.put_object("k", 2**64)
