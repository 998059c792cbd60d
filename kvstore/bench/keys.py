"""Keys, values and access orders of a benchmark."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence
from typing import Final

KEY_BYTES: Final = 16


def key_of(number: int) -> bytes:
    """The 16-byte key number `number`."""
    return b"key:%012d" % number


def make_keys(count: int) -> list[bytes]:
    """Keys 0 to `count` - 1."""
    return [key_of(number) for number in range(count)]


def make_value(value_bytes: int, seed: int = 7) -> bytes:
    """Random bytes, so that nothing gains from compressing or from pages of zeros."""
    return random.Random(seed).randbytes(value_bytes)


def uniform_order(keys: int, length: int, seed: int = 1) -> list[int]:
    """`length` key numbers, each equally likely."""
    return random.Random(seed).choices(range(keys), k=length)


def zipf_order(keys: int, length: int, theta: float, seed: int = 1) -> list[int]:
    """`length` key numbers; the key of rank r has probability proportional to 1 / r ** theta.

    Ranks are spread over the key numbers, so that hot keys are not neighbours: for every seed in
    the same way, so that clients with different orders have the same hot keys, as in YCSB.
    """
    generator = random.Random(seed)
    cumulative = list(itertools.accumulate((rank + 1) ** -theta for rank in range(keys)))
    total = cumulative[-1]
    places = list(range(keys))
    random.Random(keys).shuffle(places)
    return [
        places[min(keys - 1, bisect.bisect_left(cumulative, generator.random() * total))]
        for _ in range(length)
    ]


def batches_of(order: Sequence[int], batch: int) -> list[list[int]]:
    """Cuts an order into batches of distinct key numbers (a batch runs in any order)."""
    cut: list[list[int]] = []
    current: dict[int, None] = {}
    for number in order:
        current[number] = None
        if len(current) == batch:
            cut.append(list(current))
            current = {}
    if not cut:
        raise ValueError(f"the order has fewer than {batch} different keys")
    return cut
