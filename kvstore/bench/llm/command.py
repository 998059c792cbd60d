"""`kvstore-bench llm`: traces replayed against policies and the store, and the cost of loading."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from kvstore.bench.document import Row, metadata, print_json, print_table
from kvstore.bench.llm.policies import POLICIES
from kvstore.bench.processes import ProcessError
from kvstore.demo.trace import TraceError
from kvstore.node.description import EVICTIONS
from kvstore.node.units import parse_bytes

#: The policies that only count, and the eviction of real nodes.
CHOICES: Final = (*POLICIES, *(name for name in EVICTIONS if name != "none"), "store")
_COLUMNS: Final = (
    *("trace", "figure", "policy", "fabric", "capacity_blocks", "token_hit_ratio", "tier"),
    *("block_bytes", "blocks", "bytes_per_s", "store_bytes_per_s", "copy_bytes_per_s"),
    *("file", "file_bytes_per_s"),
    *("p50_ms", "p99_ms", "loaded_blocks", "stored_blocks", "failed_blocks", "uses_dropped"),
    *("engine", "prefills", "ttft_ms", "all_ms", "cached_tokens", "same_tokens", "ratio_own_cache"),
    *("instances", "busiest_ratio", "late_ratio"),
    *("adapter_us_per_block", "target_us", "ratio", "target", "pass"),
)

_EPILOG: Final = """\b
Policies:
  lru, belady   exact LRU and the offline optimum, by bookkeeping alone
  none          an unlimited cache, likewise
  adaptive, sampled-lru, lfu, fifo, gdsf
                the real store on a node that holds so many blocks and evicts by this
  store         the real store on a node with room for everything

\b
Examples:
  kvstore-bench llm --trace conversation_trace.jsonl.gz --policy lru --policy adaptive
  kvstore-bench llm --trace conversation_trace.jsonl.gz --policy store --fabric tcp
  kvstore-bench llm --figure adapter --fabric shm
  kvstore-bench llm --figure load --fabric tcp
  kvstore-bench llm --figure ssd --ssd-dir /mnt/nvme
  kvstore-bench llm --figure routing --trace conversation_trace.jsonl.gz
  build/venvs/vllm/bin/python -m kvstore.bench.main llm --figure ttft
"""


def _sizes(_context: click.Context, _parameter: click.Parameter, text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"numbers of blocks, such as 1000,3000, not {text!r}") from None
    if min(sizes) < 1:
        raise click.BadParameter("a capacity is at least one block")
    return sizes


def _bytes(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command(epilog=_EPILOG)
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Mooncake format (.jsonl, .jsonl.gz), or sessions of coding agents (.tar.xz).",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first requests.")
@click.option(
    "--policy", "policies", type=click.Choice(CHOICES), multiple=True, default=("lru", "belady"),
    show_default=True, help="May be given several times.",
)  # fmt: skip
@click.option(
    "--capacity-blocks", callback=_sizes, default="1000,3000,10000,30000", show_default=True
)
@click.option("--block-bytes", callback=_bytes, default="4KiB", show_default=True)
@click.option("--fabric", type=click.Choice(["local", "shm", "tcp"]), default="shm")
@click.option(
    "--figure",
    type=click.Choice(["adapter", "load", "ssd", "ttft", "single-flight", "routing"]),
    help="A fixed experiment; only `routing` has a trace.",
)
@click.option(
    "--instances", type=click.IntRange(1), default=8, show_default=True,
    help="Of the figure `routing`, each with a cache of --capacity-blocks.",
)  # fmt: skip
@click.option(
    "--ssd-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Of the figure `ssd`: where its file goes.  [default: the directory for temporary files]",
)
@click.option("--seconds", type=click.FloatRange(0.01), default=3.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def llm(
    trace: Path | None,
    limit: int | None,
    policies: tuple[str, ...],
    capacity_blocks: list[int],
    block_bytes: int,
    fabric: str,
    figure: str | None,
    instances: int,
    ssd_dir: Path | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Replay a trace of prompts: which share of their tokens a prefix cache saves.

    Or measure one `--figure`.
    """
    if (trace is None) == (figure in (None, "routing")):
        raise click.UsageError(
            "--figure adapter, or --trace FILE, which --figure routing needs too"
        )

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        if figure == "routing":
            assert trace is not None
            rows = _route(trace, limit, instances, capacity_blocks, say)
        elif figure == "ttft":
            from kvstore.bench.llm.ttft import measure as measure_ttft

            rows = measure_ttft(say)
        elif figure == "single-flight":
            from kvstore.bench.llm.flights import measure as measure_flights

            rows = measure_flights(say)
        elif figure == "ssd":
            from kvstore.bench.llm.ssd import measure as measure_ssd

            rows = measure_ssd("shm" if fabric == "local" else fabric, seconds, ssd_dir, say)
        elif figure == "load":
            from kvstore.bench.llm.load import measure as measure_loads

            rows = measure_loads("shm" if fabric == "local" else fabric, seconds, say)
        elif figure is not None:
            from kvstore.bench.llm.adapter import measure

            rows = measure(fabric, seconds, say)
        else:
            assert trace is not None
            rows = _replay(trace, limit, policies, capacity_blocks, block_bytes, fabric, say)
    except (ProcessError, TraceError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None
    if as_json:
        print_json(metadata("kvstore-bench llm"), rows)
    else:
        print_table("kvstore-bench llm", rows, _COLUMNS)
        for row in rows:
            if "reason" in row:
                print(f"{row['engine']}: {row['reason']}")


def _replay(
    path: Path,
    limit: int | None,
    policies: tuple[str, ...],
    capacities: list[int],
    block_bytes: int,
    fabric: str,
    say: Callable[[str], None],
) -> list[Row]:
    from kvstore.bench.llm import replay as replays
    from kvstore.bench.llm.traces import load_trace

    trace = load_trace(path, limit)

    def real(eviction: str, room: int) -> Row:
        with replays.open_store(fabric, room, eviction) as store:
            return replays.replay(
                trace, store, fabric=fabric, eviction=eviction, block_bytes=block_bytes, say=say
            )

    rows: list[Row] = []
    for policy in policies:
        if policy == "none":
            rows.append(replays.count(trace, policy, 0, say))
        elif policy == "store":
            distinct = len({block for prompt in trace.prompts for block in prompt.blocks})
            rows.append(real("none", max(64 << 20, int(1.4 * distinct * (block_bytes + 160)))))
        else:
            for capacity in capacities:
                if policy in POLICIES:
                    rows.append(replays.count(trace, policy, capacity, say))
                else:
                    room = replays.capacity_bytes_for(capacity, block_bytes, say)
                    rows.append(real(policy, room))
    return rows


def _route(
    path: Path,
    limit: int | None,
    instances: int,
    capacities: list[int],
    say: Callable[[str], None],
) -> list[Row]:
    from kvstore.bench.llm.routing import ROUTERS
    from kvstore.bench.llm.routing import replay as replay_routed
    from kvstore.bench.llm.traces import load_trace

    trace = load_trace(path, limit)
    rows: list[Row] = []
    for capacity in capacities:
        for router in ROUTERS:
            say(f"{router}: {instances} instances of {capacity:,} blocks")
            rows.append(replay_routed(trace, router, instances, capacity))
    return rows
