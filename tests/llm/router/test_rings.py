"""The rings: who the candidates are, and who moves when an instance comes, leaves or dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.llm.router import Rings

KEYS = [b"prefix %d" % i for i in range(1000)]


def every(_name: str) -> bool:
    return True


def rings_of(names: set[str]) -> Rings:
    rings = Rings()
    for name in names:
        rings.add(name)
    return rings


def pairs(rings: Rings, usable: Callable[[str], bool] = every) -> list[list[str]]:
    return [rings.candidates(key, usable) for key in KEYS]


def names(count: int) -> set[str]:
    return {f"http://instance-{i}:8000" for i in range(count)}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8])
def test_two_different_candidates_as_far_as_there_are_two(count: int) -> None:
    for pair in pairs(rings_of(names(count))):
        assert len(pair) == len(set(pair)) == min(2, count)


def test_every_instance_is_a_candidate_of_its_share() -> None:
    for place in (0, 1):
        shares = Counter(pair[place] for pair in pairs(rings_of(names(8))))
        assert len(shares) == 8
        assert max(shares.values()) < 1.6 * len(KEYS) / 8
        assert min(shares.values()) > 0.5 * len(KEYS) / 8


def test_the_second_candidate_does_not_follow_from_the_first() -> None:
    found = pairs(rings_of(names(8)))
    first = found[0][0]
    others = Counter(pair[1] for pair in found if pair[0] == first)
    assert len(others) == 7


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 9), st.integers(0, 8))
def test_who_leaves_moves_its_own_pairs_only_and_their_other_members_stay(
    count: int, leaver: int
) -> None:
    everyone = names(count)
    gone = sorted(everyone)[leaver % count]
    rings = rings_of(everyone)
    before = pairs(rings)
    without = pairs(rings, lambda name: name != gone)
    rings.remove(gone)
    after = pairs(rings)
    assert without == after
    for old, new in zip(before, after, strict=True):
        if gone in old:
            assert set(old) - {gone} <= set(new)
        else:
            assert old == new
    rings.add(gone)
    assert pairs(rings) == before


def test_the_order_of_arrival_is_of_no_account() -> None:
    one, other = Rings(), Rings()
    for name in sorted(names(5)):
        one.add(name)
    for name in sorted(names(5), reverse=True):
        other.add(name)
        other.add(name)
    assert pairs(one) == pairs(other)
    assert len(one) == len(other) == 5


def test_nobody_is_usable() -> None:
    assert rings_of(names(3)).candidates(b"key", lambda name: False) == []
