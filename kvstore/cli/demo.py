"""`kvstore demo`: two memory nodes serve a prefix-cache workload to two client processes."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from kvstore.bench.document import metadata, print_json
from kvstore.bench.processes import ProcessError
from kvstore.demo.trace import Request, TraceError, read_trace, workload_facts
from kvstore.demo.workload import MOONCAKE_CONVERSATION, generate
from kvstore.node.units import parse_bytes

_REQUESTS = 3_000
_BLOCK_BYTES = 16 << 10
# Together with start and end of the processes these stay below a minute.
_LIMIT_S = 30.0
_REDIS_LIMIT_S = 12.0


def _size(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Replay a file in the Mooncake trace format (.jsonl or .gz of it).",
)
@click.option("--block-bytes", callback=_size, help="Bytes of a block. Default 16KiB.")
@click.option("--limit", type=click.IntRange(1), help="Only the first requests.")
@click.option(
    "--speed",
    type=click.FloatRange(0),
    default=0.0,
    help="1: recorded arrival times, 10: ten times faster, 0 (default): as fast as it goes.",
)
@click.option(
    "--kill/--no-kill",
    default=None,
    help="Kill a node and a client at two thirds. Default: without --trace only.",
)
@click.option("--fabric", type=click.Choice(["auto", "shm", "tcp"]), default="auto")
@click.option(
    "--capacity",
    callback=_size,
    help="Of each node, which then evicts when full. Default: room for every block.",
)
@click.option("--redis/--no-redis", default=True, help="Also replay through Redis, if installed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def demo(
    trace: Path | None,
    block_bytes: int | None,
    limit: int | None,
    speed: float,
    kill: bool | None,
    fabric: str,
    capacity: int | None,
    redis: bool,
    as_json: bool,
) -> None:
    """Replay a prefix-cache workload against two real memory nodes.

    For each request: match the longest cached prefix of its blocks, read the hits, check every
    byte, write the misses. Without --trace the workload is generated, takes less than a minute,
    and at two thirds a node and a client are killed.
    """
    from kvstore.demo.job import Plan, run_job
    from kvstore.demo.report import print_report

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        requests, workload = _workload(trace, limit)
        if not as_json:
            print(f"Workload: {workload}")
        plan = Plan(
            workload=workload,
            synthetic=trace is None,
            block_bytes=block_bytes or _BLOCK_BYTES,
            fabric=fabric,
            capacity_bytes=capacity,
            speed=speed,
            kill=trace is None if kill is None else kill,
            redis=redis,
            limit_s=_LIMIT_S if trace is None else None,
            redis_limit_s=_REDIS_LIMIT_S if trace is None else None,
            quiet=as_json,
        )
        setting, account, row = run_job(plan, requests, workload_facts(requests))
    except (TraceError, ProcessError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        # The children are gone by now.
        raise click.exceptions.Exit(130) from None
    if as_json:
        print_json(metadata("kvstore demo"), [row])
    else:
        print_report(setting, account, row)
        _show_model()
    if account.mismatches or account.keys_missing:
        sys.exit(1)


def _show_model() -> None:
    """The same store under a real model where torch is there; else how to get it."""
    from kvstore.demo import llm

    print()
    if not llm.can_run():
        print(llm.HOW_TO)
        return
    row = llm.run_job(llm.Job(), print)
    llm.print_result(row)
    if not llm.is_right(row):
        sys.exit(1)


def _workload(trace: Path | None, limit: int | None) -> tuple[list[Request], str]:
    if trace is not None:
        requests = read_trace(trace, limit)
        return requests, trace.name
    requests = generate(limit or _REQUESTS)
    shape = MOONCAKE_CONVERSATION.describe()
    return requests, (
        "synthetic, generated from the published statistics of the Mooncake conversation trace: "
        f"{shape}"
    )
