"""Time to the first token in real vLLM engines on the processor, with and without a store.

All engines have one small model of random weights; every answer is compared. They take turns, so
that the machine's moods hit all alike, and each is asked once the others sleep:

    computed   a plain engine that has nothing cached
    own cache  the same engine again: vLLM's prefix cache in its own memory
    the rest   an engine whose own cache was dropped, and that loads the prefix from a store

Runs in vLLM's environment: `build/venvs/vllm/bin/python -m kvstore.bench.main llm --figure ttft`.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
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
from kvstore.bench.processes import Child, ProcessError

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
    with contextlib.ExitStack() as stack:
        model, node = model_and_node(stack, hidden, layers)
        say("starting an engine without a store")
        engines = {_COMPUTED: start_engine(stack, _COMPUTED, model)}
        for fabric in ("shm", "tcp"):
            name = f"kvstore {fabric}"
            say(f"starting an engine with {name}")
            engines[name] = start_engine(stack, name, model, transfer_through(node, fabric))
        left_out: dict[str, str] = {}
        for name, start in PEERS.items():
            say(f"starting an engine with {name}")
            try:
                engines[name] = start(stack, model)
            except Unavailable as error:
                left_out[name] = str(error)
        turns = _Rounds(engines)
        turns.store()
        for number in range(rounds + 1):
            say(f"round {number} of {rounds}")
            turns.run()
    # In round 0 each engine loads for the first time.
    answers = {name: given[1:] for name, given in turns.answers.items()}
    left_out |= turns.left_out
    return [
        *(_row(name, answers) for name in answers),
        *(_name_row(name) | {"reason": f"not run: {left_out[name]}"} for name in left_out),
    ]


class _Rounds:
    """Prompts to all engines in turns, and their answers. A peer that fails is left out."""

    def __init__(self, engines: dict[str, Child]) -> None:
        self._engines = dict(engines)
        self._source = random.Random(1)
        self._prefix = self._tokens(PREFIX_TOKENS)
        ways = (_COMPUTED, _OWN_CACHE, *engines)
        self.answers: dict[str, list[Answer]] = {way: [] for way in ways}
        self.left_out: dict[str, str] = {}

    def store(self) -> None:
        """Have each engine store the prefix, and whatever an engine does first."""
        warm = self._tokens(_WARM_TOKENS)
        for name, engine in self._each():
            with self._or_left_out(name):
                _ask(engine, warm)
                _ask(engine, self._prompt())
        time.sleep(_STORE_S)

    def run(self) -> None:
        """Ask every engine once, with nothing in its own cache."""
        prompt = self._prompt()
        for name, engine in self._each():
            with self._or_left_out(name):
                reset(engine)
        for name, engine in self._each():
            with self._or_left_out(name):
                self.answers[name].append(_ask(engine, prompt))
                if name == _COMPUTED:
                    # The prefix is in the engine's own cache now; the suffix must not be.
                    self.answers[_OWN_CACHE].append(_ask(engine, self._prompt()))

    def _each(self) -> list[tuple[str, Child]]:
        return list(self._engines.items())

    @contextlib.contextmanager
    def _or_left_out(self, name: str) -> Iterator[None]:
        try:
            yield
        except ProcessError as error:
            if name not in PEERS:
                raise
            del self._engines[name], self.answers[name]
            self.left_out[name] = str(error)

    def _prompt(self) -> list[int]:
        return self._prefix + self._tokens(SUFFIX_TOKENS)

    def _tokens(self, count: int) -> list[int]:
        return [self._source.randrange(3, VOCABULARY) for _ in range(count)]


def _name_row(name: str) -> Row:
    tier = {_COMPUTED: None, _OWN_CACHE: "engine"}.get(name, "remote")
    return {"figure": "ttft", "engine": f"vllm, {name}", "tier": tier}


def _row(name: str, answers: dict[str, list[Answer]]) -> Row:
    computed = answers[_COMPUTED]
    row = _name_row(name) | {
        "ttft_ms": 1e3 * median(answer["seconds"] for answer in answers[name]),
        "cached_tokens": min(answer["cached"][0] for answer in answers[name]),
    }
    if name == _OWN_CACHE:
        return row
    same = all(
        answer["tokens"] == reference["tokens"]
        for answer, reference in zip(answers[name], computed, strict=True)
    )
    row["same_tokens"] = same
    if name == _COMPUTED:
        return row
    row["ratio"] = ratio = _times_ratio(answers[name], computed)
    row["ratio_own_cache"] = _times_ratio(answers[name], answers[_OWN_CACHE])
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
