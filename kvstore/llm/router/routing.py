"""The decision: which instance a request goes to, and the account of what each one has to do.

Two hashes of a prompt's beginning name two candidates. Of these the one that holds more of the
prompt gets it; unless it could not give the first token in time, then the one that is sooner done
(DualMap). Beyond the paper: where neither would be in time, the request leaves its pair for the
instance that is, if there is one. Ties go to the lighter instance.

What an instance holds is a hint: the blocks of the prompts that it was sent last. It may have
evicted them, and it may load others from a store; a wrong hint costs time, nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from kvstore.errors import ConfigurationError
from kvstore.llm.router.hot_prefixes import HotPrefixes
from kvstore.llm.router.rings import Rings


class Reason(Enum):
    """Why a request went where it went."""

    AFFINITY = "affinity"
    """It holds more of the prompt than the other candidate."""
    LIGHTER = "lighter"
    """Both hold as much, and it has less to do."""
    LATE = "late"
    """The one that holds more would be late; this one is sooner."""
    SPILL = "spill"
    """Both candidates would be late; this one is none of them."""
    ONLY = "only"
    """No other candidate lives."""
    NO_PREFIX = "no_prefix"
    """The request has nothing to tell it by; this is the lightest instance."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a router goes by.

    Args:
        first_token_s: How long a prompt may wait for its first token before load counts more than
            what an instance holds.
        prefill_tokens_per_s: How fast an instance computes prompts. A wrong figure moves the point
            where load counts more, nothing else.
        block_tokens: Tokens that one hash of a prompt stands for.
        remembered_blocks: Blocks remembered of each instance: about what its cache holds.
        window_requests: Requests that the shares of prefixes are taken over.
    """

    first_token_s: float = 5.0
    prefill_tokens_per_s: float = 10_000.0
    block_tokens: int = 512
    remembered_blocks: int = 16_384
    window_requests: int = 1024

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} is above 0, not {getattr(self, name)}")


@dataclass(slots=True, eq=False)
class _Instance:
    name: str
    alive: bool = True
    #: Tokens of prompts that await their first token.
    waiting_tokens: int = 0
    #: Requests that have not ended.
    running: int = 0
    blocks: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def matched(self, hashes: Sequence[bytes]) -> int:
        for count, block in enumerate(hashes):
            if block not in self.blocks:
                return count
        return len(hashes)

    def remember(self, hashes: Sequence[bytes], limit: int) -> None:
        # The end of a chain is forgotten first: it is of no use without its beginning.
        for block in reversed(hashes):
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > limit:
            self.blocks.popitem(last=False)


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance as the router sees it."""

    name: str
    alive: bool
    waiting_tokens: int
    running: int
    remembered_blocks: int


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was sent to an instance: `Router.finish` takes it back, once and surely."""

    instance: str
    reason: Reason
    input_tokens: int
    matched_tokens: int
    _at: _Instance
    _waiting_tokens: int
    _running: bool = True


class Router:
    """Chooses instances for prompts. No I/O, no clock, not safe among threads.

    Args:
        instances: Names, such as URLs. All live until `set_alive` says otherwise.
        rules: See Rules.
    """

    def __init__(self, instances: Iterable[str] = (), rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self._instances: dict[str, _Instance] = {}
        self._rings = Rings()
        self._hot = HotPrefixes(self.rules.window_requests)
        for name in instances:
            self.add(name)

    def add(self, name: str) -> None:
        """Add an instance; a share of the prefixes moves to it, the others stay."""
        if name not in self._instances:
            self._instances[name] = _Instance(name)
            self._rings.add(name)

    def remove(self, name: str) -> None:
        """Remove an instance; its prefixes move, each to its other candidate or a new one."""
        if self._instances.pop(name, None) is not None:
            self._rings.remove(name)

    def set_alive(self, name: str, alive: bool) -> bool:
        """Say whether an instance can be sent requests; return whether that is news.

        One that died is taken to have lost what it held; its place on the rings waits for it.
        """
        instance = self._instances.get(name)
        if instance is None or instance.alive == alive:
            return False
        instance.alive = alive
        instance.blocks.clear()
        return True

    def choose(
        self, hashes: Sequence[bytes], input_tokens: int, *, without: Collection[str] = ()
    ) -> Ticket | None:
        """Choose an instance and enter the request in its account; None if none lives.

        Args:
            hashes: Chained hashes of the prompt's blocks, from its beginning; they may cover less
                than the prompt.
            input_tokens: The prompt's length.
            without: Instances that failed this request already.
        """
        live = [
            instance
            for instance in self._instances.values()
            if instance.alive and instance.name not in without
        ]
        if not live:
            return None
        block_tokens = self.rules.block_tokens
        matched = {
            instance.name: min(block_tokens * instance.matched(hashes), input_tokens)
            for instance in live
        }

        def ready_tokens(instance: _Instance) -> tuple[int, int]:
            """What is computed until this prompt's first token; then, who runs fewer requests."""
            new = input_tokens - matched[instance.name]
            return instance.waiting_tokens + new, instance.running

        instance, reason = self._decide(hashes, live, matched, ready_tokens)
        instance.remember(hashes, self.rules.remembered_blocks)
        waiting = input_tokens - matched[instance.name]
        instance.waiting_tokens += waiting
        instance.running += 1
        return Ticket(
            instance.name, reason, input_tokens, matched[instance.name], instance, waiting
        )

    def _decide(
        self,
        hashes: Sequence[bytes],
        live: list[_Instance],
        matched: dict[str, int],
        ready_tokens: Callable[[_Instance], tuple[int, int]],
    ) -> tuple[_Instance, Reason]:
        if not hashes:
            return min(live, key=ready_tokens), Reason.NO_PREFIX
        deciding = self._hot.observe(hashes, len(live))
        names = self._rings.candidates(hashes[deciding - 1], matched.__contains__)
        pair = [self._instances[name] for name in names]
        if len(pair) == 1:
            return pair[0], Reason.ONLY
        lighter = min(pair, key=ready_tokens)
        fuller = max(pair, key=lambda instance: matched[instance.name])
        in_time = self.rules.first_token_s * self.rules.prefill_tokens_per_s
        if len({matched[name] for name in names}) == 1:
            choice, reason = lighter, Reason.LIGHTER
        elif ready_tokens(fuller)[0] <= in_time or fuller is lighter:
            choice, reason = fuller, Reason.AFFINITY
        else:
            choice, reason = lighter, Reason.LATE
        if ready_tokens(choice)[0] > in_time:
            soonest = min(live, key=ready_tokens)
            if ready_tokens(soonest)[0] <= in_time:
                return soonest, Reason.SPILL
        return choice, reason

    def first_token(self, ticket: Ticket) -> None:
        """Say that the prompt is computed: the first byte of its answer is there."""
        ticket._at.waiting_tokens -= ticket._waiting_tokens
        ticket._waiting_tokens = 0

    def finish(self, ticket: Ticket) -> None:
        """Say that the request ended, however it did; more often than once does no harm."""
        self.first_token(ticket)
        ticket._at.running -= ticket._running
        ticket._running = False

    def instances(self) -> list[InstanceView]:
        """Return what is known of each instance."""
        return [
            InstanceView(i.name, i.alive, i.waiting_tokens, i.running, len(i.blocks))
            for i in self._instances.values()
        ]
