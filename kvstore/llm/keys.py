"""Keys of blocks: chained hashes of token blocks, hashes of chunks, and the keys made of them.

A *block* hash is chained: it stands for the block's tokens and for everything before them, so equal
hashes mean equal prefixes. A *chunk* hash stands for the chunk's tokens alone, wherever they stand
(position-independent caching after EPIC, ICML'25); both kinds of keys are disjoint.

Engines that have hashes of their own use those. The ones made here are SHA-256, or xxh3-128 where
nobody may choose the prompts of others: xxh3 is several times faster but collides on purpose.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, TypeAlias, cast

from kvstore.errors import ConfigurationError
from kvstore.llm.namespace import Namespace

Algorithm: TypeAlias = Literal["sha256", "xxh3-128"]
#: Token ids: a sequence of integers, or any buffer of 32-bit ones.
Tokens: TypeAlias = "Sequence[int] | array[int] | memoryview"

#: First bytes of every key of this package; the digit is the version of the format.
PREFIX: Final = b"L1"
_BLOCK: Final = b"b"
#: Of the keys of all blocks, whatever their namespace: those that a node's SSD tier takes.
BLOCK_PREFIX: Final = PREFIX + _BLOCK
_CHUNK: Final = b"c"
_ROOT: Final = b"kvstore.llm.block/1"
_CHUNK_ROOT: Final = b"kvstore.llm.chunk/1"
_TOKEN_BYTES: Final = 4


def block_hashes(
    tokens: Tokens,
    block_tokens: int,
    *,
    extra: bytes = b"",
    parent: bytes | None = None,
    algorithm: Algorithm = "sha256",
) -> list[bytes]:
    """Return the chained hash of each whole block of `tokens`; a partial last block has none.

    Args:
        tokens: Token ids below 2**32.
        block_tokens: Tokens a block.
        extra: What else the KV depends on from the first block on, such as an image's hash.
        parent: The hash of the block before the first one, to go on with a chain.
        algorithm: `sha256`, or `xxh3-128` (package xxhash) where prompts are trusted.
    """
    if block_tokens < 1:
        raise ConfigurationError(f"a block has at least one token, not {block_tokens}")
    digest = _digest(algorithm)
    data = token_bytes(tokens)
    step = block_tokens * _TOKEN_BYTES
    # The root is a digest too: no text of tokens and extra can pass for another one.
    last = digest(_ROOT + block_tokens.to_bytes(4, "little") + extra) if parent is None else parent
    hashes = []
    for begin in range(0, len(data) - step + 1, step):
        last = digest(last + data[begin : begin + step])
        hashes.append(last)
    return hashes


def chunk_hash(tokens: Tokens, *, extra: bytes = b"", algorithm: Algorithm = "sha256") -> bytes:
    """Return the hash of a chunk of text, which is the same wherever the chunk stands."""
    digest = _digest(algorithm)
    return digest(digest(_CHUNK_ROOT + extra) + token_bytes(tokens))


def token_bytes(tokens: Tokens) -> bytes:
    """Return token ids as little-endian 32-bit numbers."""
    if isinstance(tokens, memoryview) or hasattr(tokens, "__array_interface__"):
        view = memoryview(cast("memoryview", tokens))
        numbers = array("I", view.tobytes() if view.format in ("I", "i") else view.tolist())
    elif isinstance(tokens, array) and tokens.typecode == "I":
        numbers = tokens
    else:
        try:
            numbers = array("I", tokens)
        except (OverflowError, TypeError) as error:
            raise ConfigurationError(f"token ids are whole numbers below 2**32: {error}") from None
    if sys.byteorder == "big":
        numbers = array("I", numbers)
        numbers.byteswap()
    return numbers.tobytes()


class KeyMaker:
    """Makes the store's keys of one namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._set(namespace.digest())

    @classmethod
    def of_digest(cls, digest: bytes) -> KeyMaker:
        """Return the keys of a namespace of which only the digest is known."""
        made = cls.__new__(cls)
        made._set(digest)
        return made

    def _set(self, digest: bytes) -> None:
        self._block = PREFIX + _BLOCK + digest
        self._chunk = PREFIX + _CHUNK + digest

    @property
    def block_prefix(self) -> bytes:
        """What the keys of all blocks of this namespace begin with, and no other key does."""
        return self._block

    def blocks(self, hashes: Iterable[bytes]) -> list[bytes]:
        """Return the key of each block hash."""
        prefix = self._block
        return [prefix + item for item in hashes]

    def chunk(self, chunk: bytes) -> bytes:
        """Return the key of a chunk hash."""
        return self._chunk + chunk


def _digest(algorithm: Algorithm) -> Callable[[bytes], bytes]:
    if algorithm == "sha256":
        return lambda data: hashlib.sha256(data).digest()
    if algorithm == "xxh3-128":
        try:
            import xxhash
        except ImportError:
            raise ConfigurationError(
                "xxh3-128 needs the package xxhash: pip install xxhash, or use sha256"
            ) from None
        xxh3: Any = xxhash.xxh3_128_digest
        return lambda data: bytes(xxh3(data))
    raise ConfigurationError(f"hashes are sha256 or xxh3-128, not {algorithm}")
