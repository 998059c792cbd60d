"""What `kvstore-bench peers` measures, and the ratios that it holds against targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvstore.bench.peers.case import BATCH, LARGE_BYTES, ONE_VALUE, Case


@dataclass(frozen=True)
class Ratio:
    """One figure of a case over that of another, and what it should be.

    `figure` is `ops_per_s` or `p50_us`; `at_least` False means that the ratio may be at most
    `target`.
    """

    case: Case
    against: Case
    target: float
    figure: str = "ops_per_s"
    at_least: bool = True


@dataclass(frozen=True)
class Measure:
    """One line of the table: cases that are compared, measured one after the other each round."""

    name: str
    title: str
    cases: tuple[Case, ...]
    ratios: tuple[Ratio, ...]


def _many(system: str, fabric: str, operation: str = "get_many", variant: str = "") -> Case:
    return Case(system, fabric, operation, batch=BATCH, variant=variant)


def _large(system: str, fabric: str, operation: str, variant: str = "") -> Case:
    return Case(system, fabric, operation, value_bytes=LARGE_BYTES, variant=variant)


def _shm_get() -> Measure:
    ours = Case("kvstore", "shm", "get")
    native = Case("kvstore", "shm", "get", variant="native")
    redis, lmdb = Case("redis", "unix", "get"), Case("lmdb", "local", "get")
    return Measure(
        "shm-get",
        "shm get of 1 KiB, one Python thread",
        (ours, native, redis, Case("memcached", "unix", "get"), lmdb),
        (Ratio(ours, redis, 40.0), Ratio(ours, lmdb, 1.0)),
    )


def _shm_get_many() -> Measure:
    ours = _many("kvstore", "shm")
    into = _many("kvstore", "shm", "get_many_into")
    redis = _many("redis", "unix")
    return Measure(
        "shm-get-many",
        "shm get_many of 64 keys of 1 KiB",
        (
            ours,
            into,
            _many("kvstore", "shm", variant="native"),
            redis,
            _many("memcached", "unix"),
            _many("lmdb", "local"),
        ),
        (Ratio(ours, redis, 5.0), Ratio(into, redis, 10.0)),
    )


def _tcp_get() -> Measure:
    cached, cold = Case("kvstore", "tcp", "get"), Case("kvstore", "tcp", "get", variant="cold")
    cached_native = Case("kvstore", "tcp", "get", variant="native")
    cold_native = Case("kvstore", "tcp", "get", variant="cold native")
    bare = Case("socket", "tcp", "get")
    redis, memcached = Case("redis", "tcp", "get"), Case("memcached", "tcp", "get")
    ratios = tuple(
        Ratio(case, bare, target, "p50_us", at_least=False)
        for case, target in (
            (cold, 2.6),
            (cold_native, 2.6),
            (cached, 1.4),
            (cached_native, 1.4),
        )
    ) + tuple(
        Ratio(case, other, 1.0, "p50_us", at_least=False)
        for case in (cold, cached)
        for other in (memcached, redis)
    )
    return Measure(
        "tcp-get",
        "tcp get of 1 KiB, p50",
        (
            *(cached, cold, cached_native, cold_native, bare),
            Case("socket", "tcp", "get", variant="blocking"),
            *(redis, memcached),
        ),
        ratios,
    )


def _tcp_get_many() -> Measure:
    ours, redis = _many("kvstore", "tcp"), _many("redis", "tcp")
    into = _many("kvstore", "tcp", "get_many_into")
    return Measure(
        "tcp-get-many",
        "tcp get_many of 64 keys of 1 KiB",
        (ours, into, redis, _many("memcached", "tcp")),
        (Ratio(ours, redis, 3.0), Ratio(into, redis, 3.0)),
    )


def _large_tcp(operation: str) -> Measure:
    ours = _large("kvstore", "tcp", operation)
    bare, mooncake = (_large(system, "tcp", operation) for system in ("socket", "mooncake"))
    return Measure(
        f"tcp-{operation.replace('_', '-')}",
        f"tcp {operation} of 2 MiB",
        (ours, bare, _large("socket", "tcp", operation, ONE_VALUE), mooncake),
        (Ratio(ours, bare, 0.8), Ratio(ours, mooncake, 1.5)),
    )


def _large_shm(operation: str) -> Measure:
    ours = _large("kvstore", "shm", operation)
    bare = _large("memcpy", "local", operation)
    checked = _large("memcpy", "local", operation, "crc32c")
    return Measure(
        f"shm-{operation.replace('_', '-')}",
        f"shm {operation} of 2 MiB",
        (ours, bare, checked),
        (Ratio(ours, checked, 0.9), Ratio(ours, bare, 0.55)),
    )


MEASURES: Final = (
    _shm_get(),
    _shm_get_many(),
    _tcp_get(),
    _tcp_get_many(),
    _large_tcp("get_into"),
    _large_tcp("put_from"),
    _large_shm("get_into"),
    _large_shm("put_from"),
)
SYSTEMS: Final = ("kvstore", "redis", "memcached", "lmdb", "mooncake", "socket", "memcpy")
