"""Timing loops and what is made of their samples."""

from __future__ import annotations

import time

import pytest

from kvstore.bench.document import percentile
from kvstore.bench.measure import Sample, Series, sample_of_latencies, time_calls


def test_percentiles() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 0.5) == 51
    assert percentile(values, 0.99) == 100
    assert percentile([7.0], 0.999) == 7


def test_a_call_of_known_length() -> None:
    calls: list[int] = []

    def call(index: int) -> None:
        calls.append(index)
        time.sleep(0.002)

    spent = {"verbs": 0, "round_trips": 0}

    def counters() -> dict[str, int]:
        return {"verbs": 3 * len(calls), "round_trips": len(calls)}

    assert counters() == spent
    sample = time_calls(call, 0.4, operations_per_call=4, counters=counters)
    assert calls == list(range(len(calls)))
    assert 2000 <= sample.p50_us < 20_000
    assert sample.ops_per_s <= 4 / 0.002
    # Three verbs a call of four operations.
    assert sample.verbs_per_op == pytest.approx(0.75)
    assert sample.round_trips_per_op == pytest.approx(0.25)


def test_latencies_of_a_native_loop() -> None:
    sample = sample_of_latencies([1000, 2000, 3000, 4000], 10_000, batch=2)
    assert sample.ops_per_s == pytest.approx(800_000)
    assert sample.p50_us == 3


def test_a_series_is_the_median_of_its_rounds() -> None:
    series = Series([Sample(speed, 1, 2, 3, verbs_per_op=2) for speed in (10.0, 30.0, 20.0)])
    row = series.row()
    assert (row["ops_per_s"], row["ops_per_s_min"], row["ops_per_s_max"]) == (20, 10, 30)
    assert row["rounds"] == 3
    assert row["verbs_per_op"] == 2
    assert row["round_trips_per_op"] is None
