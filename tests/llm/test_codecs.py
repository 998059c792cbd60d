"""Codecs: lossless ones are, the others keep their bound, and nothing unknown is believed."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvstore
from kvstore.errors import CodecMismatch, ConfigurationError
from kvstore.llm import Namespace, PrefixCache, block_hashes, codecs
from kvstore.llm.codecs.planes import ZstdPlanes
from kvstore.llm.codecs.quantised import Part, Quantised

HASHES = block_hashes(range(32), 16)
Dtype = Literal["float32", "float16", "bfloat16"]


def to_dtype(values: Any, dtype: Dtype) -> bytes:
    if dtype == "bfloat16":
        return bytes((values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes())
    return bytes(values.astype(dtype).tobytes())


def from_dtype(data: bytes, dtype: Dtype) -> Any:
    if dtype == "bfloat16":
        return (numpy.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return numpy.frombuffer(data, dtype).astype("<f4")


@given(st.binary(max_size=512), st.sampled_from([1, 2, 4, 8]))
def test_planes_are_lossless(data: bytes, element: int) -> None:
    stored = ZstdPlanes(element).encode(memoryview(data))
    if stored is None:
        return
    assert len(stored) < len(data)
    block = bytearray(len(data))
    codecs.decode(codecs.ZSTD_PLANES, stored, memoryview(block))
    assert block == data


def test_planes_gain_on_floats() -> None:
    data = to_dtype(numpy.random.default_rng(1).standard_normal(65_536), "bfloat16")
    stored = ZstdPlanes(2).encode(memoryview(data))
    assert stored is not None
    assert len(stored) < 0.85 * len(data)
    # What has no pattern is left as it is.
    noise = numpy.random.default_rng(1).bytes(65_536)
    assert ZstdPlanes(2).encode(memoryview(noise)) is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
@given(seed=st.integers(0, 1000), spread=st.floats(1e-3, 1e3))
def test_quantisation_keeps_its_bound(
    dtype: Dtype, bits: Literal[4, 8], seed: int, spread: float
) -> None:
    shape = (2, 32, 64)
    source = numpy.random.default_rng(seed)
    # Some channels of keys are large in every token: what KIVI's axes are for.
    keys = source.standard_normal(shape) * numpy.where(numpy.arange(64) % 16 == 0, spread, 1)
    values = source.standard_normal(shape) * spread
    data = to_dtype(keys, dtype) + to_dtype(values, dtype)
    parts = [Part("key", dtype, shape), Part("value", dtype, shape)]
    stored = Quantised(bits, parts, group=16).encode(memoryview(data))
    assert stored is not None
    block = bytearray(len(data))
    codecs.decode(codecs.QUANTISED, stored, memoryview(block))
    half = len(data) // 2
    for axis, original, decoded in (
        ("key", data[:half], bytes(block[:half])),
        ("value", data[half:], bytes(block[half:])),
    ):
        exact = from_dtype(original, dtype).reshape(shape)
        error = numpy.abs(from_dtype(decoded, dtype).reshape(shape) - exact)
        grouped = exact.reshape(2, 2, 16, 64) if axis == "key" else exact.reshape(2, 32, 4, 16)
        over = 2 if axis == "key" else 3
        spans = grouped.max(axis=over, keepdims=True) - grouped.min(axis=over, keepdims=True)
        bound = numpy.broadcast_to(spans / (2 * ((1 << bits) - 1)), grouped.shape).reshape(shape)
        rounding = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
        assert (error <= 1.001 * bound + rounding * numpy.abs(exact).max()).all()


def test_quantisation_takes_the_axes_of_kivi() -> None:
    """A channel that is large in keys costs the others nothing; so with a token in values."""
    shape = (1, 32, 32)
    keys = numpy.random.default_rng(1).standard_normal(shape).astype("<f4")
    keys[:, :, 0] *= 1e4
    values = numpy.random.default_rng(2).standard_normal(shape).astype("<f4")
    values[:, 0, :] *= 1e4
    data = keys.tobytes() + values.tobytes()
    parts = [Part("key", "float32", shape), Part("value", "float32", shape)]
    stored = Quantised(8, parts).encode(memoryview(data))
    assert stored is not None
    block = numpy.zeros(2 * 32 * 32, "<f4")
    codecs.decode(codecs.QUANTISED, stored, memoryview(block).cast("B"))
    error = numpy.abs(block - numpy.frombuffer(data, "<f4")).reshape(2, 32, 32)
    assert error[0, :, 1:].max() < 0.02
    assert error[1, 1:, :].max() < 0.02


def test_what_cannot_be_quantised_is_stored_as_it_is() -> None:
    parts = [Part("key", "float32", (1, 32, 32))]
    values = numpy.ones((1, 32, 32), "<f4")
    for odd in (numpy.inf, -numpy.inf, numpy.nan):
        values[0, 3, 3] = odd
        assert Quantised(8, parts).encode(memoryview(values).cast("B")) is None
    # A range that float32 cannot hold.
    values[0, 3, 3], values[0, 4, 3] = 3e38, -3e38
    stored = Quantised(8, parts).encode(memoryview(values).cast("B"))
    assert stored is not None
    block = numpy.zeros_like(values)
    codecs.decode(codecs.QUANTISED, stored, memoryview(block).cast("B"))
    assert numpy.isfinite(block).all()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: ZstdPlanes(3), "1, 2, 4 or 8"),
        (lambda: Quantised(cast("Any", 2), [Part("key", "float32", (1, 32, 32))]), "4 or 8"),
        (lambda: Quantised(8, [Part("key", "float32", (1, 33, 32))]), "does not divide"),
        (lambda: Quantised(8, [Part("value", "float32", (1, 32, 33))]), "does not divide"),
        (lambda: Quantised(8, []), "at least one part"),
    ],
)
def test_settings_that_make_no_sense(make: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        make()


PARTS = [Part("key", "float32", (1, 32, 32)), Part("value", "float32", (1, 32, 32))]
BLOCK = numpy.random.default_rng(3).standard_normal((2, 32, 32)).astype("<f4").tobytes()


@pytest.mark.parametrize(
    ("number", "codec"),
    [(codecs.ZSTD_PLANES, ZstdPlanes(4)), (codecs.QUANTISED, Quantised(4, PARTS))],
)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_decoded_but_never_worse(
    number: int, codec: Any, data: st.DataObject
) -> None:
    stored = bytearray(codec.encode(memoryview(BLOCK)))
    how = data.draw(st.sampled_from(["cut", "flip", "extend"]))
    if how == "cut":
        del stored[data.draw(st.integers(0, len(stored) - 1)) :]
    elif how == "extend":
        stored += b"x" * data.draw(st.integers(1, 8))
    else:
        stored[data.draw(st.integers(0, 40))] ^= data.draw(st.integers(1, 255))
    block = bytearray(len(BLOCK))
    try:
        codecs.decode(number, bytes(stored), memoryview(block))
    except CodecMismatch:
        return
    assert how == "flip" or (number == codecs.ZSTD_PLANES and how == "extend")


def test_a_block_of_another_size_is_refused() -> None:
    for codec in (ZstdPlanes(4), Quantised(8, PARTS)):
        stored = codec.encode(memoryview(BLOCK))
        assert stored is not None
        for size in (0, len(BLOCK) - 4, len(BLOCK) + 4):
            with pytest.raises(CodecMismatch):
                codecs.decode(codec.number, stored, memoryview(bytearray(size)))


def test_a_reader_needs_no_setting_for_what_is_lossless(
    store: kvstore.Store, namespace: Namespace
) -> None:
    writer, reader = (
        PrefixCache(store, namespace, codec=ZstdPlanes(4)),
        PrefixCache(store, namespace),
    )
    zeros, noise = bytes(4096), numpy.random.default_rng(1).bytes(4096)
    writer.put(HASHES, [zeros, noise])
    buffers = [bytearray(b"x" * 4096), bytearray(4096)]
    assert reader.get(HASHES, buffers).all_ok
    assert buffers == [zeros, noise]
    assert writer.stats().stored_bytes < writer.stats().stored_raw_bytes == 8192


def test_nobody_gets_lossy_blocks_unasked(store: kvstore.Store, namespace: Namespace) -> None:
    lossy = PrefixCache(store, namespace, codec=Quantised(4, PARTS))
    other = PrefixCache(store, namespace, codec=Quantised(8, PARTS))
    exact = PrefixCache(store, namespace)
    lossy.put(HASHES[:1], [BLOCK])
    assert (lossy.match(HASHES), other.match(HASHES), exact.match(HASHES)) == (1, 0, 0)
    same = PrefixCache(store, dataclasses.replace(namespace, codec="int4/32"))
    assert same.match(HASHES) == 1
    buffer = bytearray(len(BLOCK))
    assert same.get(HASHES[:1], [buffer]).all_ok
    assert buffer != BLOCK
    with pytest.raises(ConfigurationError, match="int4/32"):
        PrefixCache(store, same.namespace, codec=Quantised(8, PARTS))


def test_an_unknown_codec_in_the_header_is_refused(
    store: kvstore.Store, namespace: Namespace
) -> None:
    cache = PrefixCache(store, namespace)
    (key,) = cache._core.keys.blocks(HASHES[:1])
    for unknown in (1, 99):
        store._put_coded(key, b"x" * 64, unknown)
        assert cache.match(HASHES[:1]) == 1
        assert cache.get(HASHES[:1], [bytearray(64)]).reasons == {0: "refused codec"}
        assert cache.match(HASHES[:1]) == 0
        cache._core.negative.forgive([key])
