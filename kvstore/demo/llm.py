"""The model demo: two engine processes share the KV cache of one prefix through a memory node.

    python -m kvstore.demo.llm          (make demo-llm makes an environment with torch for it)

The first engine computes a prompt and stores its blocks. The second one, a fresh process, answers
another prompt with the same prefix: once computed in full, once with the stored prefix. Both times
the tokens must be the same; with noise in place of the loaded blocks they must not.
"""

from __future__ import annotations

import contextlib
import random
import sys
from dataclasses import dataclass
from typing import Any, Final

import click

from kvstore.bench.document import metadata, print_json
from kvstore.bench.processes import Child, ProcessError, require_fabric, start_node, target_of
from kvstore.demo.engine import VOCABULARY

_NEW_TOKENS: Final = 24
_SUFFIX_TOKENS: Final = 40
_MODEL_START_S: Final = 180.0
_ANSWER_S: Final = 300.0
HOW_TO: Final = "A real model over this store: make demo-llm (installs torch and transformers)."


@dataclass(frozen=True)
class Job:
    """What to run. `hidden` and `layers` size the model."""

    prefix_tokens: int = 2048
    block_tokens: int = 64
    hidden: int = 512
    layers: int = 8
    fabric: str = "auto"
    threads: int = 1
    seed: int = 7


def can_run() -> bool:
    """Whether torch and transformers are installed here; loads neither."""
    from importlib.util import find_spec

    return find_spec("torch") is not None and find_spec("transformers") is not None


def run_job(job: Job, say: Any) -> dict[str, Any]:
    """Runs the job and returns its row; `same_tokens` and `noise_differs` must both be true."""
    source = random.Random(job.seed)
    prefix = [source.randrange(3, VOCABULARY) for _ in range(job.prefix_tokens)]
    prompts = [
        prefix + [source.randrange(3, VOCABULARY) for _ in range(_SUFFIX_TOKENS)] for _ in range(2)
    ]
    with contextlib.ExitStack() as stack:
        node = start_node(512 << 20)
        stack.callback(node.child.stop)
        target = target_of([node], job.fabric)
        say(f"memory node on {node.listen}")
        first = _start_engine("engine 1", job, target, stack)
        say("engine 1 computes a prompt and stores its blocks")
        stored = _ask(first, {"prompt": prompts[0], "new_tokens": 1, "save": True})
        first.stop()
        say(f"engine 1 stored {stored['stored']} blocks and is gone")
        second = _start_engine("engine 2", job, target, stack)
        prompt = {"prompt": prompts[1], "new_tokens": _NEW_TOKENS}
        # The first call of a process pays for much that is not the model.
        _ask(second, {**prompt, "prompt": prompts[1][:100], "new_tokens": 2})
        computed = _ask(second, prompt)
        reused = _ask(second, {**prompt, "reuse": True})
        noise = _ask(second, {**prompt, "reuse": True, "spoil": True})
        fabric = _fabric(target, job.fabric)
    return {
        "fabric": fabric,
        "prompt_tokens": len(prompts[1]),
        "cached_tokens": reused["cached"],
        "loaded_bytes": reused["loaded_bytes"],
        "load_ms": reused["load_ms"],
        "first_token_computed_ms": computed["first_token_ms"],
        "first_token_reused_ms": reused["first_token_ms"],
        "ratio": reused["first_token_ms"] / computed["first_token_ms"],
        "same_tokens": reused["tokens"] == computed["tokens"],
        "noise_differs": noise["tokens"] != computed["tokens"],
        "expected_cached_tokens": job.prefix_tokens // job.block_tokens * job.block_tokens,
        "tokens": " ".join(map(str, reused["tokens"])),
    }


def _start_engine(name: str, job: Job, target: str, stack: contextlib.ExitStack) -> Child:
    child = Child(
        name,
        [sys.executable, "-m", "kvstore.demo.engine"],
        environment={"OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"},
    )
    stack.callback(child.stop)
    child.send(
        {
            "target": target,
            "seed": job.seed,
            "hidden": job.hidden,
            "layers": job.layers,
            "threads": job.threads,
            "block_tokens": job.block_tokens,
        }
    )
    child.receive(_MODEL_START_S)
    return child


def _ask(child: Child, request: dict[str, Any]) -> dict[str, Any]:
    child.send(request)
    return child.receive(_ANSWER_S)


def _fabric(target: str, asked: str) -> str:
    import kvstore

    with kvstore.connect(target) as store:
        return require_fabric(store, asked)


def is_right(row: dict[str, Any]) -> bool:
    """Whether the engines did what they must."""
    return bool(
        row["same_tokens"]
        and row["noise_differs"]
        and row["cached_tokens"] == row["expected_cached_tokens"]
    )


def print_result(row: dict[str, Any]) -> None:
    """A row for people."""
    print(
        f"engine 2: {row['cached_tokens']:,} of {row['prompt_tokens']:,} tokens from the store"
        f" ({row['loaded_bytes'] / 2**20:.0f} MiB over {row['fabric']} in {row['load_ms']:.0f} ms)"
    )
    print(
        f"first token: {row['first_token_computed_ms']:,.0f} ms computed,"
        f" {row['first_token_reused_ms']:,.0f} ms with the store ({row['ratio']:.2f}x)"
    )
    print(f"tokens: {row['tokens']}")
    print(f"  equal to those computed in full: {'yes' if row['same_tokens'] else 'NO'}")
    differs = "yes" if row["noise_differs"] else "NO"
    print(f"  other ones with noise in place of the blocks: {differs}")


@click.command()
@click.option("--prefix-tokens", type=click.IntRange(64, 16_000), default=2048, show_default=True)
@click.option("--hidden", type=click.IntRange(64), default=512, show_default=True)
@click.option("--layers", type=click.IntRange(1), default=8, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of a model.")
@click.option("--fabric", type=click.Choice(["auto", "shm", "tcp"]), default="auto")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def main(
    prefix_tokens: int, hidden: int, layers: int, threads: int, fabric: str, as_json: bool
) -> None:
    r"""Two engines with a real model of random weights share one prefix through the store.

    \b
    Examples:
      python -m kvstore.demo.llm
      python -m kvstore.demo.llm --fabric tcp --prefix-tokens 4096
    """
    if not can_run():
        raise click.ClickException(f"torch and transformers are not installed here. {HOW_TO}")
    job = Job(
        prefix_tokens=prefix_tokens, hidden=hidden, layers=layers, threads=threads, fabric=fabric
    )
    try:
        row = run_job(job, (lambda _: None) if as_json else print)
    except ProcessError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None
    if as_json:
        print_json(metadata("kvstore.demo.llm"), [row])
    else:
        print_result(row)
    if not is_right(row):
        sys.exit(1)


if __name__ == "__main__":
    main()
