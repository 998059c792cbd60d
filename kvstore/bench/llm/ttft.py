"""Time to the first token in real vLLM engines on the processor, with and without a store.

All engines have one small model of random weights; every answer is compared. They take turns, so
that the machine's moods hit all alike:

    computed   a plain engine that has nothing cached
    own cache  the same engine again: vLLM's prefix cache in its own memory
    the rest   an engine whose own cache was dropped, and that loads the prefix from a store

Runs in vLLM's environment: `build/venvs/vllm/bin/python -m kvstore.bench.main llm --figure ttft`.
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import Any, Final

from kvstore.bench.document import Row, median
from kvstore.bench.llm.engines import (
    ANSWER_S,
    VOCABULARY,
    model_and_node,
    start_engine,
    transfer_through,
)
from kvstore.bench.llm.replay import Say
from kvstore.bench.llm.ttft_peers import PEERS
from kvstore.bench.peers.case import Unavailable
from kvstore.bench.processes import Child

PREFIX_TOKENS: Final = 2048
SUFFIX_TOKENS: Final = 32
ROUNDS: Final = 5
_WARM_TOKENS: Final = 300
_COMPUTED: Final = "computed"
_OWN_CACHE: Final = "own cache"
_TARGET_COMPUTED: Final = 0.25
#: How long a peer may take to store the prefix behind the first answer.
_STORE_S: Final = 2.0


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
        left_out: list[Row] = []
        for name, start in PEERS.items():
            say(f"starting an engine with {name}")
            try:
                engines[name] = start(stack, model)
            except Unavailable as error:
                left_out.append(_name_row(name) | {"reason": f"not run: {error}"})
        return _rounds(engines, rounds, say) + left_out


def _rounds(engines: dict[str, Child], rounds: int, say: Say) -> list[Row]:
    source = random.Random(1)
    prefix = _tokens(source, PREFIX_TOKENS)
    warm = _tokens(source, _WARM_TOKENS)

    def fresh_prompt() -> list[int]:
        return prefix + _tokens(source, SUFFIX_TOKENS)

    for name, engine in engines.items():
        _ask(engine, warm)
        if name != _COMPUTED:
            _ask(engine, fresh_prompt())
    time.sleep(_STORE_S)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in (_OWN_CACHE, *engines)}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        prompt = fresh_prompt()
        for engine in engines.values():
            engine.send({"reset": True})
            engine.receive(ANSWER_S)
        for name, engine in engines.items():
            answers[name].append(_ask(engine, prompt))
            if name == _COMPUTED:
                # The prefix is in the engine's own cache now; the suffix must not be.
                answers[_OWN_CACHE].append(_ask(engine, fresh_prompt()))
    return [_row(name, answers) for name in (_COMPUTED, _OWN_CACHE, *list(engines)[1:])]


def _tokens(source: random.Random, count: int) -> list[int]:
    return [source.randrange(3, VOCABULARY) for _ in range(count)]


def _name_row(name: str) -> Row:
    tier = {_COMPUTED: None, _OWN_CACHE: "engine"}.get(name, "remote")
    return {"figure": "ttft", "engine": f"vllm, {name}", "tier": tier}


def _row(name: str, answers: dict[str, list[dict[str, Any]]]) -> Row:
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


def _times_ratio(of: list[dict[str, Any]], to: list[dict[str, Any]]) -> float:
    """Round by round, as the machine changes from round to round."""
    pairs = zip(of, to, strict=True)
    return median(answer["seconds"] / other["seconds"] for answer, other in pairs)


def _ask(engine: Child, prompt: list[int]) -> dict[str, Any]:
    begin = time.perf_counter()
    engine.send({"prompts": [prompt], "new_tokens": 1})
    answer = engine.receive(ANSWER_S)
    answer["seconds"] = time.perf_counter() - begin
    return answer
