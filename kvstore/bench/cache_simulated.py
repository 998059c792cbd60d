"""Copies of values in simulated clusters: the store's, and other ways beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any, Final

from kvstore.bench.cache_workloads import Workload
from kvstore.bench.locks.simulated import network
from kvstore.bench.sim.errors import SimulationError
from kvstore.bench.sim.runner import Row, Runner, find_simulator

POLICIES: Final = ("none", "central", "lease", "coherent")
#: Messages a second of the manager of `central`; the first one is what is compared with.
MANAGER_RATES: Final = (2_000_000, 1_000_000, 4_000_000, 8_000_000)
COMPUTE_NODES: Final = 8
#: Never slower than this share of no copies, on any workload.
FLOOR: Final = 0.97
#: DiFache (arXiv 2505.18013) reports over existing approaches, on Twitter's own requests.
PAPER: Final = {"mean": 5.53, "maximum": 10.83}
_FIGURES: Final = (
    *("ops_per_s", "verbs_per_op", "hit_ratio", "invalidations_per_op", "p50_us", "p99_us"),
    *("messages_per_op", "nic_busy"),
)


class Kept:
    """Simulated rows in a file, a line each, so that a long comparison can be broken off.

    A row is found by its whole job. What the store itself was then is not in it: a file is of one
    build.
    """

    def __init__(self, path: Path | None) -> None:
        """Read what is there.

        Raises:
            SimulationError: The file has something else in it.
        """
        self._path = path
        self._rows: dict[str, Row] = {}
        if path is None or not path.exists():
            return
        # The last line may be half of one, if its writer was killed.
        *lines, _ = path.read_text(encoding="utf-8").split("\n")
        try:
            for line in lines:
                kept = json.loads(line)
                self._rows[kept["job"]] = kept["row"]
        except (ValueError, TypeError, KeyError) as error:
            raise SimulationError(
                f"{path} holds no kept rows ({error}): name another file"
            ) from None
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def find(self, job: Mapping[str, Any], seed: int) -> Row | None:
        """The row of a job, if it was run before."""
        return self._rows.get(_name_of(job, seed))

    def add(self, job: Mapping[str, Any], seed: int, row: Row) -> None:
        """Keep a row."""
        if self._path is None:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"job": _name_of(job, seed), "row": row}) + "\n")


def _name_of(job: Mapping[str, Any], seed: int) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(job.items())) + f" seed={seed}"


def runs_of(policies: Sequence[str], rates: Sequence[int] = MANAGER_RATES) -> list[tuple[str, int]]:
    """Each policy with the rate of its manager, 0 where it has none."""
    return [
        (policy, rate) for policy in policies for rate in (rates if policy == "central" else (0,))
    ]


def measure(
    workloads: Sequence[Workload],
    policies: Sequence[str],
    *,
    profile: str,
    compute_nodes: int,
    operations: int,
    warm_up: int,
    seeds: range,
    jobs: int,
    advance: Callable[[Row], None],
    rates: Sequence[int] = MANAGER_RATES,
    kept: Kept | None = None,
) -> Iterator[Row]:
    """One row for each workload, policy and rate of the manager: the mean of the seeds.

    `operations` are measured, after `warm_up` others. What `kept` has is not run again.

    Raises:
        SimulationError: A read was stale where none may be, or the simulator is not built.
    """
    program = find_simulator().with_name("kvstore_simulate_caches")
    base = network(profile, ())
    with Runner(program, jobs=jobs, seed_timeout_s=3600) as runner:
        for workload in workloads:
            for policy, rate in runs_of(policies, rates):
                settings = {
                    **base,
                    **workload.settings(),
                    "policy": policy,
                    "compute_nodes": compute_nodes,
                    "warmup_operations": max(1, warm_up // workload.reads_per_operation),
                    "measure_operations": max(1, operations // workload.reads_per_operation),
                }
                if rate:
                    settings["manager_messages_per_s"] = rate
                measured = []
                for row in _rows(runner, policy, settings, seeds, kept or Kept(None)):
                    if not row["ok"]:
                        raise SimulationError(
                            f"{workload.name}, {policy}, seed {row['seed']}: {row['violation']}"
                        )
                    measured.append(row)
                    advance(row)
                yield {
                    "workload": workload.name,
                    "policy": policy,
                    "fabric": "sim",
                    "profile": profile,
                    "compute_nodes": compute_nodes,
                    **{name: fmean(row[name] for row in measured) for name in _FIGURES},
                    "stale_reads": sum(row["stale_reads"] for row in measured),
                    "manager_messages_per_s": rate or None,
                    "keys": workload.keys,
                    "zipf": workload.zipf,
                    "skew_missing": workload.skew_missing,
                    "synthetic": workload.synthetic,
                    "seeds": len(measured),
                }


def _rows(
    runner: Runner, policy: str, settings: Mapping[str, Any], seeds: range, kept: Kept
) -> Iterator[Row]:
    first = seeds.start
    while first < seeds.stop and (row := kept.find(settings, first)) is not None:
        yield row
        first += 1
    if first == seeds.stop:
        return
    for row in runner.rows(policy, settings, range(first, seeds.stop)):
        kept.add(settings, row["seed"], row)
        yield row


def compare(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each workload: the store's copies over none, and over each manager."""
    by_workload: dict[str, dict[tuple[str, int], float]] = {}
    for row in rows:
        place = (row["policy"], row["manager_messages_per_s"] or 0)
        by_workload.setdefault(row["workload"], {})[place] = row["ops_per_s"]
    compared = []
    for workload, rates in by_workload.items():
        own = rates.pop(("coherent", 0), math.nan)
        ratios = {_name(policy, rate): own / other for (policy, rate), other in rates.items()}
        compared.append({"workload": workload, **ratios})
    return compared


def _name(policy: str, rate: int) -> str:
    return f"over_{policy}" + (f"_{rate // 1_000_000}m" if rate else "")


def summary(ratios: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means and extremes over the clusters of Twitter, and over YCSB's workloads."""
    kinds = {"twitter": "Twitter clusters", "ycsb": "YCSB"}
    found = []
    for prefix, title in kinds.items():
        chosen = [ratio for ratio in ratios if ratio["workload"].startswith(prefix)]
        for name in dict.fromkeys(name for ratio in chosen for name in ratio if name != "workload"):
            values = [ratio[name] for ratio in chosen if not math.isnan(ratio[name])]
            if not values:
                continue
            worst = min(chosen, key=lambda ratio: float(ratio[name]))
            found.append(
                {
                    "workloads": title,
                    "count": len(values),
                    "ratio": name,
                    "geometric_mean": geometric_mean(values),
                    "arithmetic_mean": fmean(values),
                    "maximum": max(values),
                    "minimum": min(values),
                    "least_on": worst["workload"],
                    "paper_mean": PAPER["mean"] if prefix == "twitter" else None,
                    "paper_maximum": PAPER["maximum"] if prefix == "twitter" else None,
                }
            )
    return found
