"""Flights within one process: turns, deadlines, failures, and what a refused block does."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import kvstore
import kvstore.aio
from kvstore.llm import AsyncPrefixCache, Limits, Namespace, PrefixCache, block_hashes
from kvstore.llm.single_flight import Flights, abandon
from tests.support.nodes import start_node

HASHES = block_hashes(range(16 * 6), 16)
BLOCKS = [bytes([i]) * 1024 for i in range(6)]


@pytest.fixture
def cache(store: kvstore.Store, namespace: Namespace) -> PrefixCache:
    return PrefixCache(store, namespace, limits=Limits(flight_s=20))


def test_what_is_there_needs_no_turn(cache: PrefixCache) -> None:
    cache.put(HASHES, BLOCKS)
    with cache.flight(HASHES) as flight:
        assert (flight.matched, flight.leads, flight.waited) == (6, False, False)
    assert cache.flight([]).matched == 0


def test_threads_compute_once_each_block_that_they_share(cache: PrefixCache) -> None:
    """Prompts of one beginning and different ends: the beginning is computed once."""
    ends = [block_hashes([*range(16 * 6), *range(i, i + 32)], 16) for i in range(4)]
    computed: list[bytes] = []
    began = threading.Barrier(4)

    def serve(hashes: list[bytes]) -> None:
        began.wait()
        with cache.flight(hashes) as flight:
            computed.extend(hashes[flight.matched :])
            cache.put(hashes[flight.matched :], [b"x" * 64] * (len(hashes) - flight.matched))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(serve, hashes) for hashes in ends]:
            done.result()
    assert sorted(computed) == sorted({hash_ for hashes in ends for hash_ in hashes})
    assert cache.stats().flights_led == 4


def test_a_deadline_ends_the_wait(cache: PrefixCache) -> None:
    with cache.flight(HASHES) as first:
        assert first.leads
        cache.put(HASHES[1:2], BLOCKS[:1])
        late = cache.flight(HASHES, timeout_s=0.05)
        assert (late.matched, late.leads, late.late) == (0, False, True)
        # A longer prompt with the same beginning waits for the same lock.
        assert cache.flight([*HASHES, b"more"], timeout_s=0.05).late
        # Another prompt does not.
        assert cache.flight([b"other"]).leads
    assert cache.flight(HASHES, timeout_s=0).matched == 0
    stats = cache.stats()
    assert (stats.flights_led, stats.flights_joined, stats.flights_late) == (2, 0, 2)


def test_the_deadline_is_below_the_cost_of_computing(
    store: kvstore.Store, namespace: Namespace
) -> None:
    limits = Limits(flight_s=20, prefill_tokens_per_s=1000.0)
    cache = PrefixCache(store, namespace, limits=limits)
    assert cache._core.flight_timeout_s(10, None) == pytest.approx(0.16)
    assert cache._core.flight_timeout_s(10_000, None) == 20
    with cache.flight(HASHES):
        assert cache.flight(HASHES).late


def test_a_refused_block_is_computed_again(cache: PrefixCache, store: kvstore.Store) -> None:
    cache.put(HASHES, BLOCKS)
    cache.refuse(HASHES[2:3])
    with cache.flight(HASHES) as flight:
        assert (flight.matched, flight.leads) == (2, True)
        cache.put(HASHES[2:], BLOCKS[2:])
    assert cache.flight(HASHES).matched == 6


def test_a_flight_that_nobody_wants_any_more_lets_others_go(
    cache: PrefixCache, store: kvstore.Store
) -> None:
    flights = Flights(store)
    with cache.flight(HASHES):
        waiting = flights.begin(lambda: cache._look(HASHES), 20)
        assert not waiting.done()
        abandon(waiting)
    waiting.result(20)
    with cache.flight(HASHES) as flight:
        assert flight.leads


def test_more_waits_than_there_is_room_for_do_not_wait(
    cache: PrefixCache, store: kvstore.Store
) -> None:
    none_may = Flights(store, waiting_max=0)
    with cache.flight(HASHES):
        assert none_may.join(lambda: cache._look(HASHES), 20).late


def test_without_locks_everybody_computes(namespace: Namespace) -> None:
    with start_node() as node, kvstore.connect(node.target) as store:
        cache = PrefixCache(store, namespace)
        node.kill()
        flight = cache.flight(HASHES)
        assert (flight.matched, flight.leads, flight.waited) == (0, False, False)


def test_the_asynchronous_form(namespace: Namespace) -> None:
    async def scenario(target: str) -> None:
        async with await kvstore.aio.connect(target) as opened:
            cache = AsyncPrefixCache(opened, namespace, limits=Limits(flight_s=20))
            first = await cache.flight(HASHES)
            assert first.leads
            second = asyncio.create_task(cache.flight(HASHES))
            given_up = asyncio.create_task(cache.flight(HASHES))
            await asyncio.sleep(0.05)  # or the cancellation comes before the wait
            given_up.cancel()
            await cache.put(HASHES, BLOCKS)
            first.end()
            flight = await second
            assert (flight.matched, flight.leads, flight.waited) == (6, False, True)
            with pytest.raises(asyncio.CancelledError):
                await given_up
            stats = cache.stats()
            assert (stats.flights_led, stats.flights_joined) == (1, 1)

    with start_node() as node:
        asyncio.run(scenario(node.target))
