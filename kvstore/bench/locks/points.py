"""What is measured: points of a sweep, and the figures that are made of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

#: The store's lock, and the same with one place a client.
OWN: Final = "kvstore"
OWN_FLAT: Final = "kvstore-flat"
RIVALS: Final = ("cas", "dslr", "mcs", "shiftlock", "declock")
LOCKS: Final = (OWN, OWN_FLAT, *RIVALS)
#: Those that know readers, and so do the same work.
COMPARED: Final = ("cas", "dslr", "shiftlock", "declock")
#: Of a device's masked atomics, which no contract of ours has.
MASKED: Final = frozenset({"mcs", "shiftlock"})


@dataclass(frozen=True)
class Point:
    """One configuration. The defaults are those of DecLock's evaluation."""

    compute_nodes: int = 8
    clients: int = 32
    memory_nodes: int = 1
    locks: int = 100_000
    zipf: float = 0.99
    read_percent: int = 50
    accesses: int = 1
    locality_percent: int = 0
    atomic_ns: int | None = None
    head_of_line: bool = False
    ring: int = 0  # entries of a queue; 0: one for each place
    kill_ms: int = 0  # after the warm-up the first compute node dies; 0: none does
    lease_ms: int = 5  # from its death until it is given up

    def settings(self) -> dict[str, int | str]:
        """As the simulator takes them."""
        settings: dict[str, int | str] = {
            "compute_nodes": self.compute_nodes,
            "clients": self.clients,
            "memory_nodes": self.memory_nodes,
            "locks": self.locks,
            "zipf": repr(self.zipf),
            "read_percent": self.read_percent,
            "accesses": self.accesses,
            "locality_percent": self.locality_percent,
        }
        if self.ring > 0:
            settings["ring"] = self.ring
        if self.kill_ms > 0:
            settings |= {"kill_us": self.kill_ms * 1000, "lease_us": self.lease_ms * 1000}
        if self.atomic_ns is not None:
            settings |= {"atomic_ns": self.atomic_ns, "head_of_line": int(self.head_of_line)}
        return settings

    def name(self) -> str:
        """What differs from the defaults, in a few words."""
        words = []
        default = Point()
        for field, text in _NAMES.items():
            value = getattr(self, field)
            if value != getattr(default, field):
                words.append(text.format(value))
        if self.head_of_line:
            words.append("head-of-line blocking")
        return ", ".join(words) or "default"


_NAMES: Final[Mapping[str, str]] = {
    "compute_nodes": "{} compute nodes",
    "clients": "{} clients each",
    "memory_nodes": "{} memory nodes",
    "locks": "{:,} locks",
    "zipf": "Zipf {}",
    "read_percent": "{} % reads",
    "accesses": "{} accesses",
    "locality_percent": "{} % of own locks",
    "atomic_ns": "atomics of one address every {} ns",
    "ring": "queues of {}",
    "kill_ms": "a compute node killed after {} ms",
}

#: What a figure shows of its rows: a quantity of each, or a list of them.
THROUGHPUT: Final = "ops_per_s"
ACQUIRE_TIMES: Final = "hot_acquire_us"
TIMELINE: Final = "timeline_ops_per_s"
REREADS: Final = "rereads_per_op"
RELEASE: Final = "release_p50_us"
#: Of `ACQUIRE_TIMES`, in thousandths: the simulator's kHotQuantiles.
QUANTILES: Final = (0, 10, 50, 100, 250, 500, 750, 900, 950, 990, 995, 999, 1000)


@dataclass(frozen=True)
class Figure:
    """One figure of the published evaluation: a quantity that varies, and who is compared."""

    title: str
    axis: str  # a field of Point; empty: the points are named
    points: tuple[Point, ...]
    locks: tuple[str, ...] = (OWN, *COMPARED)
    shows: str = THROUGHPUT
    series: str = ""  # a field of the rows of which each value has a line of its own
    measure_ms: float = 20.0


def _vary(axis: str, values: Iterable[int | float], base: Point = Point()) -> tuple[Point, ...]:
    return tuple(replace(base, **{axis: value}) for value in values)  # type: ignore[arg-type]


