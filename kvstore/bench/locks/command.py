"""`kvstore-bench lock`: locks in simulated clusters beside others, or over a real fabric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from kvstore.bench.document import Row, metadata, print_json, print_table
from kvstore.bench.locks.points import (
    ACQUIRE_TIMES,
    FIGURES,
    LOCKS,
    OWN,
    QUANTILES,
    RELEASE,
    REREADS,
    THROUGHPUT,
    TIMELINE,
    Figure,
    Point,
    sweep,
)

_COLUMNS: Final = (
    *("lock", "fabric", "point", "clients", "ops_per_s", "ops_per_s_ci95", "p50_us", "p99_us"),
    *("jain", "verbs_per_op", "messages_per_op", "nic_busy"),
)
_REAL_COLUMNS: Final = (
    *("lock", "fabric", "workload", "clients", "locks", "read_ratio", "ops_per_s", "p50_us"),
    *("p99_us", "jain", "verbs_per_op", "checked"),
)
_SPECIAL_COLUMNS: Final = (
    *("lock", "compute_nodes", "read_ratio", "accesses", "zipf", "ring", "ops_per_s", "p99_us"),
    *("rereads_per_op", "release_p50_us", "found_by_look_per_op", "verbs_per_op"),
)
_LABELS: Final = {
    THROUGHPUT: "operations a second",
    REREADS: "second READs an operation",
    RELEASE: "median release, us",
    "accesses": "data accesses under a lock",
    "compute_nodes": "compute nodes",
    "ring": "entries of a queue",
    "read_ratio": "readers",
    "ring_per_client": "entries a client:",
    "zipf": "Zipf",
}
_RATIOS: Final = (
    *("point", "ops_per_s", "over_cas", "over_dslr", "over_shiftlock", "over_declock"),
    *("best_rival", "over_best", "bound", "target", "met"),
)
_WAIT_COLUMNS: Final = (
    *("lock", "point", "wait_ratio", "bound", "met", "wait_position", "wait_us", "handover_us"),
    "p999_us",
)
_SIMULATED: Final = "sim"


def _numbers(kind: type, low: float, high: float) -> Any:
    def parse(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        try:
            numbers = [kind(word) for word in text.split(",")]
        except ValueError as error:
            raise click.BadParameter("expected numbers with commas between them") from error
        if min(numbers) < low or max(numbers) > high:
            raise click.BadParameter(f"every number is from {low:g} to {high:g}")
        return numbers

    return parse


def _locks(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Any:
    if text is None:
        return None
    names = text.split(",")
    for name in names:
        if name not in LOCKS:
            raise click.BadParameter(f"{name} is none of {', '.join(LOCKS)}")
    return names


@click.command(
    epilog="""\b
Examples:
  kvstore-bench lock                             DecLock's default point, all locks
  kvstore-bench lock --compute-nodes 1,8,31 --read-percent 0,50
  kvstore-bench lock --figure read-ratio --plot read-ratio.png
  kvstore-bench lock --figure grid --seeds 5 --json
  kvstore-bench lock --figure failure            a compute node is killed, ms by ms
  kvstore-bench lock --fabric shm                pairs a second, beside redis-py and fasteners
  kvstore-bench lock --fabric tcp --workload bank --processes 4
  kvstore-bench lock --fabric tcp --workload recovery --rounds 10
