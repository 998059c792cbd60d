"""`kvstore-bench kv`: throughput, latency and price of the store's operations."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from kvstore.bench.document import (
    Row,
    metadata,
    percentile,
    print_json,
    print_table,
)
from kvstore.bench.processes import Child, ProcessError, start_node, target_of
from kvstore.node.units import parse_bytes

OPERATIONS: Final = ("get", "put", "get_many", "put_many", "get_into", "put_from", "get_many_into")
FIGURES: Final = ("put-cost", "memory", "idle", "busy-thread")
_COLUMNS: Final = (
    *("figure", "system", "fabric", "operation", "variant", "value_bytes", "batch"),
    *("keys", "processes", "threads", "read_ratio", "distribution"),
    *("ops_per_s", "p50_us", "p99_us", "p999_us", "verbs_per_op", "round_trips_per_op"),
    *("us_per_op", "overhead_ratio", "core_ratio", "ratio", "target", "pass"),
)
_CAPACITY_BYTES_MIN: Final = 256 << 20


@dataclass(frozen=True)
class Setting:
    """One measurement; what a worker process needs to know, and most of its row.

    `warm_up` is a share of `seconds`, which goes before.
    """

    target: str
    fabric: str
    operation: str
    value_bytes: int
    batch: int
    keys: int
    threads: int
    processes: int
    read_ratio: float
    zipf_theta: float | None
    seconds: float
    warm_up: float = 0.1
    busy_thread: bool = False
    native: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def row(self) -> Row:
        """The row's first columns."""
        row = asdict(self)
        for name in ("target", "options", "zipf_theta", "native", "seconds", "warm_up"):
            row.pop(name)
        theta = self.zipf_theta
        row["distribution"] = "uniform" if theta is None else f"zipf {theta:g}"
        row["variant"] = "native" if self.native else "python"
        return {"system": "kvstore", **row}


def capacity_for(keys: int, value_bytes: int) -> int:
    """Room for `keys` values, for the versions that puts retire, and for the index."""
    return max(_CAPACITY_BYTES_MIN, 2 * keys * (value_bytes + 128))


