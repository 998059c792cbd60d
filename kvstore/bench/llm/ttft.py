"""Time to the first token in real vLLM engines on the processor, with and without the store.

Engines are processes of their own on one small model of random weights; every answer is compared.
They take turns, so that the machine's moods hit all alike:

    computed   a plain engine that has nothing cached
    own cache  the same engine again: vLLM's prefix cache in its own memory
    kvstore    an engine whose own cache was dropped, and that loads the prefix from the store

Runs in vLLM's environment: `build/venvs/vllm/bin/python -m kvstore.bench.main llm --figure ttft`.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from kvstore.bench.document import Row, median
from kvstore.bench.llm.replay import Say
from kvstore.bench.processes import Child, Node, ProcessError, start_node, target_of

PREFIX_TOKENS: Final = 2048
SUFFIX_TOKENS: Final = 32
ROUNDS: Final = 5
VOCABULARY: Final = 2048
_START_S: Final = 300.0
ANSWER_S: Final = 120.0
_TARGET_COMPUTED: Final = 0.25
_TARGET_OWN: Final = 1.15


def measure(say: Say, *, hidden: int = 768, layers: int = 8, rounds: int = ROUNDS) -> list[Row]:
    """One row a way of answering. ProcessError where vLLM is not installed."""
    with contextlib.ExitStack() as stack:
        model, node = model_and_node(stack, hidden, layers)
        engines = {}
        for fabric in ("", "shm", "tcp"):
            say(f"starting an engine {f'over {fabric}' if fabric else 'without the store'}")
            engines[fabric] = start_engine(stack, model, node, fabric)
        return _rounds(engines, rounds, say)


def model_and_node(stack: contextlib.ExitStack, hidden: int, layers: int) -> tuple[Path, Node]:
    """A model's folder and a node, until the end of `stack`.

    ProcessError, which says how to get it, where vLLM is not installed.
    """
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise ProcessError(
            "vLLM is not installed here: make its environment with scripts/engine.py vllm and run"
            " this with build/venvs/vllm/bin/python -m kvstore.bench.main"
        )
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    model = save_model(folder / "model", hidden, layers)
    node = start_node(1 << 30)
    stack.callback(node.child.stop)
    return model, node


def _rounds(engines: dict[str, Child], rounds: int, say: Say) -> list[Row]:
    source = random.Random(1)
    ways = ("computed", "own cache", "kvstore shm", "kvstore tcp")
    times: dict[str, list[float]] = {way: [] for way in ways}
    cached = dict.fromkeys(ways, 0)
    same = dict.fromkeys(ways, True)
    prefix = [source.randrange(3, VOCABULARY) for _ in range(PREFIX_TOKENS)]
    warm = [source.randrange(3, VOCABULARY) for _ in range(300)]
    for engine in engines.values():
        _ask(engine, warm)

    def fresh_prompt() -> list[int]:
        return prefix + [source.randrange(3, VOCABULARY) for _ in range(SUFFIX_TOKENS)]

    _ask(engines["shm"], fresh_prompt())
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        prompt = fresh_prompt()
        answers = {}
        for engine in engines.values():
            engine.send({"reset": True})
            engine.receive(ANSWER_S)
        answers["computed"] = _ask(engines[""], prompt)
        # The prefix is in the engine's own cache now; the suffix must not be.
        answers["own cache"] = _ask(engines[""], fresh_prompt())
        answers["kvstore shm"] = _ask(engines["shm"], prompt)
        answers["kvstore tcp"] = _ask(engines["tcp"], prompt)
        for way, answer in answers.items():
            times[way].append(answer["seconds"])
            cached[way] = answer["cached"][0]
            if way != "own cache":
                same[way] &= answer["tokens"] == answers["computed"]["tokens"]
    return [_row(way, times, cached[way], same[way]) for way in ways]


def _row(way: str, times: dict[str, list[float]], cached: int, same: bool) -> Row:
    row: Row = {
        "figure": "ttft",
        "engine": f"vllm, {way}",
        "tier": {"computed": None, "own cache": "engine"}.get(way, "remote"),
        "ttft_ms": 1e3 * median(times[way]),
        "cached_tokens": cached,
        "same_tokens": same if way != "own cache" else None,
    }
    if way.startswith("kvstore"):
        computed, own = (
            median(a / b for a, b in zip(times[way], times[other], strict=True))
            for other in ("computed", "own cache")
        )
        row |= {"ratio": computed, "target": _TARGET_COMPUTED, "ratio_own_cache": own}
        row["pass"] = same and computed <= _TARGET_COMPUTED
    return row


def _ask(engine: Child, prompt: list[int]) -> dict[str, Any]:
    begin = time.perf_counter()
    engine.send({"prompts": [prompt], "new_tokens": 1})
    answer = engine.receive(ANSWER_S)
    answer["seconds"] = time.perf_counter() - begin
    return answer


def start_engine(
    stack: contextlib.ExitStack,
    model: Path,
    node: Node,
    fabric: str,
    extra: dict[str, Any] | None = None,
) -> Child:
    """Start an engine, with the connector if `fabric` says how; `extra` are its settings."""
    configuration: dict[str, Any] = {
        "model": str(model),
        "max_model_len": 4096,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 4096,
        "kv_cache_memory_bytes": 512 << 20,
    }
    if fabric:
        configuration["kv_transfer_config"] = {
            "kv_connector": "KvStoreConnector",
            "kv_connector_module_path": "kvstore.llm.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {
                "target": target_of([node], fabric),
                **(extra or {}),
            },
        }
    engine = Child(
        f"engine {fabric}".strip(),
        [sys.executable, "-m", "kvstore.bench.llm.vllm_engine"],
        environment={
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": "1",
        },
    )
    stack.callback(engine.stop)
    engine.send(configuration)
    engine.receive(_START_S)
    return engine


def save_model(folder: Path, hidden: int, layers: int) -> Path:
    """Write a model of random weights, and return its folder."""
    from kvstore.demo.engine import make_model

    make_model({"seed": 1, "threads": 1, "hidden": hidden, "layers": layers}).save_pretrained(
        folder
    )
    return folder
