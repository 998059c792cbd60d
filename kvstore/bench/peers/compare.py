"""Starts the systems, measures their cases in interleaved rounds, and judges the ratios."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kvstore.bench.document import Row, median
from kvstore.bench.measure import Sample, Series
from kvstore.bench.peers.case import Case, System, Unavailable, Work
from kvstore.bench.peers.measures import Measure, Ratio

Say = Callable[[str], None]


def _starters() -> dict[str, Callable[[Work], System]]:
    from kvstore.bench.peers.kvstore import KvstoreSystem
    from kvstore.bench.peers.lmdb import LmdbSystem
    from kvstore.bench.peers.memcached import MemcachedSystem
    from kvstore.bench.peers.memory import MemorySystem
    from kvstore.bench.peers.mooncake import MooncakeSystem
    from kvstore.bench.peers.redis import RedisSystem
    from kvstore.bench.peers.socket import SocketSystem

    return {
        "kvstore": KvstoreSystem,
        "redis": RedisSystem,
        "memcached": MemcachedSystem,
        "lmdb": LmdbSystem,
        "mooncake": MooncakeSystem,
        "socket": SocketSystem,
        "memcpy": MemorySystem,
    }


class Comparison:
    """One run: which systems work here, the samples of every case, and the rows made of them."""

    def __init__(
        self, measures: Sequence[Measure], wanted: Iterable[str], *, rounds: int, seconds: float
    ) -> None:
        self._measures = measures
        self._wanted = set(wanted)
        self._rounds = rounds
        self._seconds = seconds
        self._systems: dict[str, System] = {}
        self.reasons: dict[str, str] = {}
        self._series: dict[Case, Series] = {}
        # Samples by round: a ratio is taken within a round, so that drift cancels out.
        self._by_round: list[dict[Case, Sample]] = []

    def run(self, say: Say) -> list[Row]:
        """Measures everything; `say` hears of progress."""
        with contextlib.ExitStack() as stack:
            self._start(stack, say)
            for number in range(self._rounds):
                self._by_round.append({})
                for measure in self._measures:
                    say(f"round {number + 1} of {self._rounds}: {measure.title}")
                    for case in measure.cases:
                        self._measure(case)
        return self._rows()

    def _start(self, stack: contextlib.ExitStack, say: Say) -> None:
        needed = {case.system for measure in self._measures for case in measure.cases}
        work = Work()
        for name, starter in _starters().items():
            if name not in needed:
                continue
            if name not in self._wanted:
                self.reasons[name] = "left out by --only"
                continue
            say(f"starting {name}")
            try:
                self._systems[name] = starter(work)
                stack.callback(self._systems[name].close)
            except (Unavailable, ImportError) as error:
                self.reasons[name] = str(error)
                say(f"{name} can't run here: {error}")

    def _measure(self, case: Case) -> None:
        system = self._systems.get(case.system)
        if system is None:
            return
        try:
            sample = system.measure(case, self._seconds)
        except Exception as error:
            # One system that breaks ends its own rows, with the reason, and not the comparison.
            self._systems.pop(case.system)
            self.reasons[case.system] = f"failed: {type(error).__name__}: {error}"
            return
        self._series.setdefault(case, Series()).samples.append(sample)
        self._by_round[-1][case] = sample

    def _rows(self) -> list[Row]:
        rows: list[Row] = []
        for measure in self._measures:
            for case in measure.cases:
                rows.append(self._case_row(measure, case))
            rows.extend(self._ratio_row(measure, ratio) for ratio in measure.ratios)
        return rows

    def _case_row(self, measure: Measure, case: Case) -> Row:
        row: Row = {"kind": "measurement", "measure": measure.name, **_identity(case)}
        series = self._series.get(case)
        if series is not None:
            row.update(series.row())
            row["bytes_per_s"] = row["ops_per_s"] * case.value_bytes
        else:
            row.update(dict.fromkeys(("ops_per_s", "p50_us", "p99_us", "p999_us")))
            row.update(dict.fromkeys(("verbs_per_op", "round_trips_per_op")))
        if case.system in self.reasons:
            row["reason"] = self.reasons[case.system]
        return row

    def _ratio_row(self, measure: Measure, ratio: Ratio) -> Row:
        row: Row = {"kind": "ratio", "measure": measure.name, **_identity(ratio.case)}
        own = self._series.get(ratio.case)
        row.update(own.row() if own else dict.fromkeys(("ops_per_s", "p50_us", "p99_us")))
        row.setdefault("verbs_per_op", None)
        row.setdefault("round_trips_per_op", None)
        against = ratio.against
        row.update(
            against=" ".join(
                part
                for part in (against.system, against.fabric, against.operation, against.variant)
                if part
            ),
            figure=ratio.figure,
            target=ratio.target,
            comparison="at_least" if ratio.at_least else "at_most",
        )
        values = [
            getattr(samples[ratio.case], ratio.figure) / getattr(samples[against], ratio.figure)
            for samples in self._by_round
            if ratio.case in samples and against in samples
        ]
        if not values:
            reasons = [self.reasons.get(case.system) for case in (ratio.case, against)]
            return {**row, "ratio": None, "pass": None, "reason": next(filter(None, reasons), "")}
        value = median(values)
        met = value >= ratio.target if ratio.at_least else value <= ratio.target
        row.update({"ratio": value, "ratio_min": min(values), "ratio_max": max(values)})
        return {**row, "pass": met}


def _identity(case: Case) -> dict[str, Any]:
    return dataclasses.asdict(case)
