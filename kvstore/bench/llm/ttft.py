"""Time to the first token in real vLLM engines on the processor, with and without a store.

All engines have one small model of random weights; every answer is compared. One engine with a
store at a time runs beside the plain one: engines that wait take memory and cores too. The two take
turns, so that the machine's moods hit both alike, and each is asked once the other sleeps:

    computed   a plain engine that has nothing cached
    own cache  the same engine again: vLLM's prefix cache in its own memory
    the rest   an engine whose own cache was dropped, and that loads the prefix from a store

Runs in vLLM's environment: `build/venvs/vllm/bin/python -m kvstore.bench.main llm --figure ttft`.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from kvstore.bench.document import Row, median
from kvstore.bench.llm.engines import (
    ANSWER_S,
    VOCABULARY,
    model_and_node,
    reset,
    start_engine,
    transfer_through,
)
from kvstore.bench.llm.replay import Say
from kvstore.bench.llm.ttft_peers import PEERS
from kvstore.bench.peers.case import Unavailable
from kvstore.bench.processes import Child, Node, ProcessError

PREFIX_TOKENS: Final = 2048
SUFFIX_TOKENS: Final = 32
ROUNDS: Final = 5
_WARM_TOKENS: Final = 300
_COMPUTED: Final = "computed"
_OWN_CACHE: Final = "own cache"
_TARGET_COMPUTED: Final = 0.25
Answer = dict[str, Any]

#: How long a peer may take to store the prefix behind the first answer.
_STORE_S: Final = 2.0
#: vLLM's processes poll for a second after each step. On few cores those of another engine would be
#: measured with the one that answers.
_QUIET_S: Final = 1.2


def measure(say: Say, *, hidden: int = 768, layers: int = 8, rounds: int = ROUNDS) -> list[Row]:
    """One row a way of answering. ProcessError where vLLM is not installed."""
    pairs: dict[str, _Rounds] = {}
    left_out: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        model, node = model_and_node(stack, hidden, layers)
        say("starting an engine without a store")
        plain = start_engine(stack, _COMPUTED, model)
        for name, start in _stores(node).items():
            say(f"starting an engine with {name}")
            with contextlib.ExitStack() as beside, _or_left_out(name, left_out, plain):
                pair = _Rounds(plain, start(beside, model), random.Random(name))
                pair.store()
                for number in range(rounds + 1):
                    say(f"{name}: round {number} of {rounds}")
                    # In round 0 the engine loads for the first time.
                    pair.run(counts=number > 0)
                pairs[name] = pair
    return [
        *_rows_without_store(list(pairs.values())),
        *(_row(name, pair) for name, pair in pairs.items()),
        *(_name_row(name) | {"reason": f"not run: {why}"} for name, why in left_out.items()),
    ]


def _stores(node: Node) -> dict[str, Callable[[contextlib.ExitStack, Path], Child]]:
    """How an engine with each store is started: it ends with the stack."""

    def kvstore_over(fabric: str) -> Callable[[contextlib.ExitStack, Path], Child]:
        transfer = transfer_through(node, fabric)
        return lambda stack, model: start_engine(stack, f"kvstore {fabric}", model, transfer)

    return {f"kvstore {fabric}": kvstore_over(fabric) for fabric in ("shm", "tcp")} | PEERS


@contextlib.contextmanager
def _or_left_out(name: str, left_out: dict[str, str], plain: Child) -> Iterator[None]:
    """A peer that can't be had or fails is left out."""
    try:
        yield
    except (Unavailable, ProcessError) as error:
        if name not in PEERS or not plain.is_alive:
            raise
        left_out[name] = str(error)


class _Rounds:
    """Prompts to the plain engine and to one with a store in turns, and their answers."""

    def __init__(self, plain: Child, storing: Child, source: random.Random) -> None:
        self._plain = plain
        self._storing = storing
        self._source = source
        self._prefix = self._tokens(PREFIX_TOKENS)
        #: Of the plain engine without and with the prefix in its own cache, and of the other one.
        self.computed: list[Answer] = []
        self.own_cache: list[Answer] = []
        self.loaded: list[Answer] = []

    def store(self) -> None:
        """Have the prefix stored, and both engines do whatever they do first."""
        warm = self._tokens(_WARM_TOKENS)
        for engine in (self._plain, self._storing):
            _ask(engine, warm)
            _ask(engine, self._prompt())
        time.sleep(_STORE_S)

    def run(self, *, counts: bool) -> None:
        """Ask both, with nothing in their own caches."""
        prompt = self._prompt()
        reset(self._plain)
        reset(self._storing)
        computed = _ask(self._plain, prompt)
        # The prefix is in the engine's own cache now; the suffix must not be.
        own_cache = _ask(self._plain, self._prompt())
        loaded = _ask(self._storing, prompt)
        if counts:
            self.computed.append(computed)
            self.own_cache.append(own_cache)
            self.loaded.append(loaded)

    def _prompt(self) -> list[int]:
        return self._prefix + self._tokens(SUFFIX_TOKENS)

    def _tokens(self, count: int) -> list[int]:
        return [self._source.randrange(3, VOCABULARY) for _ in range(count)]


def _name_row(name: str) -> Row:
    tier = {_COMPUTED: None, _OWN_CACHE: "engine"}.get(name, "remote")
    return {"figure": "ttft", "engine": f"vllm, {name}", "tier": tier}


def _times_row(name: str, answers: list[Answer]) -> Row:
    return _name_row(name) | {
        "ttft_ms": 1e3 * median(answer["seconds"] for answer in answers),
        "cached_tokens": min(answer["cached"][0] for answer in answers),
    }


def _rows_without_store(pairs: list[_Rounds]) -> list[Row]:
    """Of the plain engine, in the rounds of all pairs."""
    computed = [answer for pair in pairs for answer in pair.computed]
    own_cache = [answer for pair in pairs for answer in pair.own_cache]
    return [_times_row(_COMPUTED, computed), _times_row(_OWN_CACHE, own_cache)]


def _row(name: str, pair: _Rounds) -> Row:
    row = _times_row(name, pair.loaded)
    row["same_tokens"] = same = all(
        answer["tokens"] == reference["tokens"]
        for answer, reference in zip(pair.loaded, pair.computed, strict=True)
    )
    row["ratio"] = ratio = _times_ratio(pair.loaded, pair.computed)
    row["ratio_own_cache"] = _times_ratio(pair.loaded, pair.own_cache)
    if name.startswith("kvstore"):
        row |= {"target": _TARGET_COMPUTED, "pass": same and ratio <= _TARGET_COMPUTED}
    return row


def _times_ratio(of: list[Answer], to: list[Answer]) -> float:
    """Round by round, as the machine changes from round to round."""
    pairs = zip(of, to, strict=True)
    return median(answer["seconds"] / other["seconds"] for answer, other in pairs)


def _ask(engine: Child, prompt: list[int]) -> Answer:
    """Ask once no engine does anything any more."""
    time.sleep(_QUIET_S)
    begin = time.perf_counter()
    engine.send({"prompts": [prompt], "new_tokens": 1})
    answer = engine.receive(ANSWER_S)
    answer["seconds"] = time.perf_counter() - begin
    return answer
