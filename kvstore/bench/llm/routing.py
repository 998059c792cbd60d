"""A trace sent to several instances by different routers: what their caches hit, who waits.

Instances are bookkeeping: each computes prompts one after the other at one rate, and keeps an exact
LRU cache of its own. The rate is such that computing everything, with no cache, would keep all
instances busy from the trace's beginning to its end.

    round-robin    each in turn
    least-loaded   who has fewest tokens to compute
    one-choice     the first of the two candidates, always (consistent hashing)
    two-choice     `kvstore.llm.router.Router`
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from kvstore.bench.document import Row, percentile
from kvstore.bench.llm.policies import Lru
from kvstore.bench.llm.traces import Prompt, Trace
from kvstore.llm.router import HotPrefixes, Rings, Router, Rules, Ticket


class _Chooser(Protocol):
    """A way to choose; `done` hears when a prompt is computed."""

    def choose(self, hashes: Sequence[bytes], prompt: Prompt, waiting: list[int]) -> int: ...

    def done(self, number: int) -> None: ...


class _RoundRobin:
    def __init__(self) -> None:
        self._next = -1

    def choose(self, hashes: Sequence[bytes], prompt: Prompt, waiting: list[int]) -> int:
        self._next += 1
        return self._next % len(waiting)

    def done(self, number: int) -> None:
        pass


class _LeastLoaded(_RoundRobin):
    def choose(self, hashes: Sequence[bytes], prompt: Prompt, waiting: list[int]) -> int:
        return waiting.index(min(waiting))


class _OneChoice(_RoundRobin):
    """With the same care for hot prefixes as two choices have."""

    def __init__(self, instances: int) -> None:
        self._hot = HotPrefixes()
        self._rings = Rings()
        for index in range(instances):
            self._rings.add(str(index))

    def choose(self, hashes: Sequence[bytes], prompt: Prompt, waiting: list[int]) -> int:
        if not hashes:
            return waiting.index(min(waiting))
        depth = self._hot.observe(hashes, len(waiting))
        return int(self._rings.candidates(hashes[depth - 1], lambda name: True)[0])


class _TwoChoice:
    def __init__(self, instances: int, rules: Rules) -> None:
        self._router = Router(map(str, range(instances)), rules)
        self._tickets: list[Ticket] = []

    def choose(self, hashes: Sequence[bytes], prompt: Prompt, waiting: list[int]) -> int:
        ticket = self._router.choose(hashes, prompt.input_tokens)
        assert ticket is not None
        self._tickets.append(ticket)
        return int(ticket.instance)

    def done(self, number: int) -> None:
        self._router.finish(self._tickets[number])


ROUTERS: Final = ("round-robin", "least-loaded", "one-choice", "two-choice")


def replay(trace: Trace, router: str, instances: int, capacity_blocks: int) -> Row:
    """Send a trace to `instances` of `capacity_blocks` each; `router` is one of `ROUTERS`."""
    duration_s = trace.prompts[-1].arrival_s - trace.prompts[0].arrival_s or 1.0
    tokens_per_s = trace.input_tokens / duration_s / instances
    rules = Rules(
        prefill_tokens_per_s=tokens_per_s,
        block_tokens=trace.block_tokens,
        remembered_blocks=capacity_blocks,
    )
    makers: dict[str, Callable[[], _Chooser]] = {
        "round-robin": _RoundRobin,
        "least-loaded": _LeastLoaded,
        "one-choice": lambda: _OneChoice(instances),
        "two-choice": lambda: _TwoChoice(instances, rules),
    }
    chooser = makers[router]()
    caches = [Lru([], capacity_blocks) for _ in range(instances)]
    waiting = [0] * instances
    free_s = [0.0] * instances
    computed = [0] * instances
    first_token_s: list[float] = []
    #: When a prompt is computed, its number, its instance and its new tokens.
    running: list[tuple[float, int, int, int]] = []
    for number, prompt in enumerate(trace.prompts):
        while running and running[0][0] <= prompt.arrival_s:
            _, ended, index, tokens = heapq.heappop(running)
            waiting[index] -= tokens
            chooser.done(ended)
        hashes = [block.to_bytes(8, "little") for block in prompt.blocks]
        index = chooser.choose(hashes, prompt, waiting)
        matched = caches[index].request(prompt.blocks)
        new = prompt.input_tokens - trace.hit_tokens(prompt, matched)
        free_s[index] = max(free_s[index], prompt.arrival_s) + new / tokens_per_s
        heapq.heappush(running, (free_s[index], number, index, new))
        waiting[index] += new
        computed[index] += new
        first_token_s.append(free_s[index] - prompt.arrival_s)
    first_token_s.sort()
    return {
        "trace": trace.name,
        "figure": "routing",
        "policy": router,
        "instances": instances,
        "capacity_blocks": capacity_blocks,
        "token_hit_ratio": 1 - sum(computed) / trace.input_tokens,
        "busiest_ratio": max(computed) / (sum(computed) / instances) if sum(computed) else 1.0,
        "p50_ms": 1e3 * percentile(first_token_s, 0.5),
        "p99_ms": 1e3 * percentile(first_token_s, 0.99),
        "late_ratio": sum(s > rules.first_token_s for s in first_token_s) / len(first_token_s),
    }
