"""What a full node is told of the blocks of a prompt: where they stand, how such are reused.

A block is evicted by what its *category* makes of its idle time (the nodes learn that, see
`native/store/reuse_model.hpp`), and among equals the end of a chain goes before its beginning. The
category is the turn of the conversation, as in "KVCache in the Wild" (arXiv 2506.02634), or how
often the block was used if that is more, and the request's type where the caller knows one. The
turn is inferred: a prompt that contains the end of an earlier one is its next turn.

All blocks of a prompt count as used at one moment, when it began to be served, although they are
loaded and stored over as long as its prefill takes: a block that was stored earlier is no older
than those behind it, which are of no use without it.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

#: Types of requests that a caller may tell apart.
KINDS: Final = 4
_PROMPTS_MAX: Final = 65_536
_BLOCKS_MAX: Final = 131_072
_CATEGORY_SHIFT: Final = 16
_PLACE_MAX: Final = 65_535
_KIND_SHIFT: Final = 6
_BUCKET_MAX: Final = 31
#: Longer than a prefill takes.
_AGE_NS_MAX: Final = 120 * 10**9


@dataclass(frozen=True, slots=True)
class Reuse:
    """What a full node is told of a use of some blocks.

    Attributes:
        numbers: `kv_reuse` of each; 0: nothing.
        used_ns: When all of them count as used, of `time.monotonic_ns`.
    """

    numbers: array[int]
    used_ns: int

    @classmethod
    def unknown(cls, count: int) -> Reuse:
        """Of `count` blocks nothing is known but that they are used now."""
        return cls(array("I", bytes(4 * count)), time.monotonic_ns())

    def at(self, places: Sequence[int]) -> Reuse:
        """Return what is told of the blocks at some places."""
        return Reuse(array("I", [self.numbers[place] for place in places]), self.used_ns)


@dataclass(slots=True)
class Prompt:
    """A prompt that is being served: what is told of the uses of its blocks.

    Attributes:
        turn: Of its conversation, from 1.
        blocks: How many blocks it has.
        kind: The request's type, below `KINDS`.
        uses: How often each block has been used, this time included; may be shorter.
        began_ns: When it began to be served, of `time.time_ns`, which workers on other machines
            understand.
    """

    turn: int = 1
    blocks: int = 0
    kind: int = 0
    uses: list[int] = field(default_factory=list)
    began_ns: int = field(default_factory=time.time_ns, compare=False)

    def reuse(self, first: int, count: int) -> Reuse:
        """Return what to tell of `count` blocks from the place `first` on."""
        numbers = [
            self._category(place) << _CATEGORY_SHIFT | min(place, _PLACE_MAX)
            for place in range(first, first + count)
        ]
        # By the clocks of two machines, or one that is set, it may begin in the future, or so long
        # ago that its blocks are the next to go.
        age_ns = min(max(0, time.time_ns() - self.began_ns), _AGE_NS_MAX)
        used_ns = max(1, time.monotonic_ns() - age_ns)
        return Reuse(array("I", numbers), used_ns)

    def _category(self, place: int) -> int:
        uses = self.uses[place] if place < len(self.uses) else 1
        # 1, 2 to 3, 4 to 7 turns, and so on. A last block may not be whole: then none follows it.
        bucket = min(max(self.turn, uses).bit_length(), _BUCKET_MAX)
        return self.kind << _KIND_SHIFT | 2 * bucket | int(place + 1 == self.blocks)


class Chains:
    """Remembers the ends of prompts, and how often blocks were used. Thread-safe; bounded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Last blocks of prompts -> the turn that ended there.
        self._ends: OrderedDict[bytes, int] = OrderedDict()
        self._uses: OrderedDict[bytes, int] = OrderedDict()

    def prompt(self, keys: Sequence[bytes], kind: int = 0) -> Prompt:
        """Say what is known of a prompt.

        It changes nothing: a prompt may be asked for several times before it is served.
        """
        with self._lock:
            turn = 1
            for key in reversed(keys):
                before = self._ends.get(key)
                # An end that was used more often than its conversation had turns is one by chance:
                # all of a prompt that others merely begin with.
                if before is not None and self._uses.get(key, 0) <= before + 1:
                    turn = before + 1
                    break
            uses = [self._uses.get(key, 0) + 1 for key in keys]
        return Prompt(turn, len(keys), kind, uses)

    def served(self, keys: Sequence[bytes], prompt: Prompt) -> None:
        """Remember a prompt; to be called once for each."""
        # The very last block may not be whole, and then only the one before it comes again. What a
        # prompt begins with is no end of it: others may begin alike.
        ends = keys[max(1, len(keys) - 2) :]
        with self._lock:
            for key in ends:
                self._ends[key] = prompt.turn
                self._ends.move_to_end(key)
            for key in keys:
                self._uses[key] = self._uses.get(key, 0) + 1
                self._uses.move_to_end(key)
            while len(self._ends) > 2 * _PROMPTS_MAX:
                self._ends.popitem(last=False)
            while len(self._uses) > _BLOCKS_MAX:
                self._uses.popitem(last=False)


@dataclass(slots=True)
class _Expected:
    keys: Sequence[bytes]
    prompt: Prompt
    served: bool = False


@dataclass(slots=True)
class _Beginning:
    """Where a get or a put of a prompt's blocks may begin."""

    expected: _Expected
    place: int
    used: bool = False


class Serving:
    """Prompts between their `match` and their `put`. Thread-safe; bounded."""

    _MAX: Final = 1024

    def __init__(self) -> None:
        self.chains = Chains()
        self._lock = threading.Lock()
        #: By the block that a get or a put begins with.
        self._expected: OrderedDict[bytes, _Beginning] = OrderedDict()

    def matched(self, keys: Sequence[bytes], matched: int) -> None:
        """A prompt was looked up: what is there will be got, what is not will be put."""
        if not keys:
            return
        expected = _Expected(keys, self.chains.prompt(keys))
        with self._lock:
            for place in {0, matched}:
                if place < len(keys):
                    self._expect(expected, place)

    def _expect(self, expected: _Expected, place: int) -> None:
        self._expected[expected.keys[place]] = _Beginning(expected, place)
        while len(self._expected) > self._MAX:
            self._expected.popitem(last=False)

    def reuse(self, keys: Sequence[bytes]) -> Reuse:
        """Return what to tell of blocks that are got or put now, all of one prompt."""
        with self._lock:
            found = self._expected.get(keys[0]) if keys else None
            if found is None:
                return Reuse.unknown(len(keys))
            expected, first = found.expected, found.place
            again, found.used = found.used, True
            is_new, expected.served = not expected.served, True
            # A prompt that is computed in chunks is put in as many parts.
            following = first + len(keys)
            if following < len(expected.keys):
                self._expect(expected, following)
        if is_new:
            self.chains.served(expected.keys, expected.prompt)
        reuse = expected.prompt.reuse(first, len(keys))
        # A second use of the same blocks is at another moment.
        return Reuse(reuse.numbers, time.monotonic_ns()) if again else reuse

    def fell_short(self, keys: Sequence[bytes], loaded: int) -> None:
        """Expect what a get of these blocks has not brought: it will be computed and put."""
        with self._lock:
            found = self._expected.get(keys[0])
            if found is not None and 0 < loaded < len(keys):
                self._expect(found.expected, found.place + loaded)
