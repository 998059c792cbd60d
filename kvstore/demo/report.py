"""Live progress of a replay, its report, and its row for `--json`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kvstore.bench.document import percentile
from kvstore.demo.replay import Account
from kvstore.demo.trace import WorkloadFacts
from kvstore.node.units import format_bytes

GIB: Final = 1 << 30
#: Below this block size bytes per second say more about requests than about memory.
BANDWIDTH_BLOCK_BYTES_MIN: Final = 1 << 20


@dataclass
class Setting:
    """What was replayed, on what."""

    workload: str
    synthetic: bool
    facts: WorkloadFacts
    block_bytes: int
    fabric: str
    nodes: int
    capacity_bytes: int
    eviction: str


class Progress:
    """One line that is redrawn on a terminal; elsewhere a line every few seconds."""

    def __init__(self, label: str, total: int, *, quiet: bool = False) -> None:
        self._label = label
        self._total = total
        self._quiet = quiet
        self._next_print_s = 0.0
        self._started_s = time.monotonic()
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} requests"),
                TextColumn("{task.fields[facts]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(label, total=total, facts="")
            self._bar.start()

    def __call__(self, account: Account) -> None:
        """Shows where `account` stands."""
        now = time.monotonic()
        if self._quiet or now < self._next_print_s:
            return
        facts = f"hit {account.token_hit_ratio:.3f}, wrong bytes in {account.mismatches} blocks"
        if self._bar is not None:
            self._next_print_s = now + 0.1
            self._bar.update(self._task, completed=account.completed, facts=facts)
            return
        if now - self._started_s >= 2:
            done = f"{account.completed}/{self._total} requests"
            print(f"  {self._label}: {done}, {facts}", file=sys.stderr, flush=True)
        self._next_print_s = now + 2

    def note(self, text: str) -> None:
        """A line above the progress."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the display."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _latency(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return percentile(ordered, 0.5), percentile(ordered, 0.99)


def row_of(setting: Setting, account: Account) -> dict[str, Any]:
    """The row of a replay for `--json`: flat, units in the names."""
    row: dict[str, Any] = {
        "system": "kvstore",
        "fabric": setting.fabric,
        "workload": setting.workload,
        "synthetic": setting.synthetic,
        "block_bytes": setting.block_bytes,
        "nodes": setting.nodes,
        "capacity_bytes": setting.capacity_bytes,
        "eviction": setting.eviction,
        "requests": account.completed,
        "requests_in_workload": setting.facts.requests,
        "distinct_blocks": setting.facts.distinct_blocks,
        "token_hit_ratio": account.token_hit_ratio,
        "ideal_token_hit_ratio": setting.facts.ideal_token_hit_ratio,
        "mismatches": account.mismatches,
        "blocks_read": account.blocks_read,
        "blocks_written": account.blocks_written,
        "blocks_failed": sum(account.failed_writes.values()),
        "seconds": account.seconds,
        "requests_per_s": account.completed / account.seconds if account.seconds else 0.0,
        "stopped_early": account.stopped_early,
        "killed": account.killed_at is not None,
        "killed_at_request": account.killed_at,
        "resume_ms": account.resume_ms,
        "keys_acknowledged": account.keys_acknowledged,
        "keys_lost": account.keys_lost,
        "keys_missing": account.keys_missing,
    }
    for name in ("match_us", "read_us", "write_us", "request_us"):
        p50, p99 = _latency(getattr(account, name))
        stem = name.removesuffix("_us")
        row[f"{stem}_p50_us"], row[f"{stem}_p99_us"] = p50, p99
    if account.counters and account.completed:
        row["verbs_per_request"] = account.counters["verbs"] / account.completed
        row["round_trips_per_request"] = account.counters["round_trips"] / account.completed
    if setting.block_bytes >= BANDWIDTH_BLOCK_BYTES_MIN and account.seconds:
        moved = (account.blocks_read + account.blocks_written) * setting.block_bytes
        row["bytes_per_s"] = moved / account.seconds
    return row


def add_redis(row: dict[str, Any], account: Account | None, reason: str) -> None:
    """Adds the same replay through Redis, or why there is none."""
    row["redis"] = reason or "measured"
    if account is None:
        return
    row["redis_requests"] = account.completed
    row["redis_requests_per_s"] = account.completed / account.seconds
    row["redis_token_hit_ratio"] = account.token_hit_ratio
    row["redis_mismatches"] = account.mismatches
    for stem in ("match", "read", "write", "request"):
        p50, p99 = _latency(getattr(account, f"{stem}_us"))
        row[f"redis_{stem}_p50_us"], row[f"redis_{stem}_p99_us"] = p50, p99


def print_report(setting: Setting, account: Account, row: dict[str, Any]) -> None:
    """The report and, as its last lines, the verdict."""
    say: Callable[[str], None] = print
    facts = setting.facts
    say("")
    say("Report")
    say(f"  workload      {setting.workload}{' (synthetic)' if setting.synthetic else ''}")
    say(
        f"  scale         {facts.requests:,} requests, {facts.distinct_blocks:,} distinct "
        f"blocks of 512 tokens, each stored as {format_bytes(setting.block_bytes)} "
        "(a large model needs tens of MiB for one)"
    )
    say(
        f"  stores        {setting.nodes} kvstore-node processes, "
        f"{format_bytes(setting.capacity_bytes)} each, eviction {setting.eviction}, "
        f"fabric {setting.fabric}, 2 client processes"
    )
    say(f"  blocks        {account.blocks_read:,} read and checked, "
        f"{account.blocks_written:,} written")  # fmt: skip
    _print_check(setting, account)
    if "bytes_per_s" in row:
        say(f"  moved         {row['bytes_per_s'] / 1e9:.2f} GB/s (blocks read and written)")
    for stem, meaning in (
        ("match", "longest cached prefix"),
        ("read", "hits, with the check of every byte"),
        ("write", "misses, with making their bytes"),
    ):
        p50, p99 = row[f"{stem}_p50_us"], row[f"{stem}_p99_us"]
        say(f"  {stem:<6} p50 {p50:9,.0f} us   p99 {p99:9,.0f} us   {meaning}")
    if account.stopped_early:
        say("  The time limit of this run ended it before the end of the workload.")
    _print_verdict(account, row)


def _print_check(setting: Setting, account: Account) -> None:
    """The hit ratio, with the ratio that the trace alone implies."""
    what = "min(512 x matched blocks, input length), file order, at most 8 in flight"
    print(f"  hit ratio     {account.token_hit_ratio:.4f} by token: a check of the trace ({what})")
    if account.killed_at is not None:
        before = account.hit_tokens_before_kill / max(1, account.input_tokens_before_kill)
        print(f"                {before:.4f} until the kill; the dead node's blocks miss after it")
    elif not account.stopped_early:
        print(f"                {setting.facts.ideal_token_hit_ratio:.4f} expected from the trace")


def _print_verdict(account: Account, row: dict[str, Any]) -> None:
    print("")
    print("Verdict")
    print(f"  requests completed      {account.completed:,} of {row['requests_in_workload']:,}")
    print(f"  wrong bytes             {account.mismatches}")
    if account.killed_at is not None:
        resume = "never" if account.resume_ms is None else f"{account.resume_ms:.0f} ms"
        print(f"  killed                  one node and one client after {account.killed_at:,} "
              f"requests; {account.requests_taken_over} requests taken over")  # fmt: skip
        print(f"  requests flowed again   after {resume}")
        print(f"  keys lost with the node {account.keys_lost:,} of {account.keys_acknowledged:,} "
              f"acknowledged; missing from the other node: {account.keys_missing}")  # fmt: skip
    if account.failed_writes:
        errors = ", ".join(f"{n:,} {name}" for name, n in sorted(account.failed_writes.items()))
        print(f"  blocks not stored       {errors}")
    if "verbs_per_request" in row:
        print(f"  verbs per request       {row['verbs_per_request']:.1f} in "
              f"{row['round_trips_per_request']:.1f} round trips")  # fmt: skip
    print(f"  latency of a request    p50 {row['request_p50_us'] / 1e3:.2f} ms, "
          f"p99 {row['request_p99_us'] / 1e3:.2f} ms, "
          f"{row['requests_per_s']:,.0f} requests/s")  # fmt: skip
    if "redis_requests_per_s" in row:
        print(f"  the same through Redis  p50 {row['redis_request_p50_us'] / 1e3:.2f} ms, "
              f"p99 {row['redis_request_p99_us'] / 1e3:.2f} ms, "
              f"{row['redis_requests_per_s']:,.0f} requests/s over its Unix socket, "
              f"hit ratio {row['redis_token_hit_ratio']:.4f}, "
              f"wrong {row['redis_mismatches']}, {row['redis_requests']:,} requests")  # fmt: skip
    else:
        print(f"  the same through Redis  not run: {row['redis']}")
