"""One vLLM engine in a process of its own, for benches and tests: commands on stdin, answers back.

The first line configures the engine. Then each line is {"prompts": [[token, ...], ...]}, together
or one by one, with {"transfer": {...}} as their kv_transfer_params, {"reset": true} to drop vLLM's
own prefix cache ("everything": with what its connector has), or {"metrics": true}.

The core of the engine and its worker are processes that vLLM starts. Each dies with the one that
started it, also where that is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

# vLLM writes to stdout too: the answers have a descriptor of their own.
_ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl
_METRICS = ("vllm:kvstore", "vllm:kv_offload", "vllm:external", "vllm:num_preemptions")


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


# A spawned process imports this module again; a forked one goes on behind the import.
_die_with_parent()
os.register_at_fork(after_in_child=_die_with_parent)


def say(message: dict[str, Any]) -> None:
    """Writes one answer."""
    _ANSWERS.write(json.dumps(message) + "\n")
    _ANSWERS.flush()


def make_engine(configuration: dict[str, Any]) -> Any:
    """An engine in float32, so that tokens can be compared, without a tokenizer."""
    from vllm import LLM

    return LLM(
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        seed=0,
        disable_log_stats=False,
        **configuration,
    )


def generate(engine: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens of each prompt, and how many tokens of it were cached."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0,
        max_tokens=request.get("new_tokens", 16),
        detokenize=False,
        ignore_eos=True,
        extra_args={"kv_transfer_params": request["transfer"]} if "transfer" in request else None,
    )
    prompts = [{"prompt_token_ids": tokens} for tokens in request["prompts"]]
    if request.get("together"):
        outputs = engine.generate(prompts, sampling, use_tqdm=False)
    else:
        # One by one: batches would change the rounding.
        outputs = [engine.generate([p], sampling, use_tqdm=False)[0] for p in prompts]
    return {
        "transfer": [output.kv_transfer_params for output in outputs],
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "cached": [output.num_cached_tokens for output in outputs],
        "finish": [output.outputs[0].finish_reason for output in outputs],
    }


def metrics(engine: Any) -> dict[str, float]:
    """VLLM's counters of the connector and of preemptions."""
    return {
        metric.name: metric.value
        for metric in engine.get_metrics()
        if metric.name.startswith(_METRICS) and hasattr(metric, "value")
    }


def main() -> None:
    """Answers lines until the input ends."""
    # An exit, so that the engine ends its processes and gives its shared memory back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    engine = make_engine(json.loads(sys.stdin.readline()))
    say({"event": "ready"})
    try:
        _answer(engine)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        engine.llm_engine.engine_core.shutdown()


def _answer(engine: Any) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "reset" in request:
            everything = request["reset"] == "everything"
            say({"done": bool(engine.reset_prefix_cache(reset_connector=everything))})
        elif "metrics" in request:
            say(metrics(engine))
        else:
            say(generate(engine, request))


if __name__ == "__main__":
    main()
