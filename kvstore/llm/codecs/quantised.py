"""The codecs that lose precision: 8 or 4 bits an element, along the axes of KIVI (ICML'24).

Keys have channels that are large in every token, so they are quantised by channel: a group is some
tokens of one channel. Values have no such channels and are quantised by token: a group is some
channels of one token. Each group has a scale and a minimum in float32, so an element is off by at
most half a scale: (maximum - minimum of its group) / (2 * levels), and the rounding of its dtype.

Stored form: version (1 byte), bits (1), group (2), number of parts (4); of each part its kind (1),
dtype (1), zero (2), heads, tokens and channels (4 each); then of each part scales, minima, and the
packed elements. All little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from kvstore.errors import CodecMismatch, ConfigurationError
from kvstore.llm.codecs import QUANTISED, needs

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[float32]

_HEADER: Final = struct.Struct("<BBHI")
_PART: Final = struct.Struct("<BBHIII")
_VERSION: Final = 1
_PARTS_MAX: Final = 65_536
_KINDS: Final = ("key", "value")
_DTYPES: Final = ("float32", "float16", "bfloat16")
_ITEM_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Part:
    """One contiguous piece of a block: the keys or values of one layer.

    The shape is (heads, tokens, channels), the last one fastest.
    """

    kind: Literal["key", "value"]
    dtype: Literal["float32", "float16", "bfloat16"]
    shape: tuple[int, int, int]

    @property
    def elements(self) -> int:
        """Elements of the piece."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the piece in the block."""
        return self.elements * _ITEM_BYTES[self.dtype]


class Quantised:
    """8 or 4 bits an element. `parts` say what a block consists of, in order."""

    number = QUANTISED

    def __init__(self, bits: Literal[4, 8], parts: Sequence[Part], *, group: int = 32) -> None:
        """`group` elements share a scale; it must divide the tokens of keys, channels of values."""
        if bits not in (4, 8):
            raise ConfigurationError(f"elements are quantised to 4 or 8 bits, not {bits}")
        if not 1 < group < 65_536 or not 0 < len(parts) <= _PARTS_MAX:
            raise ConfigurationError("a group has at least two elements, a block at least one part")
        for part in parts:
            if (part.shape[1] if part.kind == "key" else part.shape[2]) % group:
                raise ConfigurationError(
                    f"a group of {group} does not divide the {part.kind}s' shape {part.shape}:"
                    " choose another group"
                )
            if part.elements % 2:
                raise ConfigurationError(f"a part of odd size: {part.shape}")
        self._bits = bits
        self._group = group
        self._parts = tuple(parts)
        self._block_bytes = sum(part.bytes for part in parts)
        self.lossy_name = f"int{bits}/{group}"
        _numpy()

    def encode(self, block: memoryview) -> bytes | None:
        """See Codec. A block with infinities or NaN is stored as it is."""
        numpy = _numpy()
        if block.nbytes != self._block_bytes:
            raise CodecMismatch(f"a block has {self._block_bytes} bytes, not {block.nbytes}")
        stored = [_HEADER.pack(_VERSION, self._bits, self._group, len(self._parts))]
        stored += [
            _PART.pack(_KINDS.index(part.kind), _DTYPES.index(part.dtype), 0, *part.shape)
            for part in self._parts
        ]
        for part, piece in _pieces(self._parts, block):
            groups = _groups(_to_float32(piece, part), part, self._group)
            low = groups.min(axis=-1, keepdims=True)
            # In double precision: the range of finite float32 need not be one.
            scale = (groups.max(axis=-1, keepdims=True).astype(numpy.float64) - low) / self._levels
            scale = scale.astype(numpy.float32)
            if not (numpy.isfinite(low).all() and numpy.isfinite(scale).all()):
                return None
            divisor = numpy.where(scale == 0, numpy.float32(1), scale)
            codes = numpy.rint((groups.astype(numpy.float64) - low) / divisor)
            codes = codes.clip(0, self._levels).astype(numpy.uint8).reshape(-1)
            if self._bits == 4:
                codes = codes[0::2] | (codes[1::2] << 4)
            stored += [scale.tobytes(), low.tobytes(), codes.tobytes()]
        encoded = b"".join(stored)
        return encoded if len(encoded) < block.nbytes else None

    @property
    def _levels(self) -> int:
        return (1 << self._bits) - 1


