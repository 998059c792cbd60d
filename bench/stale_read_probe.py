#!/usr/bin/env python3
"""Look for reads that are older than what somebody has seen or written before they began.

Several processes read and increment the same keys through stores with copies of values, over shared
memory or tcp. The value of a key is a number that every write raises by one, with the version that
it was read at as its condition. Each process notes, in memory that all share, the highest number of
each key that one of its calls has returned; before a read it looks what the others have noted. A
read that returns less is stale: no order of the calls explains it. Messages between the processes
can be lost and late on the way.

    bench/stale_read_probe.py --fabric shm --reads 1000000
    bench/stale_read_probe.py --fabric tcp --reads 1000000 --lost 100000 --late 100000 --json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import struct
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import kvstore
from kvstore.errors import ConditionFailed

_WORD = struct.Struct("<Q")


class Notes:
    """The highest number of each key that each process has seen; a row is written by one alone."""

    def __init__(self, name: str, keys: int, processes: int) -> None:
        self._memory = SharedMemory(name)
        self._words = self._memory.buf.cast("Q")
        self._keys, self._processes = keys, processes

    def highest(self, key: int) -> int:
        """Return what is known of a key."""
        return max(self._words[row * self._keys + key] for row in range(self._processes))

    def note(self, process: int, key: int, number: int) -> None:
        """Say that a call of this process returned this number."""
        place = process * self._keys + key
        if self._words[place] < number:
            self._words[place] = number

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._memory.close()


def run_worker(
    number: int, options: argparse.Namespace, target: str, notes_name: str, together: Any
) -> dict[str, Any]:
    """Read and write until this process has done its share of the reads."""
    notes = Notes(notes_name, options.keys, options.processes)
    chance = random.Random(options.seed * 1000 + number)
    stale: list[str] = []
    counts = {"reads": 0, "writes": 0, "conflicts": 0, "stale_reads": 0, "failed": 0}
    share = options.reads // options.processes
    names = [f"probe {key}" for key in range(options.keys)]
    with kvstore.connect(target, cache_bytes=options.cache_bytes) as store:
        together.wait(options.limit_s)
        began = time.monotonic()
        while counts["reads"] < share:
            key = min(int(chance.expovariate(0.7)), options.keys - 1)
            before = notes.highest(key)
            try:
                found = store.get_versioned(names[key])
            except kvstore.KvError:
                counts["failed"] += 1
                continue
            counts["reads"] += 1
            assert found is not None
            (seen,) = _WORD.unpack_from(found[0])
            if seen < before:
                counts["stale_reads"] += 1
                stale.append(f"key {key}: read {seen} after somebody had seen {before}")
            notes.note(number, key, seen)
            if chance.random() >= options.writes:
                continue
            try:
                value = _WORD.pack(seen + 1) + bytes(options.value_bytes)
                store.put(names[key], value, if_version=found[1])
            except ConditionFailed:
                counts["conflicts"] += 1
            except kvstore.KvError:
                counts["failed"] += 1
            else:
                counts["writes"] += 1
                notes.note(number, key, seen + 1)
        elapsed_s = time.monotonic() - began
        stats = store.stats()
        # Who has left does not answer: the others are not to wait for that.
        together.wait(options.limit_s)
    notes.close()
    figures = {
        name: getattr(stats, name)
        for name in ("cache_hits", "cache_fills", "cache_invalidated", "cache_revoked")
    }
    figures["leases_waited"] = stats.leases_waited
    return {**counts, **figures, "elapsed_s": elapsed_s, "examples": stale[:3]}


def work(
    number: int, options: argparse.Namespace, target: str, name: str, together: Any, answers: Any
) -> None:
    """Run one worker and answer with what it counted."""
    answers.put(run_worker(number, options, target, name, together))


def probe(options: argparse.Namespace, target: str) -> dict[str, Any]:
    """Run the processes against a node, and return one row."""
    with kvstore.connect(target) as store:
        for key in range(options.keys):
            store.put(f"probe {key}", _WORD.pack(0) + bytes(options.value_bytes))
    if options.lost or options.late:
        os.environ["KVSTORE_TEST_MESSAGES"] = f"{options.lost},{options.late},{options.late_us}"
    memory = SharedMemory(create=True, size=8 * options.keys * options.processes)
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    together = context.Barrier(options.processes)
    workers = [
        context.Process(target=work, args=(i, options, target, memory.name, together, answers))
        for i in range(options.processes)
    ]
    try:
        for worker in workers:
            worker.start()
        told = [answers.get(timeout=options.limit_s) for _ in workers]
    finally:
        for worker in workers:
            worker.join(timeout=10)
            if worker.is_alive():
                worker.kill()
        memory.close()
        memory.unlink()
        os.environ.pop("KVSTORE_TEST_MESSAGES", None)
    row: dict[str, Any] = {"fabric": options.fabric, "compute_nodes": options.processes}
    for name in told[0]:
        values = [one[name] for one in told]
        if name == "elapsed_s":
            row[name] = max(values)
        elif name == "examples":
            row[name] = [line for one in values for line in one][:3]
        else:
            row[name] = sum(values)
    row["hit_ratio"] = row["cache_hits"] / max(row["reads"], 1)
    return row


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fabric", choices=("shm", "tcp"), default="shm")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--keys", type=int, default=12)
    parser.add_argument("--reads", type=int, default=300_000, help="of all processes together")
    parser.add_argument("--writes", type=float, default=0.01, help="share of the reads")
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--cache-bytes", type=int, default=16 << 20, help="0: without copies")
    parser.add_argument("--lost", type=int, default=0, help="of a million messages")
    parser.add_argument("--late", type=int, default=0, help="of a million messages")
    parser.add_argument("--late-us", type=int, default=20_000, help="at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=600.0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def main() -> int:
    """Start a node, probe it, print what was found. 0: no stale read."""
    options = parse()
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from tests.support.nodes import start_node

    with start_node("64MiB") as node:
        scheme = "kv" if options.fabric == "shm" else "tcp"
        row = probe(options, f"{scheme}://{node.address}")
    if options.json:
        print(json.dumps(row))
    else:
        for name, value in row.items():
            print(f"{name:20} {value}")
    return 0 if row["stale_reads"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
