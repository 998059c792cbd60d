"""Engines that get one cold prompt at the same moment: with single-flight, and without.

Real vLLM engines on the processor, which share its cores: what one of them need not compute, the
others have. Runs in vLLM's environment, as `--figure ttft` does.
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
from kvstore.bench.processes import Child

ENGINES: Final = 4
PROMPT_TOKENS: Final = 2080
ROUNDS: Final = 3
#: Above what computing takes here, however many engines compute at once.
_WAIT_S: Final = 60.0


def measure(say: Say, *, hidden: int = 768, layers: int = 8, rounds: int = ROUNDS) -> list[Row]:
    """Two rows. The engines of both take turns. ProcessError where vLLM is not installed."""
    with contextlib.ExitStack() as stack:
        model, node = model_and_node(stack, hidden, layers)
        groups: dict[bool, list[Child]] = {}
        for single_flight in (True, False):
            say(f"starting {ENGINES} engines, single-flight {single_flight}")
            # Each group sees its own blocks only.
            transfer = transfer_through(
                node,
                "shm",
                single_flight=single_flight,
                flight_wait_s=_WAIT_S,
                salt=str(single_flight),
            )
            groups[single_flight] = [
                start_engine(stack, f"place {place}", model, transfer) for place in range(ENGINES)
            ]
        return _rounds(groups, rounds, say)


def _rounds(groups: dict[bool, list[Child]], rounds: int, say: Say) -> list[Row]:
    source = random.Random(1)
    results: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for number in range(-1, rounds):
        for single_flight, engines in groups.items():
            say(f"round {number + 1} of {rounds}, single-flight {single_flight}")
            prompt = [source.randrange(3, VOCABULARY) for _ in range(PROMPT_TOKENS)]
            result = _serve(engines, prompt)
            if number >= 0:  # the first one warms up
                results[single_flight].append(result)
    return [
        {
            "figure": "single-flight",
            "engine": f"{ENGINES} x vllm",
            "policy": "single-flight" if single_flight else "each computes",
            "prefills": max(result["prefills"] for result in found),
            "ttft_ms": 1e3 * median(result["ttft_s"] for result in found),
            "all_ms": 1e3 * median(result["all_s"] for result in found),
            "same_tokens": all(result["same"] for result in found),
            "target": 1 if single_flight else ENGINES,
            "pass": all(
                result["prefills"] == (1 if single_flight else ENGINES) for result in found
            ),
        }
        for single_flight, found in results.items()
    ]


def _serve(engines: list[Child], prompt: list[int]) -> dict[str, Any]:
    begin = time.perf_counter()
    for engine in engines:
        engine.send({"prompts": [prompt], "new_tokens": 1})
    answers, times = [], []
    for engine in engines:
        answers.append(engine.receive(ANSWER_S))
        times.append(time.perf_counter() - begin)
    return {
        "prefills": sum(answer["cached"] == [0] for answer in answers),
        # Read one after the other, so an upper bound for all but the slowest.
        "ttft_s": median(times),
        "all_s": max(times),
        "same": all(answer["tokens"] == answers[0]["tokens"] for answer in answers),
    }