def decode(stored: bytes, block: memoryview) -> None:
    """See `kvstore.llm.codecs.decode`."""
    numpy = _numpy()
    bits, group, parts, at = _read_header(stored)
    if sum(part.bytes for part in parts) != block.nbytes:
        raise CodecMismatch(f"the stored block is not one of {block.nbytes} bytes")
    expected = sum(part.elements // group * 8 + part.elements * bits // 8 for part in parts)
    if len(stored) - at != expected:
        raise CodecMismatch("the quantised block has another length than it says")
    for part, piece in _pieces(parts, block):
        count = part.elements // group
        scale = numpy.frombuffer(stored, "<f4", count, at)
        low = numpy.frombuffer(stored, "<f4", count, at + 4 * count)
        at += 8 * count
        size = part.elements * bits // 8
        packed = numpy.frombuffer(stored, numpy.uint8, size, at)
        at += size
        if bits == 4:
            codes = numpy.empty(part.elements, numpy.uint8)
            codes[0::2], codes[1::2] = packed & 15, packed >> 4
        else:
            codes = packed
        # In double precision: 255 scales may be more than float32 holds, though the sum is not.
        groups = codes.reshape(count, group) * scale[:, None].astype(numpy.float64) + low[:, None]
        _from_float32(_ungroup(groups.astype(numpy.float32), part, group), piece, part)


def _read_header(stored: bytes) -> tuple[int, int, list[Part], int]:
    """Return bits, group, parts and where the elements begin. Nothing stored is believed."""
    refused = CodecMismatch("the block was quantised by another version, or is none")
    if len(stored) < _HEADER.size:
        raise refused
    version, bits, group, count = _HEADER.unpack_from(stored)
    at = _HEADER.size
    if version != _VERSION or bits not in (4, 8) or group < 2 or not 0 < count <= _PARTS_MAX:
        raise refused
    if len(stored) < at + count * _PART.size:
        raise refused
    parts: list[Part] = []
    for _ in range(count):
        kind, dtype, zero, *shape = _PART.unpack_from(stored, at)
        at += _PART.size
        if kind >= len(_KINDS) or dtype >= len(_DTYPES) or zero:
            raise refused
        part = Part(_KINDS[kind], _DTYPES[dtype], (shape[0], shape[1], shape[2]))
        along = part.shape[1] if part.kind == "key" else part.shape[2]
        if along % group or part.elements % 2:
            raise refused
        parts.append(part)
    return bits, group, parts, at


def _pieces(parts: Sequence[Part], block: memoryview) -> Iterator[tuple[Part, memoryview]]:
    begin = 0
    for part in parts:
        yield part, block[begin : begin + part.bytes]
        begin += part.bytes


def _groups(elements: Floats, part: Part, group: int) -> Floats:
    """Return the elements with those of one group along the last axis."""
    heads, tokens, channels = part.shape
    if part.kind == "key":
        split = elements.reshape(heads, tokens // group, group, channels)
        return split.transpose(0, 1, 3, 2)
    return elements.reshape(heads, tokens, channels // group, group)


def _ungroup(groups: Floats, part: Part, group: int) -> Floats:
    heads, tokens, channels = part.shape
    if part.kind == "key":
        split = groups.reshape(heads, tokens // group, channels, group)
        return split.transpose(0, 1, 3, 2).reshape(-1)
    return groups.reshape(-1)


def _to_float32(piece: memoryview, part: Part) -> Floats:
    numpy = _numpy()
    if part.dtype == "bfloat16":
        # The upper half of a float32.
        wide = numpy.frombuffer(piece, "<u2").astype("<u4") << 16
        result: Floats = wide.view("<f4")
        return result
    kind = "<f4" if part.dtype == "float32" else "<f2"
    return numpy.frombuffer(piece, kind).astype("<f4")  # type: ignore[no-any-return]


def _from_float32(elements: Floats, piece: memoryview, part: Part) -> None:
    numpy = _numpy()
    if part.dtype == "bfloat16":
        # To the nearest, ties to even; what is finite stays so, or rounds to infinity as it should.
        wide = numpy.ascontiguousarray(elements, "<f4").view("<u4")
        rounded = (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16
        numpy.frombuffer(piece, "<u2")[:] = rounded.astype("<u2")
        return
    kind = "<f4" if part.dtype == "float32" else "<f2"
    numpy.frombuffer(piece, kind)[:] = elements.astype(kind)


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise needs("numpy", "int8 or int4") from None
    return numpy
