"""The lossless codec: bytes of equal significance side by side, compressed with zstd.

KV cache is made of floats whose exponents resemble each other while their mantissas look random.
With all first bytes of the elements together, then all second bytes and so on, zstd finds the
exponents. Stored form: version (1 byte), bytes an element (1), zero (2), block length (4, little
endian), one zstd frame.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from kvstore.errors import CodecMismatch, ConfigurationError
from kvstore.llm.codecs import ZSTD_PLANES, needs

_HEADER: Final = struct.Struct("<BBHI")
_VERSION: Final = 1


class ZstdPlanes:
    """Lossless; `element_bytes` is 2 for float16 and bfloat16, 4 for float32, 1 for fp8."""

    number = ZSTD_PLANES
    lossy_name = ""

    def __init__(self, element_bytes: int, *, level: int = 1) -> None:
        """`level` is zstd's: 1 is fast, 3 its own default."""
        if element_bytes not in (1, 2, 4, 8):
            raise ConfigurationError(f"an element has 1, 2, 4 or 8 bytes, not {element_bytes}")
        self._element_bytes = element_bytes
        # Compressors are not thread-safe; one a call costs a few microseconds.
        self._level = level
        _zstandard()

    def encode(self, block: memoryview) -> bytes | None:
        """See Codec."""
        import numpy

        size = self._element_bytes
        if block.nbytes % size or block.nbytes >= 1 << 32:
            return None
        elements = numpy.frombuffer(block, numpy.uint8).reshape(-1, size)
        planes = numpy.ascontiguousarray(elements.T)
        frame: bytes = _zstandard().ZstdCompressor(level=self._level).compress(planes)
        if _HEADER.size + len(frame) >= block.nbytes:
            return None
        return _HEADER.pack(_VERSION, size, 0, block.nbytes) + frame


def decode(stored: bytes, block: memoryview) -> None:
    """See `kvstore.llm.codecs.decode`."""
    import numpy

    zstandard = _zstandard()
    if len(stored) < _HEADER.size:
        raise CodecMismatch(f"{len(stored)} bytes are no compressed block")
    version, size, zero, length = _HEADER.unpack_from(stored)
    if version != _VERSION or zero != 0 or size not in (1, 2, 4, 8) or length % size:
        raise CodecMismatch("the block was compressed by another version, or is none")
    if length != block.nbytes:
        raise CodecMismatch(f"the stored block has {length} bytes, not {block.nbytes}")
    frame = memoryview(stored)[_HEADER.size :]
    try:
        # The frame names its own length, which is not believed beyond that of the block.
        if zstandard.frame_content_size(frame) != length:
            raise CodecMismatch("the compressed block has another length than it says")
        planes = zstandard.ZstdDecompressor().decompress(frame, max_output_size=length)
    except zstandard.ZstdError as error:
        raise CodecMismatch(f"the block cannot be decompressed: {error}") from None
    if len(planes) != length:
        raise CodecMismatch("the compressed block has another length than it says")
    target = numpy.frombuffer(block, numpy.uint8).reshape(-1, size)
    target[:] = numpy.frombuffer(planes, numpy.uint8).reshape(size, -1).T


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise needs("zstandard", "zstd") from None
    return zstandard
