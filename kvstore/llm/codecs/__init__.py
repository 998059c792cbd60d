"""Codecs: how the bytes of a block are stored.

    none     as they are (the default)
    zstd     byte planes, compressed: lossless
    int8     } quantised along KIVI's axes: keys by channel, values by token
    int4     }

The number of its codec stands in the header of each stored object, so a reader needs no setting; an
object whose codec it does not know is refused. A codec that loses precision is a part of the
namespace too: engines that did not ask for it never get such a block.

A codec is tried block by block; where it would gain nothing the block is stored as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from kvstore.errors import CodecMismatch, ConfigurationError

#: Numbers in the object header. 0 and 1 belong to the store (`kvstore.client.values`).
NONE: Final = 0
ZSTD_PLANES: Final = 16
QUANTISED: Final = 17


class Codec(Protocol):
    """Makes the stored form of blocks."""

    #: The number in the object header.
    number: int
    #: What a namespace calls it; empty for lossless codecs, which share blocks with all others.
    lossy_name: str

    def encode(self, block: memoryview) -> bytes | None:
        """Return the stored form, or None if the block is better stored as it is."""


def decode(number: int, stored: bytes, block: memoryview) -> None:
    """Write the block that `stored` stands for into `block`, whose size it must have.

    Raises CodecMismatch for a codec that this version does not know, for bytes that it did not
    make, and for a block of another size. Needs no setting: what was stored describes itself.
    """
    try:
        decoder = _decoders()[number]
    except KeyError:
        raise CodecMismatch(
            f"the block was stored with codec {number}, which this version does not know: use the"
            " version that stored it, or delete the block"
        ) from None
    decoder(stored, block)


def _decoders() -> dict[int, Callable[[bytes, memoryview], None]]:
    from kvstore.llm.codecs import planes, quantised

    return {ZSTD_PLANES: planes.decode, QUANTISED: quantised.decode}


def needs(package: str, codec: str) -> ConfigurationError:
    """Return the error for a codec whose package is not installed."""
    return ConfigurationError(f"the codec {codec} needs {package}: pip install {package}")
