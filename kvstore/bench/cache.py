"""`kvstore-bench cache`: what copies of values in the clients bring, and what they cost."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from kvstore.bench.cache_idle import measure_idle
from kvstore.bench.cache_simulated import MANAGER_RATES
from kvstore.bench.cache_workloads import (
    YCSB,
    MissingTraces,
    Workload,
    traces_folder,
    twitter,
)
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
_IDLE: Final = "idle"
_POLICIES: Final = ("none", "coherent")
_SIMULATED: Final = "sim"
_CACHE_BYTES: Final = 64 << 20
_COLUMNS: Final = (
    *("workload", "policy", "fabric", "compute_nodes", "ops_per_s", "speedup", "p50_us", "p99_us"),
    *("verbs_per_op", "hit_ratio", "invalidations_per_op", "over_lmdb", "cpu_percent"),
    *("heartbeat_verbs_per_s", "failures"),
)


@click.command(
    epilog="\b\nExamples:\n  kvstore-bench cache\n"
    "  kvstore-bench cache --fabric tcp --processes 2 --workload ycsb-b --json\n"
    "  kvstore-bench cache --workload ycsb-a --policy coherent --policy regular\n"
    "  kvstore-bench cache --fabric sim --workload ycsb-b --workload twitter-4"
)
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    metavar="NAME",
    help=f"Of hot, {', '.join(WORKLOADS)}, idle; on sim of ycsb-a to ycsb-f, twitter, twitter-1 to"
    " twitter-54. May be given again. Default: all.",
)
@click.option(
    "--fabric",
    "fabrics",
    multiple=True,
    type=click.Choice(["shm", "tcp", _SIMULATED]),
    help="May be given again. Default: shm and tcp.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice(["none", "central", "lease", "coherent", "regular"]),
    help="May be given again. Default: on sim all but regular, otherwise none and coherent.",
)
@click.option("--profile", default="connectx6", show_default=True, help="The network of sim.")
@click.option(
    "--operations",
    type=click.IntRange(1),
    default=200_000,
    show_default=True,
    help="On sim: so many are measured; of scans fewer.",
)
@click.option(
    "--warm-up",
    type=click.IntRange(1),
    help="On sim: operations before those that are measured. Default: as many.",
)
@click.option(
    "--manager-rate",
    "rates",
    multiple=True,
    type=click.Choice([str(rate // 1_000_000) for rate in MANAGER_RATES]),
    help="On sim: million messages a second of central. May be given again. Default: all.",
)
@click.option(
    "--keep",
    type=click.Path(dir_okay=False, path_type=Path),
    help="On sim: a file for rows as they come; what is in it is not run again. Of one build.",
)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="On sim.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="On sim.")
@click.option(
    "--apart",
    is_flag=True,
    help="Processes end each other's copies by messages, as on hosts of their own. "
    "On sim each has one anyway.",
)
@click.option("--processes", type=click.IntRange(1, 64), default=2, show_default=True)
@click.option("--keys", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--value-bytes", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.01), default=3.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def cache(
    workloads: tuple[str, ...],
    fabrics: tuple[str, ...],
    policies: tuple[str, ...],
    apart: bool,
    processes: int,
    keys: int,
    value_bytes: int,
    seconds: float,
    as_json: bool,
    **simulated: Any,
) -> None:
    """Measure each workload with and without copies, on a node of its own.

    `hot` reads a few keys in one thread, beside LMDB where the package lmdb is there: a fresh read
    transaction a get. `idle` has copies and does nothing: processor time, and verbs of its
    heartbeat. The others have two processes by default, so that one's writes end the
    other's copies. Policy `none` is a client without copies, `coherent` one with them, `regular`
    the same on a node that was started with `--consistency regular`.

    On `sim` eight compute nodes run YCSB A to F and what is published of Twitter's clusters:
    without copies, with the store's (`coherent`), with a central manager of 2 million messages a
    second (beside it of 1, 4 and 8 million), and with copies that are read for a millisecond
    whoever writes (`lease`).
    """
    if _SIMULATED in fabrics:
        if len(set(fabrics)) > 1:
            raise click.UsageError("--fabric sim has workloads of its own: run it by itself")
        _simulate(workloads, policies=policies, as_json=as_json, **simulated)
        return
    for workload in workloads:
        if workload not in ("hot", *WORKLOADS, _IDLE):
            raise click.UsageError(
                f"{workload} is none of hot, {', '.join(WORKLOADS)}, {_IDLE}; more of them are on"
                " sim"
            )
    if only_simulated := {"central", "lease"}.intersection(policies):
        raise click.UsageError(f"--policy {min(only_simulated)} is on sim only")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    rows: list[Row] = []
    try:
        for fabric in fabrics or ("shm", "tcp"):
            for workload in workloads or ("hot", *WORKLOADS, _IDLE):
                if workload == _IDLE:
                    rows += _idle(fabric, seconds, say)
                    continue
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
                    # Copies are made by reads, and keys judged by their changes.
                    warm_up=seconds,
                )
                rows += _compare(workload, setting, policies or _POLICIES, apart, say)
        if "hot" in (workloads or ("hot",)):
            rows += _beside_lmdb(rows, _lmdb(seconds, say))
    except ProcessError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(metadata("kvstore-bench cache", seconds=seconds, apart=apart), rows)
    else:
        print_table("kvstore-bench cache", rows, _COLUMNS)


def _simulate(
    names: tuple[str, ...],
    *,
    policies: tuple[str, ...],
    profile: str,
    operations: int,
    warm_up: int | None,
    rates: tuple[str, ...],
    keep: Path | None,
    seeds: int,
    jobs: int,
    as_json: bool,
) -> None:
    from kvstore.bench import cache_simulated as simulated
    from kvstore.bench.sim.command import progress_bar
    from kvstore.bench.sim.errors import SimulationError

    workloads, missing = _simulated_workloads(names)
    if missing:
        print(f"left out: {missing}", file=sys.stderr)
    chosen = policies or simulated.POLICIES
    chosen_rates = [1_000_000 * int(rate) for rate in rates] or simulated.MANAGER_RATES
    total = len(workloads) * len(simulated.runs_of(chosen, chosen_rates)) * seeds
    try:
        with progress_bar("copies", total) as advance:
            rows = list(
                simulated.measure(
                    workloads,
                    chosen,
                    profile=profile,
                    compute_nodes=simulated.COMPUTE_NODES,
                    operations=operations,
                    warm_up=warm_up or operations,
                    rates=chosen_rates,
                    kept=simulated.Kept(keep),
                    seeds=range(1, seeds + 1),
                    jobs=jobs,
                    advance=advance,
                )
            )
    except SimulationError as error:
        raise click.ClickException(str(error)) from error
    ratios = simulated.compare(rows) if "coherent" in chosen and len(chosen) > 1 else []
    totals = simulated.summary(ratios)
    if as_json:
        facts = {
            "profile": profile,
            "operations": operations,
            "warm_up": warm_up,
            "missing": missing,
        }
        document = metadata("kvstore-bench cache", **facts, ratios=ratios, summary=totals)
        print_json(document, rows)
        return
    columns = (*_COLUMNS, "manager_messages_per_s", "stale_reads", "zipf", "skew_missing")
    print_table(f"Copies of values: simulated, profile {profile}", rows, columns)
    if any(row["synthetic"] for row in rows):
        print("The Twitter rows are synthetic: made from published figures, not from requests.")
    if ratios:
        print_table("The store's copies over the others", ratios, list(ratios[0]))
        print_table("Over all workloads", totals, list(totals[0]))
    for ratio in ratios:
        if ratio.get("over_none", 1.0) < simulated.FLOOR:
            print(f"BELOW TARGET {ratio['workload']}: {ratio['over_none']:.3f} of no copies")


def _simulated_workloads(names: tuple[str, ...]) -> tuple[list[Workload], str]:
    """The workloads of these names, and why some are not there."""
    known = list(YCSB)
    missing = ""
    if not names or any(name.startswith("twitter") for name in names):
        try:
            known += twitter(traces_folder())
        except MissingTraces as error:
            if names:
                raise click.ClickException(str(error)) from error
            missing = str(error)
    if not names:
        return known, missing
    by_name = {workload.name: [workload] for workload in known}
    by_name["twitter"] = [workload for workload in known if workload.synthetic]
    for name in names:
        if name not in by_name:
            raise click.UsageError(f"{name} is none of ycsb-a to ycsb-f, twitter, twitter-1 ...")
    return [workload for name in names for workload in by_name[name]], missing


def _compare(
    workload: str, setting: Setting, policies: Sequence[str], apart: bool, say: Any
) -> list[Row]:
    from dataclasses import replace

    rows: list[Row] = []
    copies = {"cache_bytes": _CACHE_BYTES, "host_stamps": not apart}
    for policy in policies:
        options = {} if policy == "none" else copies
        rule = ("--consistency", "regular") if policy == "regular" else ()
        with contextlib.ExitStack() as stack:
            say(f"{workload} over {setting.fabric}, {policy}")
            node = start_node(capacity_for(setting.keys, setting.value_bytes), options=rule)
            stack.callback(node.child.stop)
            target = target_of([node], "auto" if setting.fabric == "shm" else setting.fabric)
            row = measure(replace(setting, target=target, options=options), say)
        row |= {"workload": workload, "policy": policy, "compute_nodes": setting.processes}
        row["speedup"] = row["ops_per_s"] / (rows[0] if rows else row)["ops_per_s"]
        rows.append(row)
    return rows


def _idle(fabric: str, seconds: float, say: Any) -> list[Row]:
    rows: list[Row] = []
    for policy, cache_bytes in (("none", 0), ("coherent", _CACHE_BYTES)):
        say(f"{_IDLE} over {fabric}, {policy}")
        node = start_node(capacity_for(1000, 1024))
        try:
            target = target_of([node], "auto" if fabric == "shm" else fabric)
            rows.append(measure_idle(target, fabric, cache_bytes, seconds))
        finally:
            node.child.stop()
    return rows


def _beside_lmdb(rows: list[Row], lmdb: list[Row]) -> list[Row]:
    """Says of the hot rows how they compare, and returns LMDB's."""
    for row in rows:
        if lmdb and row["workload"] == "hot":
            row["over_lmdb"] = row["ops_per_s"] / lmdb[0]["ops_per_s"]
    return lmdb


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