"""
)
@click.option(
    "--fabric",
    type=click.Choice([_SIMULATED, "shm", "tcp", "verbs"]),
    default=_SIMULATED,
    show_default=True,
)
@click.option("--lock", "locks", callback=_locks, help=f"Of {', '.join(LOCKS)}. Only with sim.")
@click.option("--figure", type=click.Choice(list(FIGURES)), help="A figure of the evaluation.")
@click.option("--compute-nodes", callback=_numbers(int, 1, 512))
@click.option("--clients", callback=_numbers(int, 1, 1024), help="Of each compute node.")
@click.option("--memory-nodes", callback=_numbers(int, 1, 64))
@click.option("--locks", "lock_counts", callback=_numbers(int, 1, 10_000_000))
@click.option("--zipf", callback=_numbers(float, 0, 0.9999))
@click.option("--read-percent", callback=_numbers(int, 0, 100))
@click.option("--accesses", callback=_numbers(int, 0, 1000), help="While a lock is held.")
@click.option("--locality", callback=_numbers(int, 0, 100), help="Percent on own locks.")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--profile", default="connectx6", show_default=True, help="The simulated network.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Of the network.")
@click.option("--warmup-ms", type=click.FloatRange(0), default=5.0, show_default=True)
@click.option(
    "--measure-ms",
    type=click.FloatRange(0.1),
    help="Of virtual time; longer where sections are long. [default: 20, or what suits the figure]",
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--workload",
    type=click.Choice(["pairs", "counter", "bank", "recovery"]),
    default="pairs",
    show_default=True,
    help="Over a real fabric: free locks, a counter under hot locks, transfers under two, the time"
    " from a holder's death to the next grant.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="With recovery: those that wait.",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of recovery.")
@click.option(
    "--lease-s",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    help="Of the membership, for recovery.",
)
@click.option("--seconds", type=click.FloatRange(0.1), default=2.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture.")
def lock(
    fabric: str,
    locks: Sequence[str] | None,
    figure: str | None,
    seeds: int,
    profile: str,
    assignments: tuple[str, ...],
    warmup_ms: float,
    measure_ms: float | None,
    jobs: int,
    workload: str,
    processes: int,
    rounds: int,
    lease_s: float,
    seconds: float,
    as_json: bool,
    plot: Path | None,
    **axes: Any,
) -> None:
    """Measure the store's lock, and others beside it.

    On `sim` (no hardware needed) clients of whole clusters take locks in closed loops; the rows are
    means of several seeds. Published locks run beside the store's: CAS spin, DSLR, MCS, ShiftLock
    and DecLock. Every run checks that nobody holds a lock beside a writer, and that a counter under
    each lock ends at the number of its writers.

    On the other fabrics real processes take locks of a real node; with `--workload recovery` those
    that hold one are killed.
    """
    if fabric != _SIMULATED and workload == "recovery":
        _run_recovery(fabric, processes, rounds, lease_s, as_json)
        return
    if fabric != _SIMULATED:
        _run_real(fabric, workload, processes, seconds, as_json)
        return
    chosen = _figure(figure, axes)
    measure_ms = measure_ms or chosen.measure_ms
    rows = _run_simulated(
        chosen,
        list(locks or chosen.locks),
        seeds=range(1, seeds + 1),
        profile=profile,
        assignments=assignments,
        warmup_ms=warmup_ms,
        measure_ms=measure_ms,
        jobs=jobs,
    )
    from kvstore.bench.locks.simulated import compare, waits

    is_special = figure is not None and (chosen.shows != THROUGHPUT or chosen.series != "")
    ratios, longest = ([], []) if is_special else (compare(rows), waits(rows))
    if plot is not None:
        _plot(chosen, rows, is_special, plot)
    if as_json:
        facts = {"profile": profile, "seeds": seeds, "measure_ms": measure_ms}
        facts |= {"ratios": ratios, "waits": longest}
        print_json(metadata("kvstore-bench lock", **facts), rows)
        return
    if is_special:
        _print_special(chosen, rows, profile)
        return
    print_table(f"{chosen.title}: simulated, profile {profile}", rows, _COLUMNS)
    _print_beside(ratios, longest)


def _print_beside(ratios: Sequence[Row], longest: Sequence[Row]) -> None:
    if ratios:
        print_table("The store's lock beside the others", ratios, _RATIOS)
    for ratio in ratios:
        if not ratio["met"]:
            print(
                f"BELOW TARGET {ratio['point']}: {ratio['over_best']:.3f} of"
                f" {ratio['best_rival']}, at least {ratio['target']:g} is wanted"
            )
    if longest:
        title = "The longest waits: times the position in the queue x the lock's median hand-over"
        print_table(title, longest, _WAIT_COLUMNS)
    for wait in longest:
        if wait["met"] is False:
            print(
                f"ABOVE THE BOUND {wait['lock']}, {wait['point']}: a wait of"
                f" {wait['wait_ratio']:.2f} times what its position promises,"
                f" at most {wait['bound']:g} is wanted"
                + (": hand-overs within a compute node are shorter" if wait["lock"] == OWN else "")
            )


def _plot(figure: Figure, rows: Sequence[Row], is_special: bool, path: Path) -> None:
    from kvstore.bench.plot import plot_lines, plot_locks

    if not is_special:
        plot_locks(rows, figure.title, figure.axis, path)
        return
    lines: dict[str, tuple[list[float], list[float]]] = {}
    if figure.shows == ACQUIRE_TIMES:
        shares = [quantile / 1000 for quantile in QUANTILES]
        lines = {row["lock"]: (row[ACQUIRE_TIMES], shares) for row in rows if row[ACQUIRE_TIMES]}
        labels = ("us until it is granted", "share of the acquisitions")
    elif figure.shows == TIMELINE:
        lines = {row["lock"]: (list(range(len(row[TIMELINE]))), row[TIMELINE]) for row in rows}
        labels = ("ms", _LABELS[THROUGHPUT])
    else:
        labels = (_LABELS[figure.axis], _LABELS[figure.shows])
        for row in rows:
            name = f"{row['lock']}, {_LABELS[figure.series]} {row[figure.series]:g}"
            xs, ys = lines.setdefault(name, ([], []))
            xs.append(row[figure.axis])
            ys.append(row[figure.shows])
    log_base = {ACQUIRE_TIMES: 10, TIMELINE: 0, REREADS: 0}.get(figure.shows, 2)
    plot_lines(lines, figure.title, labels, path, log_base=log_base)


def _print_special(figure: Figure, rows: Sequence[Row], profile: str) -> None:
    from kvstore.bench.locks.simulated import spread_out

    title = f"{figure.title}: simulated, profile {profile}"
    if figure.shows in (ACQUIRE_TIMES, TIMELINE):
        spread = spread_out(rows, figure.shows)
        print_table(title, spread, list(spread[0]) if spread else ())
        return
    print_table(title, rows, _SPECIAL_COLUMNS)


def _figure(name: str | None, axes: dict[str, Any]) -> Figure:
    given = {
        {"lock_counts": "locks", "locality": "locality_percent"}.get(axis, axis): values
        for axis, values in axes.items()
        if values is not None
    }
    if name is not None:
        if given:
            raise click.UsageError("a figure has its own points: leave --figure or the others out")
        return FIGURES[name]
    varied = [axis for axis, values in given.items() if len(values) > 1]
    points = sweep(given) if given else (Point(),)
    axis = varied[0] if len(varied) == 1 else ""
    return Figure("Locks", axis, points, LOCKS)


def _run_simulated(
    figure: Figure, locks: Sequence[str], *, seeds: range, **settings: Any
) -> list[Row]:
    from kvstore.bench.locks.simulated import measure
    from kvstore.bench.sim.command import progress_bar
    from kvstore.bench.sim.errors import SimulationError

    total = len(figure.points) * len(locks) * len(seeds)
    try:
        with progress_bar(figure.title, total) as advance:
            return list(measure(locks, figure.points, seeds=seeds, advance=advance, **settings))
    except SimulationError as error:
        raise click.ClickException(str(error)) from error


def _run_recovery(fabric: str, waiters: int, rounds: int, lease_s: float, as_json: bool) -> None:
    from kvstore.bench.locks.recovery import measure_recovery
    from kvstore.bench.processes import ProcessError

    try:
        row = measure_recovery(fabric, waiters, rounds, lease_s)
    except ProcessError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(metadata("kvstore-bench lock", fabric=fabric, workload="recovery"), [row])
        return
    print_table(f"From a holder's death to the next grant, over {fabric}", [row], list(row))


def _run_real(fabric: str, workload: str, processes: int, seconds: float, as_json: bool) -> None:
    from kvstore.bench.locks.real import measure_real
    from kvstore.bench.processes import ProcessError

    try:
        rows, missing = measure_real(fabric, workload, processes, seconds)
    except ProcessError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        facts = {"fabric": fabric, "workload": workload, "missing": missing}
        print_json(metadata("kvstore-bench lock", **facts), rows)
        return
    print_table(f"Locks over {fabric}: {workload}", rows, _REAL_COLUMNS)
    for line in missing:
        print(line)
    own = next(row for row in rows if row["lock"] == OWN)
    for row in rows:
        if row is not own and row["lock"] != f"{OWN}-native":
            print(f"{own['ops_per_s'] / row['ops_per_s']:.1f} times {row['lock']}")
