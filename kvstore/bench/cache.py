"""`kvstore-bench cache`: what copies of values in the clients bring, and what they cost."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Final

import click

from kvstore.bench.document import Row, metadata, print_json, print_table
from kvstore.bench.keys import uniform_order
from kvstore.bench.kv import Setting, capacity_for, measure
from kvstore.bench.peers.case import Case, Unavailable, Work
from kvstore.bench.processes import ProcessError, start_node, target_of

#: Share of reads of each workload; the key is chosen by Zipf's law with 0.99, as YCSB does.
WORKLOADS: Final = {
    "ycsb-a": 0.50,
    "ycsb-b": 0.95,
    "ycsb-c": 1.00,
    "writes": 0.05,
}
_ZIPF: Final = 0.99
_HOT_KEYS: Final = 16
_CACHE_BYTES: Final = 64 << 20
_COLUMNS: Final = (
    *("workload", "policy", "fabric", "compute_nodes", "ops_per_s", "speedup", "p50_us", "p99_us"),
    *("verbs_per_op", "hit_ratio", "invalidations_per_op", "failures"),
)


@click.command(
    epilog="\b\nExamples:\n  kvstore-bench cache\n"
    "  kvstore-bench cache --fabric tcp --processes 2 --workload ycsb-b --json"
)
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    type=click.Choice(["hot", *WORKLOADS]),
    help="May be given again. Default: all.",
)
@click.option("--fabric", "fabrics", multiple=True, type=click.Choice(["shm", "tcp"]))
@click.option("--processes", type=click.IntRange(1, 64), default=2, show_default=True)
@click.option("--keys", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--value-bytes", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.01), default=3.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def cache(
    workloads: tuple[str, ...],
    fabrics: tuple[str, ...],
    processes: int,
    keys: int,
    value_bytes: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure each workload with and without copies, on a node of its own.

    `hot` reads a few keys in one thread, beside LMDB where the package lmdb is there: a fresh read
    transaction a get. The others have two processes by default, so that one's writes end the
    other's copies. Policy `none` is a client without copies.
    """

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    rows: list[Row] = []
    try:
        for fabric in fabrics or ("shm", "tcp"):
            for workload in workloads or ("hot", *WORKLOADS):
                hot = workload == "hot"
                setting = Setting(
                    target="",
                    fabric=fabric,
                    operation="get",
                    value_bytes=value_bytes,
                    batch=1,
                    keys=_HOT_KEYS if hot else keys,
                    threads=1,
                    processes=1 if hot else processes,
                    read_ratio=1.0 if hot else WORKLOADS[workload],
                    zipf_theta=None if hot else _ZIPF,
                    seconds=seconds,
                )
                rows += _compare(workload, setting, say)
        if "hot" in (workloads or ("hot",)):
            rows += _lmdb(seconds, say)
    except ProcessError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(metadata("kvstore-bench cache", seconds=seconds), rows)
    else:
        print_table("kvstore-bench cache", rows, _COLUMNS)


def _compare(workload: str, setting: Setting, say: Any) -> list[Row]:
    from dataclasses import replace

    rows: list[Row] = []
    for policy, options in (("none", {}), ("coherent", {"cache_bytes": _CACHE_BYTES})):
        with contextlib.ExitStack() as stack:
            say(f"{workload} over {setting.fabric}, {policy}")
            node = start_node(capacity_for(setting.keys, setting.value_bytes))
            stack.callback(node.child.stop)
            target = target_of([node], "auto" if setting.fabric == "shm" else setting.fabric)
            row = measure(replace(setting, target=target, options=options), say)
        row |= {"workload": workload, "policy": policy, "compute_nodes": setting.processes}
        row["speedup"] = row["ops_per_s"] / (rows[0] if rows else row)["ops_per_s"]
        rows.append(row)
    return rows


def _lmdb(seconds: float, say: Any) -> list[Row]:
    from kvstore.bench.peers.lmdb import LmdbSystem

    work = Work()
    work.order[:] = [work.keys[number] for number in uniform_order(_HOT_KEYS, len(work.order))]
    try:
        system = LmdbSystem(work)
    except Unavailable as error:
        say(f"without lmdb: {error}")
        return []
    say("hot in lmdb, 1 KiB")
    sample = system.measure(Case("lmdb", "file", "get"), seconds)
    system.close()
    return [
        {
            "workload": "hot",
            "policy": "lmdb",
            "fabric": "file",
            "compute_nodes": 1,
            "ops_per_s": sample.ops_per_s,
            "p50_us": sample.p50_us,
            "p99_us": sample.p99_us,
        }
    ]
