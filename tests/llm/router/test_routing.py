"""The router's decisions: a table of situations, then many requests."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import ConfigurationError
from kvstore.llm.router import Reason, Rings, Router, Rules, Ticket

RULES = Rules(first_token_s=1.0, prefill_tokens_per_s=1000.0, block_tokens=100)
NAMES = ("a", "b", "c", "d")


def chain(*path: int) -> list[bytes]:
    return [repr(path[: depth + 1]).encode() for depth in range(len(path))]


def long_chain(prompt: int, blocks: int) -> list[bytes]:
    return chain(*([prompt] * blocks))


def send(router: Router, hashes: list[bytes], tokens: int | None = None) -> Ticket:
    ticket = router.choose(hashes, 100 * len(hashes) if tokens is None else tokens)
    assert ticket is not None
    return ticket


def served(router: Router, hashes: list[bytes]) -> Ticket:
    ticket = send(router, hashes)
    router.finish(ticket)
    return ticket


def pair_of(hashes: list[bytes]) -> set[str]:
    """The candidates of a prompt whose beginning is not hot."""
    rings = Rings()
    for name in NAMES:
        rings.add(name)
    return set(rings.candidates(hashes[0], lambda name: True))


def keep_busy(router: Router, instance: str, tokens: int) -> None:
    """Give work of `tokens` to one instance, with nothing to remember it by."""
    others = [view.name for view in router.instances() if view.name != instance]
    assert router.choose([], tokens, without=others) is not None


@dataclass(frozen=True)
class Case:
    """Work that awaits its first token, at who holds the prompt and at the pair's other one."""

    holder_waiting: int
    other_waiting: int
    outside_waiting: int
    goes_to: str
    reason: Reason


@pytest.mark.parametrize(
    "case",
    [
        Case(0, 0, 0, "holder", Reason.AFFINITY),
        # 500 tokens are held by one: 100 new ones there, 600 at the other.
        Case(900, 0, 0, "holder", Reason.AFFINITY),
        Case(901, 0, 0, "other", Reason.LATE),
        # Late at both, and not elsewhere.
        Case(2000, 1000, 0, "outside", Reason.SPILL),
        # Late everywhere: who is sooner among the pair.
        Case(2000, 1000, 900, "other", Reason.LATE),
        Case(1000, 1000, 900, "holder", Reason.AFFINITY),
    ],
)
def test_affinity_as_long_as_it_is_in_time(case: Case) -> None:
    router = Router(NAMES, RULES)
    prompt = long_chain(1, 5)
    holder = served(router, prompt).instance
    other = (pair_of(prompt) - {holder}).pop()
    for name in NAMES:
        waiting = {holder: case.holder_waiting, other: case.other_waiting}
        keep_busy(router, name, waiting.get(name, case.outside_waiting))
    ticket = send(router, [*prompt, b"new"])
    where = {holder: "holder", other: "other"}.get(ticket.instance, "outside")
    assert (where, ticket.reason) == (case.goes_to, case.reason)
    assert ticket.matched_tokens == (500 if where == "holder" else 0)


def test_of_equals_the_lighter_gets_it() -> None:
    prompt = long_chain(1, 2)
    for busy in pair_of(prompt):
        router = Router(NAMES, RULES)
        keep_busy(router, busy, 10)
        ticket = send(router, prompt)
        assert ticket.instance in pair_of(prompt) - {busy}
        assert ticket.reason is Reason.LIGHTER


def test_of_equals_with_nothing_to_compute_who_answers_fewer() -> None:
    prompt = long_chain(1, 2)
    for busy in pair_of(prompt):
        router = Router(NAMES, RULES)
        keep_busy(router, busy, 0)
        assert send(router, prompt).instance != busy


def test_what_has_no_prefix_goes_to_the_lightest() -> None:
    router = Router(NAMES, RULES)
    tickets = [send(router, [], 50) for _ in NAMES]
    assert {ticket.instance for ticket in tickets} == set(NAMES)
    assert {ticket.reason for ticket in tickets} == {Reason.NO_PREFIX}


def test_a_retry_goes_to_each_other_instance_in_turn() -> None:
    router = Router(NAMES, RULES)
    prompt = long_chain(3, 3)
    failed: list[str] = []
    for _ in NAMES:
        ticket = router.choose(prompt, 300, without=failed)
        assert ticket is not None
        router.finish(ticket)
        failed.append(ticket.instance)
    assert sorted(failed) == sorted(NAMES)
    assert router.choose(prompt, 300, without=failed) is None
    assert Router([]).choose(prompt, 300) is None


