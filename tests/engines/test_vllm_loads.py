"""What a step that computes nothing waits for: loads that end well, fail, and come late."""

from __future__ import annotations

import threading

import pytest

from tests.engines.conftest import engine_module

engine_module("vllm")
from kvstore.llm.vllm.loads import IDLE_STEP_S, Loads  # noqa: E402

#: Waits that should end early are given so long, and are seen to end within the other.
LONG_S = 60.0
SOON_S = 20.0


def waiter(loads: Loads) -> threading.Thread:
    thread = threading.Thread(target=loads.wait, args=(LONG_S,), daemon=True)
    thread.start()
    return thread


def ends_soon(thread: threading.Thread) -> bool:
    thread.join(SOON_S)
    return not thread.is_alive()


def goes_on(thread: threading.Thread) -> bool:
    thread.join(0.2)
    return thread.is_alive()


@pytest.fixture
def loads() -> Loads:
    return Loads(several_groups=False)


def test_nothing_is_waited_for_where_no_load_is_under_way(loads: Loads) -> None:
    assert ends_soon(waiter(loads))
    loads.begin(1)
    loads.end("a", set())
    assert loads.take_ended() == ({"a"}, set())
    assert ends_soon(waiter(loads))


@pytest.mark.parametrize("failed", [set(), {3, 4}])
def test_the_first_load_that_ends_is_enough_and_is_told_once(
    loads: Loads, failed: set[int]
) -> None:
    loads.begin(2)
    waiting = waiter(loads)
    assert goes_on(waiting)
    loads.end("a", failed)
    assert ends_soon(waiting)
    assert loads.take_ended() == ({"a"}, set())
    assert loads.take_failed_blocks() == failed
    assert loads.take_ended() == (set(), set())
    assert loads.take_failed_blocks() == set()
    # The other one is waited for as well.
    waiting = waiter(loads)
    assert goes_on(waiting)
    loads.end("b", set())
    assert ends_soon(waiting)


def test_a_load_that_ended_before_is_not_waited_for(loads: Loads) -> None:
    loads.begin(2)
    loads.end("a", set())
    assert ends_soon(waiter(loads))
    assert loads.take_ended() == ({"a"}, set())
    loads.end("b", set())


def test_a_late_load_keeps_no_step_and_is_told_when_it_ends(loads: Loads) -> None:
    assert IDLE_STEP_S <= 0.005
    loads.begin(1)
    waiting = threading.Thread(target=loads.wait, daemon=True)
    waiting.start()
    assert ends_soon(waiting)
    assert loads.take_ended() == (set(), set())
    loads.end("a", {7})
    assert loads.take_ended() == ({"a"}, set())
    assert loads.take_failed_blocks() == {7}


def test_with_several_groups_requests_fail_as_a_whole() -> None:
    loads = Loads(several_groups=True)
    loads.begin(2)
    loads.end("a", {1})
    loads.end("b", set())
    assert loads.take_ended() == ({"a", "b"}, {"a"})
    assert loads.take_failed_blocks() == set()
