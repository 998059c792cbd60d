"""Workloads of the simulated cache benchmark: YCSB's, and the clusters of Twitter's cache study.

Of Twitter's clusters (Yang, Yue, Vinayak, OSDI'20) figures of March 2020 are published: shares of
operations, the skew of the keys, mean sizes. Requests made from them are synthetic: keys are drawn
by Zipf's law with the published exponent, and values have the shape of CacheLib's `kvcache_reg`
sizes, scaled to the published mean. The folder that KVSTORE_TRACES names holds both files.
"""

from __future__ import annotations

import csv
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STATISTICS: Final = "twitter_2020Mar_cluster_stats.csv"
SHAPES: Final = "cachelib_cachebench_configs.tar.gz"
_SHAPE: Final = "cachelib/hit_ratio/kvcache_reg/sizes.json"
_SHAPE_POINTS: Final = 48
_VALUE_BYTES_MIN: Final = 8
_VALUE_BYTES_MAX: Final = 1 << 20
_KEYS: Final = 10_000
#: Values of all keys together: they fit into each compute node's cache.
_DATA_BYTES: Final = 32 << 20


class MissingTraces(Exception):
    """What the clusters need is not there."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What the clients do. Shares are of a thousand operations; the rest replaces values."""

    name: str
    zipf: float
    reads: int
    sizes: tuple[int, ...]
    scans: int = 0
    modifies: int = 0
    inserts: int = 0
    latest: bool = False
    #: From published figures, not from requests.
    synthetic: bool = False
    #: No exponent is published: it counts as 0.
    skew_missing: bool = False

    @property
    def keys(self) -> int:
        """As many as fit, so that nothing is measured but coherence."""
        return max(64, min(_KEYS, _DATA_BYTES * len(self.sizes) // sum(self.sizes)))

    @property
    def reads_per_operation(self) -> int:
        """How much longer an operation takes to simulate, roughly."""
        return 1 + 50 * self.scans // 1000

    def settings(self) -> dict[str, int | str]:
        """The workload as lines of a job."""
        return {
            "keys": self.keys,
            "zipf": f"{self.zipf:g}",
            "read_permille": self.reads,
            "scan_permille": self.scans,
            "modify_permille": self.modifies,
            "insert_permille": self.inserts,
            "latest": int(self.latest),
            "sizes": ",".join(map(str, self.sizes)),
        }


#: YCSB's core workloads: values of 1,000 bytes, Zipf 0.99. The store has no order of keys, so a
#: scan of E reads 1 to 100 keys in one batch.
YCSB: Final = (
    Workload("ycsb-a", 0.99, 500, (1000,)),
    Workload("ycsb-b", 0.99, 950, (1000,)),
    Workload("ycsb-c", 0.99, 1000, (1000,)),
    Workload("ycsb-d", 0.99, 950, (1000,), inserts=50, latest=True),
    Workload("ycsb-e", 0.99, 0, (1000,), scans=950, inserts=50),
    Workload("ycsb-f", 0.99, 500, (1000,), modifies=500),
)


def traces_folder() -> Path:
    """The folder of the traces.

    Raises:
        MissingTraces: There is none, or a file of it is missing.
    """
    named = os.environ.get("KVSTORE_TRACES")
    if not named:
        raise MissingTraces(
            f"the Twitter clusters need {STATISTICS} and {SHAPES}: name their folder in"
            " KVSTORE_TRACES"
        )
    folder = Path(named)
    for name in (STATISTICS, SHAPES):
        if not (folder / name).is_file():
            raise MissingTraces(f"there is no {name} in {folder} (KVSTORE_TRACES)")
    return folder


def twitter(folder: Path) -> list[Workload]:
    """One workload for each cluster of which shares of operations are published."""
    shape = _shape(folder / SHAPES)
    with open(folder / STATISTICS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [_cluster(row, shape) for row in rows if row["read_ratio_norm"]]


def _cluster(row: dict[str, str], shape: tuple[float, ...]) -> Workload:
    mean = float(row["mean_value_bytes"])
    return Workload(
        f"twitter-{int(row['cluster'])}",
        float(row["zipf_alpha"] or 0),
        round(1000 * float(row["read_ratio_norm"])),
        tuple(min(max(round(mean * x), _VALUE_BYTES_MIN), _VALUE_BYTES_MAX) for x in shape),
        synthetic=True,
        skew_missing=not row["zipf_alpha"],
    )


def _shape(archive: Path) -> tuple[float, ...]:
    """Sizes at equal steps of the distribution, in means of it, in an order that looks random."""
    with tarfile.open(archive) as files:
        member = files.extractfile(_SHAPE)
        if member is None:
            raise MissingTraces(f"{archive} has no {_SHAPE}")
        sizes = json.load(member)
    counted = list(zip(sizes["valSizeRange"], sizes["valSizeRangeProbability"], strict=True))
    total = sum(count for _, count in counted)
    points, passed, at = [], 0, 0
    for number in range(_SHAPE_POINTS):
        while passed + counted[at][1] <= (number + 0.5) / _SHAPE_POINTS * total:
            passed += counted[at][1]
            at += 1
        points.append(counted[at][0])
    mean = sum(points) / len(points)
    # 29 and 48 have no common divisor.
    return tuple(points[29 * i % _SHAPE_POINTS] / mean for i in range(_SHAPE_POINTS))
