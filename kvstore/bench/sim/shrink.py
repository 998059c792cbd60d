"""Makes a failing world smaller while it still fails in the same way.

Faults go first, one kind at a time; then nodes, clients, lanes, keys and bytes are halved; last
the number of operations, of which the shortest failing prefix is sought. A smaller world is
another history, so every candidate may fail with any of a few seeds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from kvstore.bench.sim.runner import Row, Runner
from kvstore.bench.sim.scenario import Parameter, Settings

_SEEDS_TRIED: Final = 24
_SMALL: Final = 8
_HALVED: Final = ("nodes", "clients", "lanes", "keys", "value_bytes_max")


@dataclass(frozen=True)
class Failure:
    """A world that fails: its settings, its seed, and how."""

    settings: Settings
    seed: int
    violation: str

    @property
    def kind(self) -> str:
        """What stays the same while it shrinks."""
        return kind_of(self.violation)


def kind_of(violation: str) -> str:
    """A violation without what is of one world alone: up to its first colon, without numbers."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", violation.partition(":")[0])


class Shrinker:
    """Seeks a small world that fails like a given one, for a limited time."""

    def __init__(
        self,
        runner: Runner,
        scenario: str,
        parameters: dict[str, Parameter],
        *,
        seconds: float,
        say: Callable[[str], Any],
    ) -> None:
        self._runner: Final = runner
        self._scenario: Final = scenario
        self._parameters: Final = parameters
        self._seconds: Final = seconds
        self._say: Final = say

    def shrink(self, failure: Failure) -> Failure:
        """The smallest world found; `failure` itself if there is none."""
        give_up_at = time.monotonic() + self._seconds
        while time.monotonic() < give_up_at:
            smaller = None
            for candidate in self._candidates(failure.settings):
                if time.monotonic() >= give_up_at:
                    break
                smaller = self._fails(failure, candidate, failure.seed, _SEEDS_TRIED)
                if smaller is not None:
                    break
            if smaller is None:
                break
            failure = smaller
            self._say(f"fails with {describe(failure.settings, self._parameters)}")
        return self._shortest_prefix(failure, give_up_at)

    def _value(self, settings: Settings, name: str) -> int:
        return int(settings.get(name, self._parameters[name].default))

    def _candidates(self, settings: Settings) -> Iterator[Settings]:
        """Smaller settings, the most promising first."""
        for name in self._fault_rates():
            if self._value(settings, name) > 0:
                yield {**settings, name: 0}
        operations = self._value(settings, "operations")
        for divisor in (8, 2):
            if operations >= 2 * divisor:
                yield {**settings, "operations": operations // divisor}
        for name in _HALVED:
            value = self._value(settings, name)
            least = max(self._parameters[name].least, self._least_of(name, settings))
            # Small numbers go down one by one.
            for smaller in sorted({least, value // 2, value - 1 if value <= _SMALL else least}):
                if least <= smaller < value:
                    yield {**settings, name: smaller}

    def _fault_rates(self) -> list[str]:
        return [
            name
            for name, parameter in self._parameters.items()
            if parameter.group == "faults" and name.endswith("_per_million")
        ]

    def _least_of(self, name: str, settings: Settings) -> int:
        return self._value(settings, "value_bytes_min") if name == "value_bytes_max" else 1

    def _fails(
        self, failure: Failure, settings: Settings, first_seed: int, seeds: int
    ) -> Failure | None:
        def alike(row: Row) -> bool:
            return not row["ok"] and kind_of(row["violation"]) == failure.kind

        rows = self._runner.rows(self._scenario, settings, range(first_seed, first_seed + seeds))
        for row in rows:
            if alike(row):
                return Failure(settings, row["seed"], row["violation"])
        return None

    def _shortest_prefix(self, failure: Failure, give_up_at: float) -> Failure:
        """With the same seed, fewer operations are a prefix of the same history."""
        enough = self._value(failure.settings, "operations")
        too_few = 0
        while enough - too_few > 1 and time.monotonic() < give_up_at:
            middle = (enough + too_few) // 2
            settings = {**failure.settings, "operations": middle}
            shorter = self._fails(failure, settings, failure.seed, 1)
            if shorter is None:
                too_few = middle
            else:
                failure, enough = shorter, middle
        return failure


def describe(settings: Settings, parameters: dict[str, Parameter]) -> str:
    """The size of a world and its faults, in one line."""
    sizes = ("operations", "clients", "lanes", "keys", "nodes")
    words = [f"{settings.get(name, parameters[name].default)} {name}" for name in sizes]
    faults = [
        name.removesuffix("_per_million").replace("_", " ")
        for name, value in settings.items()
        if value and name.endswith("_per_million") and parameters[name].group == "faults"
    ]
    return ", ".join([*words, *faults])
