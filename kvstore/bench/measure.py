"""Closed-loop timing: throughput and latency of a call, and what a set of samples says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from kvstore.bench.document import median, percentile

#: Calls between two looks at the clock while throughput is measured.
_CALLS_A_CHECK: Final = 16
_LATENCIES_MAX: Final = 1 << 20


@dataclass(frozen=True)
class Sample:
    """One measurement of one case."""

    ops_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    verbs_per_op: float | None = None
    round_trips_per_op: float | None = None


@dataclass
class Series:
    """The samples of a case over all rounds."""

    samples: list[Sample] = field(default_factory=list)

    def row(self) -> dict[str, float | int | None]:
        """Medians over the rounds, with the range of the throughput."""
        speeds = [sample.ops_per_s for sample in self.samples]
        row: dict[str, float | int | None] = {
            "ops_per_s": median(speeds),
            "ops_per_s_min": min(speeds),
            "ops_per_s_max": max(speeds),
            "rounds": len(speeds),
        }
        for name in ("p50_us", "p99_us", "p999_us", "verbs_per_op", "round_trips_per_op"):
            values = [value for s in self.samples if (value := getattr(s, name)) is not None]
            row[name] = median(values) if values else None
        return row


def time_calls(
    call: Callable[[int], object],
    seconds: float,
    *,
    operations_per_call: int = 1,
    counters: Callable[[], dict[str, int]] | None = None,
) -> Sample:
    """Runs `call(0)`, `call(1)`, … for about `seconds`.

    One half of the time is measured as a whole, without a clock reading a call, the other half
    call by call: a clock reading costs a tenth of the fastest calls.
    """
    position = _warm(call, seconds / 10)
    before = counters() if counters is not None else {}
    first = position
    started = time.perf_counter_ns()
    end = started + int(seconds / 2 * 1e9)
    while (finished := time.perf_counter_ns()) < end:
        for index in range(position, position + _CALLS_A_CHECK):
            call(index)
        position += _CALLS_A_CHECK
    calls = position - first
    speed = calls * operations_per_call / ((finished - started) / 1e9)
    latencies = _latencies(call, position, seconds / 2)
    after = counters() if counters is not None else {}
    operations = (calls + len(latencies)) * operations_per_call
    return _sample(speed, latencies, before, after, operations)


def _warm(call: Callable[[int], object], seconds: float) -> int:
    end = time.perf_counter() + seconds
    position = 0
    while position == 0 or time.perf_counter() < end:
        call(position)
        position += 1
    return position


def _latencies(call: Callable[[int], object], position: int, seconds: float) -> list[int]:
    latencies: list[int] = []
    clock = time.perf_counter_ns
    end = clock() + int(seconds * 1e9)
    finished = 0
    while finished < end and len(latencies) < _LATENCIES_MAX:
        begun = clock()
        call(position)
        finished = clock()
        latencies.append(finished - begun)
        position += 1
    return latencies


def _sample(
    speed: float,
    latencies_ns: Sequence[int],
    before: dict[str, int],
    after: dict[str, int],
    operations: int,
) -> Sample:
    ordered = sorted(latencies_ns)
    price: dict[str, float] = {}
    for name in ("verbs", "round_trips"):
        if name in after:
            price[f"{name}_per_op"] = (after[name] - before[name]) / operations
    return Sample(
        speed,
        percentile(ordered, 0.5) / 1e3,
        percentile(ordered, 0.99) / 1e3,
        percentile(ordered, 0.999) / 1e3,
        **price,
    )


def sample_of_latencies(
    latencies_ns: Sequence[int], elapsed_ns: int, batch: int, price: dict[str, float] | None = None
) -> Sample:
    """A sample from the figures of a native loop: one latency a call of `batch` operations."""
    ordered = sorted(latencies_ns)
    return Sample(
        len(ordered) * batch / (elapsed_ns / 1e9),
        percentile(ordered, 0.5) / 1e3,
        percentile(ordered, 0.99) / 1e3,
        percentile(ordered, 0.999) / 1e3,
        **(price or {}),
    )
