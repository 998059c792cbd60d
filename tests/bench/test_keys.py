"""Keys and access orders of the benchmarks."""

from __future__ import annotations

from collections import Counter

import pytest

from kvstore.bench.keys import (
    KEY_BYTES,
    batches_of,
    make_keys,
    make_value,
    uniform_order,
    zipf_order,
)


def test_keys_are_distinct_and_of_one_length() -> None:
    keys = make_keys(1000)
    assert len(set(keys)) == 1000
    assert {len(key) for key in keys} == {KEY_BYTES}


def test_values_have_the_size_and_are_the_same_each_time() -> None:
    assert len(make_value(1025)) == 1025
    assert make_value(64) == make_value(64)


def test_a_uniform_order_reaches_every_key() -> None:
    counts = Counter(uniform_order(50, 20_000))
    assert set(counts) == set(range(50))
    assert max(counts.values()) < 2 * min(counts.values())


@pytest.mark.parametrize("theta", [0.5, 0.99, 1.2])
def test_a_zipf_order_has_the_exponent(theta: float) -> None:
    length = 50_000
    counts = [count for _, count in Counter(zipf_order(100, length, theta)).most_common()]
    total = sum(rank**-theta for rank in range(1, 101))
    for rank in (1, 2, 10):
        assert counts[rank - 1] / length == pytest.approx(rank**-theta / total, rel=0.15)


def test_batches_have_distinct_keys() -> None:
    batches = batches_of(zipf_order(100, 5000, 0.99), 16)
    assert all(len(set(batch)) == len(batch) == 16 for batch in batches)
    with pytest.raises(ValueError, match="fewer than 16"):
        batches_of([1, 2, 3], 16)
