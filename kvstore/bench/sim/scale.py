"""`kvstore-bench scale`: throughput and latency of a cluster that grows, simulated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from kvstore.bench.document import Row, metadata, print_json, print_table
from kvstore.bench.sim.command import progress_bar
from kvstore.bench.sim.errors import SimulationError
from kvstore.bench.sim.runner import Runner, find_simulator, read_parameters
from kvstore.bench.sim.scenario import Catalogue

OPERATIONS: Final = ("get", "put")
_COLUMNS: Final = (
    *("operation", "memory_nodes", "compute_nodes", "ops_per_s", "p50_us", "p99_us"),
    *("verbs_per_op", "nic_busy", "processor_busy", "full"),
)
_FULL: Final = 0.9
_KEYS: Final = 20_000
_CALLS_A_LANE: Final = 60
_CALLS_MIN: Final = 20_000


def _numbers(_context: click.Context, _parameter: click.Parameter, text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise click.BadParameter("expected numbers with commas between them") from error
    if min(numbers) < 1:
        raise click.BadParameter("every number is at least 1")
    return numbers


@click.command(
    epilog="""\b
Examples:
  kvstore-bench scale --plot scale.png
  kvstore-bench scale --memory-nodes 1 --compute-nodes 1,64 --set atomic_ns=500
"""
)
@click.option("--memory-nodes", callback=_numbers, default="1,4,16,64", show_default=True)
@click.option(
    "--compute-nodes", callback=_numbers, default="1,16,64,128,256,512", show_default=True
)
@click.option(
    "--lanes",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Calls under way in each compute node, each with a processor of its own.",
)
@click.option("--value-bytes", type=click.IntRange(8), default=256, show_default=True)
@click.option("--profile", default="connectx6", show_default=True)
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="A parameter.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option(
    "--jobs", type=click.IntRange(1), default=1, help="Processes; the largest takes 3 GB."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture.")
def scale(
    memory_nodes: list[int],
    compute_nodes: list[int],
    lanes: int,
    value_bytes: int,
    profile: str,
    assignments: tuple[str, ...],
    seed: int,
    jobs: int,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Simulate gets and puts of clusters from one compute node and one memory node upwards.

    Uniform keys, closed loops without think time. Where throughput stops to grow, `full` names the
    resource: the memory nodes' NICs or the lanes' processors; where it is empty, a call waits for
    its round trips only, and more lanes give more.
    """
    program = find_simulator()
    catalogue = Catalogue(read_parameters(program))
    points = [
        (operation, nodes, clients)
        for operation in OPERATIONS
        for nodes in memory_nodes
        for clients in compute_nodes
    ]
    settings = {
        point: catalogue.scenario(
            "scale",
            profile=profile,
            assignments=[*_point(point, lanes, value_bytes), *assignments],
        ).settings
        for point in points
    }
    rows: list[Row] = []
    with (
        Runner(program, jobs=jobs, seed_timeout_s=1800) as runner,
        progress_bar("scale", len(points)) as advance,
    ):
        for point, measured in _measure(runner, settings, seed):
            rows.append(_row(point, measured))
            advance(measured)
    if plot is not None:
        from kvstore.bench.plot import plot_scale

        plot_scale(rows, plot)
    if as_json:
        facts: dict[str, Any] = {"profile": profile, "lanes": lanes, "value_bytes": value_bytes}
        print_json(metadata("kvstore-bench scale", seed=seed, **facts), rows)
    else:
        print_table(f"Simulated, profile {profile}, {lanes} lanes each", rows, _COLUMNS)


_Point = tuple[str, int, int]


def _measure(
    runner: Runner, settings: dict[_Point, Any], seed: int
) -> Iterator[tuple[_Point, Row]]:
    for point, chosen in settings.items():
        (measured,) = runner.rows("scale", chosen, range(seed, seed + 1))
        yield point, measured


def _point(point: _Point, lanes: int, value_bytes: int) -> list[str]:
    operation, nodes, clients = point
    calls = max(_CALLS_MIN, clients * lanes * _CALLS_A_LANE)
    numbers = {
        "nodes": nodes,
        "clients": clients,
        "lanes": lanes,
        "keys": _KEYS,
        "operations": _KEYS + calls,
        "get_percent": 100 if operation == "get" else 0,
        "put_percent": 100 if operation == "put" else 0,
        "value_bytes_min": value_bytes - 8,
        "value_bytes_max": value_bytes - 8,
    }
    return [f"{name}={value}" for name, value in numbers.items()]


def _row(point: _Point, measured: Row) -> Row:
    operation, nodes, clients = point
    if not measured["ok"]:
        place = f"{operation} of {clients} compute nodes on {nodes} memory nodes"
        raise SimulationError(f"{place}: {measured['violation']}")
    busy = {"NIC": measured["nic_busy"], "processors": measured["processor_busy"]}
    full = [name for name, share in busy.items() if share >= _FULL]
    figures = (
        "ops_per_s",
        "p50_us",
        "p99_us",
        "p999_us",
        "verbs_per_op",
        "nic_busy",
        "nic_blocked",
        "processor_busy",
        "virtual_s",
        "cpu_s",
    )
    return {
        "operation": operation,
        "memory_nodes": nodes,
        "compute_nodes": clients,
        "full": ", ".join(full) or None,
        **{name: measured[name] for name in figures},
    }
