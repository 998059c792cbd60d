"""The store over verbs beside bare verbs and perftest, on one device in one run, with its targets.

    bench/verbs_measures.py [--device NAME] [--json]

Without --device it boots a machine of the lab (deploy/rxe) and measures on its Soft-RoCE device;
with it, on a device of this host, where perftest must be installed. Every program runs alone, one
after another, perftest before and after the store. Needs:

    make verbs && cmake --build build/editable --target verbs_bench post_path

The exit status is 0 also where a target is not met: an emulated processor is no ground to fail on.
"""

from __future__ import annotations

import json
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from deploy.rxe.machine import CHECKOUT, LabError, machines
from kvstore.bench.document import Row, metadata, print_json, print_table

BENCHES: Final = CHECKOUT / "build" / "editable" / "benches"
LIBRARY: Final = CHECKOUT / "kvstore" / "_verbs.so"
SMALL_BYTES: Final = 64
LARGE_BYTES: Final = 1 << 20
#: Bytes of a READ of `ib_read_bw`, and how many are under way: its own choice, a call of the store
#: at a time as one READ, and as the READs that the fabric makes of it.
WAYS: Final = ((LARGE_BYTES, 128), (LARGE_BYTES, 1), (LARGE_BYTES // 8, 8))
TIMEOUT_S: Final = 240.0
#: `best`: the ratio of the shortest rounds, which say most where the host is busy.
COLUMNS: Final = (
    *("measure", "store", "beside", "reference", "verbs", "ratio", "best", "target", "met"),
)
#: Runs a shell command and returns its output.
Shell = Callable[[str], str]


@click.command()
@click.option("--device", help="Of this host.  [default: Soft-RoCE in a machine of the lab]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def main(device: str | None, as_json: bool) -> None:
    """Print the measures of the verbs fabric with their targets, and whether they are met.

    \b
    Examples:
      .venv/bin/python bench/verbs_measures.py
      .venv/bin/python bench/verbs_measures.py --device mlx5_0 --json
    """  # noqa: D301
    missing = [name for name in ("verbs_bench", "post_path") if not (BENCHES / name).exists()]
    if missing:
        raise click.ClickException(
            f"{' and '.join(missing)} not built: make verbs && cmake --build build/editable"
            " --target verbs_bench post_path"
        )
    notes = Console(stderr=True)
    try:
        with notes.status("booting" if device is None else device) as status, shell(device) as run:
            rows = list(measures(run, device or "rxe0", status.update))
    except LabError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(metadata("bench/verbs_measures.py", device=device or "rxe0 of the lab"), rows)
    else:
        print_table(f"Verbs on {device or 'Soft-RoCE in the lab'}", rows, COLUMNS)


@contextmanager
def shell(device: str | None) -> Iterator[Shell]:
    """Where the programs run."""
    if device is not None:

        def here(command: str) -> str:
            finished = subprocess.run(
                command, shell=True, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
            return _output_of(command, finished.returncode, finished.stdout + finished.stderr)

        yield here
        return
    with machines(1) as (machine,):

        def inside(command: str) -> str:
            result = machine.run(command, timeout_s=TIMEOUT_S)
            return _output_of(command, result.exit_code, result.output)

        yield inside


def _output_of(command: str, exit_code: int, output: str) -> str:
    if exit_code != 0:
        raise LabError(f"exit code {exit_code} of: {command}\n{output[-2000:]}")
    return output


def measures(run: Shell, device: str, say: Callable[[str], None]) -> Iterator[Row]:
    """The rows."""
    chosen = shlex.quote(device)
    latencies_us, contests, prices = [], {}, {}
    rates: dict[tuple[int, int], list[float]] = {way: [] for way in WAYS}
    for turn in range(2):
        say("perftest")
        latencies_us.append(latency_us(run, chosen))
        for way in WAYS:
            rates[way].append(megabytes_per_s(run, chosen, *way))
        if turn == 0:
            say("the store beside bare verbs")
            bench = f"KVSTORE_VERBS_LIBRARY={LIBRARY} {BENCHES / 'verbs_bench'} {chosen} --json"
            answer = json.loads(run(bench).splitlines()[-1])
            contests = {row["name"]: row for row in answer["contests"]}
            prices = {row["name"]: row for row in answer["prices"]}
    say("the post path")
    posts = run(f"{BENCHES / 'post_path'} check").splitlines()
    read_us = f"ib_read_lat {SMALL_BYTES} B: {statistics.median(latencies_us):.1f} us"
    yield beside_bare(contests["get 64 B, address remembered"], prices, "1 round trip", read_us)
    yield beside_bare(contests["get 64 B, cold"], prices, "2 round trips", read_us)
    middle = {way: statistics.median(found) for way, found in rates.items()}
    yield beside_bandwidth(contests["get 1 MiB into registered memory"], middle)
    yield beside_the_same(contests["get 1 MiB beside the same READs, summed up"])
    bare = contests["32 gets of bare verbs: single, batch"]
    yield batch(contests["32 gets of the store: single, batch"], bare)
    yield beside_the_same(contests["32 gets at once"])
    clean = [line for line in posts if line.endswith("no allocation, no system call")]
    yield {
        "measure": "post path: calls without allocation and system call",
        "store": f"{len(clean)} of {len(posts)}",
        "target": "all",
        "met": len(clean) == len(posts) > 0,
    }


def beside_bare(contest: Row, prices: dict[str, Any], wanted: str, beside: str) -> Row:
    """A get beside the same READs of a program that does nothing else."""
    price = prices[contest["name"]]
    return {
        "measure": contest["name"],
        "store": f"{contest['store_us']:.1f} us",
        "beside": f"bare verbs: {contest['bare_us']:.1f} us",
        "reference": beside,
        "verbs": f"{price['reads']:g} READs, {price['round_trips']:g} round trips",
        "ratio": contest["ratio"],
        "best": contest["ratio_best"],
        "target": f"{wanted}, at most 1.3x bare verbs",
        "met": contest["ratio"] <= 1.3 and price["round_trips"] <= int(wanted[0]),
    }


def beside_the_same(contest: Row) -> Row:
    """The store beside a program that does what cannot be left out, and nothing else."""
    return {
        "measure": contest["name"],
        "store": f"{contest['store_us']:.0f} us",
        "beside": f"bare verbs: {contest['bare_us']:.0f} us",
        "ratio": contest["ratio"],
        "best": contest["ratio_best"],
    }


def beside_bandwidth(contest: Row, rates: dict[tuple[int, int], float]) -> Row:
    """A large value beside perftest: one at a time, as one call is, and with many under way."""
    own = LARGE_BYTES / contest["store_us"]
    rate = rates[WAYS[0]]
    others = ", ".join(
        f"{depth} of {size >> 10} KiB under way: {rates[size, depth]:.1f}"
        for size, depth in WAYS[1:]
    )
    return {
        "measure": contest["name"],
        "store": f"{own:.1f} MB/s",
        "beside": f"one bare READ: {LARGE_BYTES / contest['bare_us']:.1f} MB/s",
        "reference": f"ib_read_bw 1 MiB, 128 under way: {rate:.1f} MB/s; {others}",
        "ratio": own / rate,
        "target": "at least 0.9x ib_read_bw",
        "met": own >= 0.9 * rate,
    }


def batch(contest: Row, bare: Row) -> Row:
    """32 gets in one call beside 32 calls, and the same of a program that does nothing else."""
    faster = 1 / contest["ratio"]
    return {
        "measure": "batch of 32 gets, 64 B",
        "store": f"{contest['store_us']:.0f} us",
        "beside": f"32 single gets: {contest['bare_us']:.0f} us",
        "reference": f"bare verbs gain {1 / bare['ratio']:.1f}x",
        "ratio": faster,
        "best": 1 / contest["ratio_best"],
        "target": "at least 5x the throughput",
        "met": faster >= 5,
    }


def latency_us(run: Shell, device: str) -> float:
    """A READ of `ib_read_lat`, typically."""
    table = both_ends(run, f"ib_read_lat -d {device} -F -s {SMALL_BYTES} -n 500")
    # bytes, iterations, t_min, t_max, t_typical, ...
    return float(table[4])


def megabytes_per_s(run: Shell, device: str, size: int, depth: int) -> float:
    """The average of `ib_read_bw`, in 10^6 bytes; it prints MiB."""
    count = 20 * LARGE_BYTES // size
    table = both_ends(run, f"ib_read_bw -d {device} -F -s {size} -n {count} -t {depth}")
    # bytes, iterations, peak, average, message rate
    return float(table[3]) * (1 << 20) / 1e6


def both_ends(run: Shell, command: str) -> list[str]:
    """Server and client of a program of perftest, and the client's one line of figures."""
    # The client tries again until the server listens.
    both = (
        f"{command} >/dev/null 2>&1 & server=$!; tries=0; "
        f"until {command} localhost 2>&1; do tries=$((tries + 1)); "
        "[ $tries -lt 40 ] || { kill $server; exit 1; }; sleep 0.25; done; wait $server"
    )
    # On a busy host perftest may fail to gauge the processor's clock; it then prints `inf`.
    for _ in range(3):
        output = run(both)
        lines = re.findall(r"^ *(\d+ +\d+ +[\d.].*)$", output, re.MULTILINE)
        if lines:
            return str(lines[-1]).split()
    raise LabError(f"no figures from: {command}\n{output[-2000:]}")


if __name__ == "__main__":
    main()