def test_the_account_is_even_after_all_requests() -> None:
    router = Router(NAMES, RULES)
    tickets = [send(router, long_chain(i, 4)) for i in range(50)]
    assert sum(view.running for view in router.instances()) == 50
    assert sum(view.waiting_tokens for view in router.instances()) == 20_000
    for ticket in tickets[:20]:
        router.first_token(ticket)
    assert sum(view.waiting_tokens for view in router.instances()) == 12_000
    router.remove(tickets[0].instance)
    for ticket in tickets * 2:
        router.finish(ticket)
    assert all(view.running == view.waiting_tokens == 0 for view in router.instances())


def test_memory_of_an_instance_is_bounded_and_keeps_beginnings() -> None:
    router = Router(["a"], Rules(remembered_blocks=10, block_tokens=100))
    served(router, long_chain(1, 8))
    served(router, long_chain(2, 6))
    (view,) = router.instances()
    assert view.remembered_blocks == 10
    assert send(router, long_chain(1, 8)).matched_tokens == 400


def test_a_death_moves_what_it_had_and_forgets_what_it_held() -> None:
    router = Router(NAMES, RULES)
    prompts = [long_chain(i, 3) for i in range(200)]
    before = [served(router, prompt).instance for prompt in prompts]
    assert router.set_alive("b", False)
    assert not router.set_alive("b", False)
    assert not router.set_alive("unknown", False)
    after = [served(router, prompt).instance for prompt in prompts]
    assert "b" not in after
    moved = [prompt for old, prompt in zip(before, prompts, strict=True) if old == "b"]
    assert 20 < len(moved) < 80
    assert [new for old, new in zip(before, after, strict=True) if old != "b"] == [
        old for old in before if old != "b"
    ]
    assert router.set_alive("b", True)
    for prompt, holder in zip(prompts, after, strict=True):
        returned = served(router, prompt)
        # Whoever took over holds it now, and keeps it if it is of the pair.
        assert returned.instance == holder if holder in pair_of(prompt) else prompt in moved


def test_a_newcomer_takes_prompts_that_are_new() -> None:
    router = Router(NAMES, RULES)
    old = [long_chain(i, 3) for i in range(200)]
    before = [served(router, prompt).instance for prompt in old]
    router.add("e")
    after = [served(router, prompt).instance for prompt in old]
    moved = sum(a != b for a, b in zip(before, after, strict=True))
    # 2 of 5 pairs have the newcomer in them; it displaces the holder in half of those.
    assert 0 < moved < 80
    fresh = Counter(send(router, long_chain(1000 + i, 3)).instance for i in range(200))
    assert fresh["e"] > 20


def zipf(source: random.Random, prefixes: int) -> int:
    weights = [1 / (rank + 1) for rank in range(prefixes)]
    return source.choices(range(prefixes), weights)[0]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1 << 30), st.sampled_from([3, 8]))
def test_zipf_prefixes_are_served_where_they_are_held_and_nobody_drowns(
    seed: int, instances: int
) -> None:
    """Requests to applications of Zipf popularity: three blocks are shared, the fourth is new."""
    source = random.Random(seed)
    in_time = 1000
    rules = Rules(first_token_s=in_time / 1000, prefill_tokens_per_s=1000.0, block_tokens=100)
    router = Router([str(i) for i in range(instances)], rules)
    running: deque[Ticket] = deque()
    matched = total = 0
    for number in range(1000):
        waiting = [view.waiting_tokens for view in router.instances()]
        application = zipf(source, 40)
        ticket = send(router, chain(application, application, application, 10_000 + number))
        matched += ticket.matched_tokens
        total += ticket.input_tokens
        # Late only where every other one would be late too.
        after = {view.name: view.waiting_tokens for view in router.instances()}
        assert after[ticket.instance] <= in_time or min(waiting) + 400 > in_time
        running.append(ticket)
        if len(running) > 4 * instances:
            router.finish(running.popleft())
    # All instances together miss each application a few times at most.
    assert matched / total > 0.6


@pytest.mark.parametrize(
    "mistake", [{"first_token_s": 0}, {"block_tokens": -1}, {"prefill_tokens_per_s": float("nan")}]
)
def test_rules_are_checked(mistake: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(mistake))):
        Rules(**mistake)  # type: ignore[arg-type]