def measure(setting: Setting, say: Any) -> Row:
    """Runs the worker processes of a setting and adds up what they report."""
    with contextlib.ExitStack() as stack:
        workers = []
        for number in range(setting.processes):
            name = f"worker {number}"
            worker = Child(name, [sys.executable, "-m", "kvstore.bench.worker"])
            stack.callback(worker.stop)
            worker.send({**asdict(setting), "number": number})
            workers.append(worker)
        for worker in workers:
            worker.receive(600)
        say(f"measuring {setting.operation} for {setting.seconds:g} s")
        for worker in workers:
            worker.send({"event": "go"})
        reports = [worker.receive(setting.seconds * 3 + 600) for worker in workers]
    latencies = sorted(latency for report in reports for latency in report["latencies_ns"])
    operations = sum(report["operations"] for report in reports)
    row = setting.row()
    row["fabric"] = reports[0]["fabric"]
    row["ops_per_s"] = sum(report["ops_per_s"] for report in reports)
    for name, fraction in (("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)):
        row[name] = percentile(latencies, fraction) / 1e3
    for name in ("verbs", "round_trips"):
        row[f"{name}_per_op"] = sum(report[name] for report in reports) / max(1, operations)
    row["operations"] = operations
    row["hit_ratio"] = sum(report["cache_hits"] for report in reports) / max(1, operations)
    sent = sum(report["invalidations_sent"] for report in reports)
    row["invalidations_per_op"] = sent / max(1, operations)
    row["failures"] = sum(report["failures"] for report in reports)
    return row


def _size(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.option("--target", help="Use running nodes. Default: starts its own.")
@click.option("--fabric", type=click.Choice(["shm", "tcp", "verbs", "local"]), default="shm")
@click.option("--operation", type=click.Choice(OPERATIONS), default="get", show_default=True)
@click.option("--value-bytes", callback=_size, default="1KiB", show_default=True)
@click.option("--batch", type=click.IntRange(1), help="Keys a call, for get_many and the like.")
@click.option("--keys", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--threads", type=click.IntRange(1, 64), default=1, help="In each process.")
@click.option("--processes", type=click.IntRange(1, 64), default=1)
@click.option(
    "--read-ratio",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Share of gets when the operation is a get; the rest are puts.",
)
@click.option("--zipf", type=click.FloatRange(0, 5), help="Skewed keys with this exponent.")
@click.option("--uniform", is_flag=True, help="Every key equally likely (the default).")
@click.option("--seconds", type=click.FloatRange(0.01), default=3.0, show_default=True)
@click.option("--native", is_flag=True, help="Also the same loop in native code.")
@click.option("--busy-thread", is_flag=True, help="Beside a thread that computes in Python.")
@click.option(
    "--figure", type=click.Choice(FIGURES), help="One of the fixed experiments; see the docs."
)
@click.option("--scale", type=click.FloatRange(1e-4, 1), default=1.0, help="Of --figure's keys.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture.")
def kv(
    target: str | None,
    fabric: str,
    operation: str,
    value_bytes: int,
    batch: int | None,
    keys: int,
    threads: int,
    processes: int,
    read_ratio: float,
    zipf: float | None,
    uniform: bool,
    seconds: float,
    native: bool,
    busy_thread: bool,
    figure: str | None,
    scale: float,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Measure the store's operations: throughput, latency, verbs and round trips.

    One row for the loop in Python; with --native another for the same loop in native code, which
    shows what Python itself costs. Keys are written before; a tenth of the time is warm-up.
    """
    if uniform and zipf is not None:
        raise click.UsageError("--zipf and --uniform exclude each other")
    if fabric == "local" and (target is not None or processes > 1):
        raise click.UsageError("--fabric local is a node inside one process")
    if "many" not in operation and batch not in (None, 1):
        raise click.UsageError(f"--batch is for get_many and the like, not for {operation}")
    if native and operation not in ("get", "put", "get_many", "put_many"):
        raise click.UsageError("--native measures get, put, get_many and put_many")
    if "get" not in operation and read_ratio < 1:
        raise click.UsageError("--read-ratio is for operations that get")
    setting = Setting(
        target=target or "",
        fabric=fabric,
        operation=operation,
        value_bytes=value_bytes,
        batch=(batch or 64) if "many" in operation else 1,
        keys=keys,
        threads=threads,
        processes=processes,
        read_ratio=read_ratio,
        zipf_theta=zipf,
        seconds=seconds,
        busy_thread=busy_thread,
    )
    if setting.batch > keys:
        raise click.UsageError(f"--batch {setting.batch} needs at least so many --keys")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        if figure is not None:
            from kvstore.bench.figures import run_figure

            rows = run_figure(figure, scale, seconds, say)
        else:
            rows = _run(setting, native, say)
    except ProcessError as error:
        raise click.ClickException(str(error)) from error
    if plot is not None:
        from kvstore.bench.plot import plot_latency

        plot_latency([row for row in rows if row.get("p999_us") is not None], plot)
    if as_json:
        print_json(metadata("kvstore-bench kv", seconds=seconds), rows)
    else:
        print_table(f"kvstore-bench kv {figure or ''}".strip(), rows, _COLUMNS)


def _run(setting: Setting, native: bool, say: Any) -> list[Row]:
    with contextlib.ExitStack() as stack:
        target = setting.target
        if not target and setting.fabric != "local":
            say("starting a node")
            capacity_bytes = capacity_for(setting.keys, setting.value_bytes)
            node = start_node(capacity_bytes, verbs=setting.fabric == "verbs")
            stack.callback(node.child.stop)
            target = target_of([node], "auto" if setting.fabric == "shm" else setting.fabric)
        from dataclasses import replace

        rows = [measure(replace(setting, target=target), say)]
        if native:
            rows.append(measure(replace(setting, target=target, native=True, threads=1), say))
        return rows
