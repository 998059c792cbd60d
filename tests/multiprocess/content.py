"""Values that say what they are, so that a wrong byte anywhere is found."""

from __future__ import annotations

import hashlib

HEAD_BYTES = 64


def value_of(key: str, sequence: int, value_bytes: int) -> bytes:
    """The value of a key as its `sequence`-th writer made it."""
    assert value_bytes >= HEAD_BYTES
    head = f"{key} {sequence} {value_bytes} ".encode().ljust(HEAD_BYTES, b".")
    digest = hashlib.blake2b(head).digest()
    body_bytes = value_bytes - HEAD_BYTES
    return head + (digest * (body_bytes // len(digest) + 1))[:body_bytes]


def check_value(key: str, value: bytes | memoryview) -> int:
    """Returns the sequence of a value; fails if a byte of it is not what it should be."""
    head = bytes(value[:HEAD_BYTES])
    parts = head.split(b" ")
    assert len(parts) >= 4, f"the value of {key} begins with {head!r}"
    assert parts[0] == key.encode(), f"the value of {key} is one of {parts[0]!r}"
    sequence, value_bytes = int(parts[1]), int(parts[2])
    assert len(value) == value_bytes, f"{key}: {len(value)} bytes instead of {value_bytes}"
    assert value == value_of(key, sequence, value_bytes), f"{key}: wrong bytes in {sequence}"
    return sequence