_GRID: Final = (
    Point(),
    Point(read_percent=0),
    Point(read_percent=100),
    Point(zipf=0.9),
    Point(zipf=0.0),
    Point(accesses=0),
    Point(accesses=16),
    Point(compute_nodes=31),
    Point(atomic_ns=250, head_of_line=True),
    Point(compute_nodes=31, atomic_ns=400, head_of_line=True),
    Point(compute_nodes=31, atomic_ns=400, head_of_line=True, read_percent=0),
    Point(compute_nodes=31, atomic_ns=400, head_of_line=True, accesses=0),
)

FIGURES: Final[Mapping[str, Figure]] = {
    "grid": Figure("The calibration grid", "", _GRID),
    "intra-cn": Figure(
        "Clients of one compute node",
        "clients",
        _vary("clients", (2, 4, 8, 16, 32), Point(compute_nodes=1)),
    ),
    "inter-cn": Figure(
        "Compute nodes", "compute_nodes", _vary("compute_nodes", (1, 2, 4, 8, 12, 16, 24, 31))
    ),
    "mn-num": Figure("Memory nodes", "memory_nodes", _vary("memory_nodes", (1, 2, 4, 8))),
    "read-ratio": Figure(
        "Readers of a hundred", "read_percent", _vary("read_percent", range(0, 101, 10))
    ),
    "exec-time": Figure(
        "Data accesses under a lock", "accesses", _vary("accesses", (0, 1, 2, 4, 8, 16, 32))
    ),
    "zipf-alpha": Figure("Zipf exponent", "zipf", _vary("zipf", (0.0, 0.5, 0.9, 0.99, 0.999))),
    "lock-num": Figure("Locks", "locks", _vary("locks", (1_000, 10_000, 100_000, 1_000_000))),
    "locality": Figure(
        "Operations of a hundred on own locks",
        "locality_percent",
        _vary("locality_percent", range(0, 101, 25)),
    ),
    "writers": Figure(
        "Writers only, with MCS",
        "compute_nodes",
        _vary("compute_nodes", (1, 4, 8, 16, 31), Point(read_percent=0)),
        (OWN, OWN_FLAT, "cas", "mcs", "shiftlock", "declock"),
    ),
    "fairness": Figure("Fairness", "", (Point(),), LOCKS),
    "cdf": Figure(
        "Until the hottest lock is granted",
        "",
        (Point(),),
        (OWN, OWN_FLAT, *COMPARED),
        ACQUIRE_TIMES,
    ),
    "fetch": Figure(
        "READs of a queue beyond that of a release",
        "accesses",
        tuple(
            point
            for percent in (0, 50, 90)
            for point in _vary("accesses", (0, 1, 4, 16), Point(read_percent=percent))
        ),
        (OWN, "declock"),
        REREADS,
        series="read_ratio",
        measure_ms=4,
    ),
    "qcap": Figure(
        "Entries of a queue",
        "ring",
        tuple(
            point
            for zipf in (0.0, 0.9, 0.99)
            for point in _vary("ring", (8, 16, 32, 64, 128, 256), Point(zipf=zipf))
        ),
        (OWN,),
        RELEASE,
        series="zipf",
        measure_ms=5,
    ),
    "reset": Figure(
        "Queues for all clients, or for half of them",
        "compute_nodes",
        tuple(
            Point(compute_nodes=nodes, read_percent=0, ring=ring)
            for nodes in (1, 2, 4, 8)
            for ring in (nodes * 32, nodes * 16)
        ),
        (OWN_FLAT,),
        series="ring_per_client",
        measure_ms=10,
    ),
    "failure": Figure(
        "A compute node is killed",
        "",
        (Point(read_percent=0, kill_ms=8),),
        (OWN,),
        TIMELINE,
        measure_ms=30,
    ),
}


def sweep(axes: Mapping[str, Sequence[int | float]]) -> tuple[Point, ...]:
    """Every combination of the values of some fields."""
    names = list(axes)
    return tuple(
        replace(Point(), **dict(zip(names, values, strict=True)))  # type: ignore[arg-type]
        for values in itertools.product(*axes.values())
    )
