"""What is compared: cases, the interface of a system, and the work that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from kvstore.bench.keys import batches_of, make_keys, make_value, uniform_order
from kvstore.bench.measure import Sample

SMALL_BYTES: Final = 1 << 10
LARGE_BYTES: Final = 2 << 20
BATCH: Final = 64
SMALL_KEYS: Final = 10_000
LARGE_KEYS: Final = 16
#: The variant of the bare socket whose server moves one value again and again, out of its cache.
ONE_VALUE: Final = "one value"
_ORDER_LENGTH: Final = 1 << 15


@dataclass(frozen=True)
class Case:
    """One figure: a system doing one operation over one fabric."""

    system: str
    fabric: str
    operation: str
    value_bytes: int = SMALL_BYTES
    batch: int = 1
    variant: str = ""

    @property
    def is_large(self) -> bool:
        """Whether it moves large values."""
        return self.value_bytes >= LARGE_BYTES


class Unavailable(Exception):
    """A system can't run here; the text is the reason."""


class System(Protocol):
    """A running system. The constructor starts it or raises Unavailable."""

    name: str

    def measure(self, case: Case, seconds: float) -> Sample:
        """One sample of a case of this system."""

    def close(self) -> None:
        """Ends what was started."""


class Work:
    """The same keys, values and order for every system."""

    def __init__(self) -> None:
        self.keys: Final = make_keys(SMALL_KEYS)
        self.value: Final = make_value(SMALL_BYTES)
        self.large_keys: Final = [b"large:%010d" % number for number in range(LARGE_KEYS)]
        self.large_value: Final = make_value(LARGE_BYTES)
        self.numbers: Final = uniform_order(SMALL_KEYS, _ORDER_LENGTH)
        self.order: Final = [self.keys[number] for number in self.numbers]
        self.batches: Final[Sequence[list[bytes]]] = [
            [self.keys[number] for number in numbers] for numbers in batches_of(self.numbers, BATCH)
        ]
