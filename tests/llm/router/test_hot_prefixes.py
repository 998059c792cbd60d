"""Hot prefixes: which part of a prompt decides where it goes."""

from __future__ import annotations

from kvstore.llm.router import HotPrefixes


def chain(*path: int) -> list[bytes]:
    """Chained hashes: each names the whole path up to it."""
    return [repr(path[: depth + 1]).encode() for depth in range(len(path))]


def test_a_prefix_of_few_is_told_by_its_first_block() -> None:
    prefixes = HotPrefixes()
    for user in range(500):
        assert prefixes.observe(chain(user, 1, 2), 8) == 1
    assert len(prefixes) == 0


def test_a_common_beginning_is_told_apart_by_what_follows() -> None:
    prefixes = HotPrefixes(window_requests=200)
    for user in range(400):
        prefixes.observe(chain(0, 1, user), 8)
    # Both common blocks are hot; the users' own are not.
    assert prefixes.observe(chain(0, 1, 7), 8) == 3
    assert len(prefixes) == 2


def test_a_short_prompt_is_told_by_all_that_it_has() -> None:
    prefixes = HotPrefixes()
    for _ in range(300):
        assert prefixes.observe(chain(0), 8) == 1


def test_what_cools_is_cold_below_half_of_what_made_it_hot() -> None:
    prefixes = HotPrefixes(window_requests=100)
    for user in range(100):
        prefixes.observe(chain(0, user), 10)
    assert prefixes.observe(chain(0, 1), 10) == 2
    # Between 1/n and 2/n it stays as it was.
    for number in range(300):
        prefixes.observe(chain(0, number) if number % 7 == 0 else chain(number + 1, 0), 10)
    assert prefixes.observe(chain(0, 1), 10) == 2
    for number in range(100):
        prefixes.observe(chain(number + 1, 0), 10)
    assert prefixes.observe(chain(0, 1), 10) == 1
    assert len(prefixes) == 0


def test_two_instances_have_nothing_hot() -> None:
    prefixes = HotPrefixes()
    for user in range(2000):
        assert prefixes.observe(chain(0, user), 2) == 1


def test_memory_is_bounded_by_the_window() -> None:
    prefixes = HotPrefixes(window_requests=50)
    for number in range(5000):
        prefixes.observe(chain(number % 2, number, 1, 2, 3), 16)
    assert len(prefixes._counts) <= 64 * 50
    assert sum(prefixes._counts.values()) == sum(map(len, prefixes._window))
