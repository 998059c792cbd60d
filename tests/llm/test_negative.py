"""The memory of failed loads: back-off, forgiveness, bounds."""

from __future__ import annotations

from kvstore.llm.negative import NegativeCache


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(clock: Clock, blocks_max: int = 100) -> NegativeCache:
    return NegativeCache(first_s=1.0, longest_s=4.0, blocks_max=blocks_max, clock=clock)


def test_a_failed_block_ends_what_is_offered_for_a_while() -> None:
    clock = Clock()
    cache = made(clock)
    keys = [b"a", b"b", b"c"]
    assert cache.leading(keys) == 3
    cache.add([b"b"])
    assert cache.leading(keys) == 1
    clock.now += 0.99
    assert cache.leading(keys) == 1
    clock.now += 0.02
    assert cache.leading(keys) == 3


def test_the_back_off_doubles_up_to_its_bound_and_is_forgotten() -> None:
    clock = Clock()
    cache = made(clock)
    lengths = []
    for _ in range(4):
        cache.add([b"a"])
        lengths.append(cache.refused_for_s(b"a"))
        clock.now += lengths[-1]
    assert lengths == [1.0, 2.0, 4.0, 4.0]
    clock.now += 100
    cache.add([b"a"])
    assert cache.refused_for_s(b"a") == 1.0


def test_a_store_or_a_good_load_forgives() -> None:
    clock = Clock()
    cache = made(clock)
    cache.add([b"a", b"b"])
    cache.forgive([b"a"])
    assert cache.leading([b"a", b"b"]) == 1
    assert cache.refused_for_s(b"a") == 0


def test_it_is_bounded_and_the_oldest_failures_go() -> None:
    clock = Clock()
    cache = made(clock, blocks_max=10)
    cache.add(b"%d" % i for i in range(25))
    assert len(cache) == 10
    assert cache.refused_for_s(b"14") == 0
    assert cache.refused_for_s(b"15") > 0
