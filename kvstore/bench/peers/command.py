"""`kvstore-bench peers`: kvstore beside other systems on the same work, in one run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvstore.bench.document import Row, metadata, print_json, print_table
from kvstore.bench.peers.compare import Comparison
from kvstore.bench.peers.measures import MEASURES, SYSTEMS

_CASE_COLUMNS = (
    *("measure", "system", "fabric", "operation", "variant", "value_bytes", "batch"),
    *("ops_per_s", "ops_per_s_min", "ops_per_s_max", "p50_us", "p99_us"),
    *("verbs_per_op", "round_trips_per_op"),
)
_RATIO_COLUMNS = (
    *("measure", "fabric", "operation", "variant", "against", "figure"),
    *("ratio", "ratio_min", "ratio_max", "comparison", "target", "pass"),
)


@click.command()
@click.option(
    "--only",
    multiple=True,
    help="A system or a measure to run; repeat it for several. kvstore always runs.",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01),
    default=0.4,
    show_default=True,
    help="Of each sample; there is one a case and round.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture.")
def peers(
    only: tuple[str, ...], rounds: int, seconds: float, as_json: bool, plot: Path | None
) -> None:
    """Compare kvstore with Redis, memcached, LMDB, Mooncake Store, a bare socket and memcpy.

    Starts all of them itself, on private sockets and free ports. What is missing is fetched into
    the build folder (nothing is installed); what can't run gets a row with the reason.
    """
    names = {measure.name for measure in MEASURES}
    unknown = set(only) - names - set(SYSTEMS)
    if unknown:
        choices = ", ".join([*SYSTEMS, *sorted(names)])
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: choose from {choices}")
    measures = [m for m in MEASURES if m.name in only] or list(MEASURES)
    systems = {"kvstore", *only} & set(SYSTEMS) if set(only) & set(SYSTEMS) else set(SYSTEMS)
    comparison = Comparison(measures, systems, rounds=rounds, seconds=seconds)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    rows = comparison.run(say)
    if plot is not None:
        from kvstore.bench.plot import plot_ratios

        plot_ratios(rows, plot)
    if as_json:
        meta = metadata("kvstore-bench peers", rounds=rounds, sample_seconds=seconds)
        print_json(meta, rows)
        return
    _print(rows)


def _print(rows: list[Row]) -> None:
    for row in rows:
        if "comparison" in row:
            row["comparison"] = row["comparison"].replace("_", " ")
    cases = [row for row in rows if row["kind"] == "measurement"]
    ratios = [row for row in rows if row["kind"] == "ratio"]
    print_table("Measurements (medians of the rounds)", cases, _CASE_COLUMNS)
    print()
    print_table("Ratios (medians of the ratios within a round)", ratios, _RATIO_COLUMNS)
    judged = [row["pass"] for row in ratios if row["pass"] is not None]
    for reason in sorted({f"{row['system']}: {row['reason']}" for row in cases if "reason" in row}):
        print(f"not measured: {reason}")
    print(f"\n{sum(judged)} of {len(judged)} targets met; {len(ratios) - len(judged)} not measured")
