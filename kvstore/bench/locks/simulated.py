"""Points in simulated clusters: one row a lock and point, the mean of several seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Final

from kvstore.bench.locks.points import (
    ACQUIRE_TIMES,
    COMPARED,
    MASKED,
    OWN,
    OWN_FLAT,
    QUANTILES,
    TIMELINE,
    Point,
)
from kvstore.bench.sim.errors import SimulationError
from kvstore.bench.sim.runner import Row, Runner, find_simulator, read_parameters
from kvstore.bench.sim.scenario import Catalogue

#: Student's t for 95 % between both sides, by degrees of freedom.
_T95: Final = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_MEANS: Final = (
    *("p50_us", "p99_us", "p999_us", "jain", "verbs_per_op", "messages_per_op", "nic_busy"),
    *("release_p50_us", "rereads_per_op", "found_by_look_per_op"),
)
#: A NIC that is busy for this share of the time is what bounds the throughput.
NIC_BOUND: Final = 0.9
#: At least so many times the best rival, where the NIC is the bound and where a hot lock is.
TARGETS: Final = {True: 0.97, False: 0.90}
#: At most so many times what its position in the queue promises may a request wait.
WAIT_BOUND: Final = 3.0
_WAITS: Final = ("wait_ratio", "wait_position", "wait_us", "handover_us")


def interval95(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean."""
    if len(values) < 2:
        return math.nan
    freedom = min(len(values) - 1, len(_T95))
    return _T95[freedom - 1] * stdev(values) / math.sqrt(len(values))


def network(profile: str, assignments: Sequence[str]) -> dict[str, int | str]:
    """The network's parameters of a profile."""
    parameters = read_parameters(find_simulator())
    scenario = Catalogue(parameters).scenario("scale", profile=profile, assignments=assignments)
    groups = {parameter.name: parameter.group for parameter in parameters}
    return {
        name: value
        for name, value in scenario.settings.items()
        if groups.get(name) == "network" and name in groups
    }


def measure(
    locks: Sequence[str],
    points: Sequence[Point],
    *,
    profile: str,
    assignments: Sequence[str],
    seeds: range,
    warmup_ms: float,
    measure_ms: float,
    jobs: int,
    advance: Callable[[Row], None],
) -> Iterator[Row]:
    """One row for each point and lock.

    Raises:
        SimulationError: A lock broke its promise, or the simulator is not built.
    """
    program = find_simulator().with_name("kvstore_simulate_locks")
    base = network(profile, assignments)
    with Runner(program, jobs=jobs, seed_timeout_s=3600) as runner:
        for point in points:
            for lock in locks:
                # Long sections are watched longer: their queues take as much longer to go round.
                longer = max(1.0, point.accesses / 2)
                settings = {
                    **base,
                    **point.settings(),
                    "lock": lock,
                    "warmup_us": round(warmup_ms * longer * 1000),
                    "measure_us": round(measure_ms * longer * 1000),
                }
                measured = []
                for row in runner.rows(lock, settings, seeds):
                    if not row["ok"]:
                        raise SimulationError(
                            f"{lock}, {point.name()}, seed {row['seed']}: {row['violation']}"
                        )
                    measured.append(row)
                    advance(row)
                yield _mean(lock, profile, point, measured)


def _mean(lock: str, profile: str, point: Point, measured: Sequence[Row]) -> Row:
    rates = [row["ops_per_s"] for row in measured]
    longest = max(measured, key=lambda row: row["wait_ratio"])
    return {
        "lock": lock,
        "fabric": "sim",
        "profile": profile,
        "point": point.name(),
        "compute_nodes": point.compute_nodes,
        "clients": point.compute_nodes * point.clients,
        "memory_nodes": point.memory_nodes,
        "locks": point.locks,
        "zipf": point.zipf,
        "read_ratio": point.read_percent / 100,
        "accesses": point.accesses,
        "locality": point.locality_percent / 100,
        "atomic_ns": point.atomic_ns,
        "head_of_line": point.head_of_line,
        "ring": point.ring or None,
        "ring_per_client": point.ring / (point.compute_nodes * point.clients) or None,
        "masked_atomics": lock in MASKED,
        "ops_per_s": fmean(rates),
        "ops_per_s_ci95": interval95(rates),
        "seeds": len(measured),
        **{name: fmean(row[name] for row in measured) for name in _MEANS},
        ACQUIRE_TIMES: _means([row["hot_acquire_us"] for row in measured]),
        TIMELINE: [1000 * value for value in _means([row["timeline"] for row in measured])],
        # Of all seeds the wait that was longest beside its position.
        **{name: longest[name] for name in _WAITS},
    }


def _means(lists: Sequence[Sequence[float]]) -> list[float]:
    """Of each place in the lists that are not empty."""
    return [fmean(values) for values in zip(*filter(None, lists), strict=True)]


def spread_out(rows: Sequence[Row], shows: str) -> list[Row]:
    """What a row has a list of, as rows of their own."""
    if shows == ACQUIRE_TIMES:
        return [
            {"lock": row["lock"], "point": row["point"]}
            | {
                f"p{quantile / 10:g}_us": value
                for quantile, value in zip(QUANTILES, row[ACQUIRE_TIMES], strict=True)
            }
            for row in rows
            if row[ACQUIRE_TIMES]
        ]
    return [
        {"lock": row["lock"], "point": row["point"], "ms": ms, "ops_per_s": value}
        for row in rows
        for ms, value in enumerate(row[TIMELINE])
    ]


def compare(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each point that has the store's lock: how it stands beside the others."""
    by_point: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_point.setdefault(row["point"], {})[row["lock"]] = row
    compared = []
    for point, locks in by_point.items():
        rivals: dict[str, Row] = {name: locks[name] for name in COMPARED if name in locks}
        if OWN not in locks or not rivals:
            continue
        compared.append(_beside(point, locks[OWN], rivals))
    return compared


def waits(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each row with a lock that was waited for: its longest wait, and the bound of our own.

    Where the clients of a compute node share a place, the bound is not kept: most hand-overs are
    local and short, and a single one to elsewhere is already more than twice the median.
    """
    return [
        {
            **{name: row[name] for name in ("lock", "point", "p999_us", *_WAITS)},
            "bound": WAIT_BOUND if row["lock"] in (OWN, OWN_FLAT) else None,
            "met": row["wait_ratio"] <= WAIT_BOUND if row["lock"] in (OWN, OWN_FLAT) else None,
        }
        for row in rows
        if row["wait_ratio"] > 0
    ]


def _beside(point: str, own: Row, rivals: Mapping[str, Row]) -> dict[str, Any]:
    best = max(rivals.values(), key=lambda row: row["ops_per_s"])
    nic_bound = max(own["nic_busy"], best["nic_busy"]) >= NIC_BOUND
    ratio = own["ops_per_s"] / best["ops_per_s"]
    return {
        "point": point,
        "ops_per_s": own["ops_per_s"],
        **{f"over_{name}": own["ops_per_s"] / row["ops_per_s"] for name, row in rivals.items()},
        "best_rival": best["lock"],
        "over_best": ratio,
        "bound": "NIC" if nic_bound else "hot lock",
        "target": TARGETS[nic_bound],
        "met": ratio >= TARGETS[nic_bound],
    }
