#!/usr/bin/env python3
"""Look for reads that are older than what somebody has seen or written before they began.

Several processes read, replace, delete and insert the same keys through stores with copies of
values, over shared memory or tcp. Every state of a key has a number, each higher than the one
before: even where the key is there, which is then its value, odd where it has been deleted. Each
process notes, in memory that all share, the highest number of each key that one of its calls has
shown; before a read it looks what all have noted. A read that returns less is stale: no order of
the calls explains it. So is one that finds a key absent which nobody has tried to delete since.
Messages between the processes can be lost and late on the way. Of a node with the consistency
`regular` only what a call has written counts: what has been read there may be ahead of copies.
With `--one-writer` nothing is deleted, and each key has one process that replaces it, without a
condition.

    bench/stale_read_probe.py --fabric shm --reads 1000000
    bench/stale_read_probe.py --fabric tcp --reads 1000000 --lost 100000 --late 100000 --json
    bench/stale_read_probe.py --fabric tcp --one-writer
    bench/stale_read_probe.py --system mooncake --reads 20000
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

from stale_read_systems import Client, Conflict, Failed, KvstoreClient, MooncakeClient

_COUNTS = (
    *("reads", "absent_reads", "replaced", "deleted", "inserted"),
    *("conflicts", "stale_reads", "failed"),
)


class Notes:
    """What the processes know of each key; a process writes rows of its own alone."""

    def __init__(self, name: str, keys: int, processes: int) -> None:
        self._memory = SharedMemory(name)
        self._words = self._memory.buf.cast("Q")
        self._keys, self._processes = keys, processes

    @staticmethod
    def bytes_of(keys: int, processes: int) -> int:
        """Return how much memory they take."""
        return 2 * 8 * keys * processes

    def highest(self, key: int) -> int:
        """Return the highest number of a state that a call has shown."""
        return max(self._words[row * self._keys + key] for row in range(self._processes))

    def highest_delete(self, key: int) -> int:
        """Return the highest number of a state that a delete was to bring about."""
        rows = range(self._processes, 2 * self._processes)
        return max(self._words[row * self._keys + key] for row in rows)

    def saw(self, process: int, key: int, number: int) -> None:
        """Say that a call of this process has shown this state."""
        self._raise(process * self._keys + key, number)

    def deletes(self, process: int, key: int, number: int) -> None:
        """Say that this process tries to delete; `number` is of the state after that."""
        self._raise((self._processes + process) * self._keys + key, number)

    def _raise(self, place: int, number: int) -> None:
        if self._words[place] < number:
            self._words[place] = number

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._memory.close()


class Worker:
    """One process's reads and writes. `locks`: one a key, for its deletes and inserts."""

    def __init__(
        self, number: int, options: argparse.Namespace, client: Client, notes: Notes, locks: Any
    ) -> None:
        self._number, self._options, self._locks = number, options, locks
        self._client, self._notes = client, notes
        self._chance = random.Random(options.seed * 1000 + number)
        self._names = [name_of(key) for key in range(options.keys)]
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.stale: list[str] = []

    def run(self, reads: int) -> None:
        """Go on until so many reads have had a result."""
        while self.counts["reads"] < reads:
            key = min(int(self._chance.expovariate(0.7)), self._options.keys - 1)
            try:
                seen, version = self._read(key)
                if self._chance.random() < self._options.writes and self._may_write(key):
                    self._write(key, seen, version)
            except Conflict:
                self.counts["conflicts"] += 1
            except Failed:
                self.counts["failed"] += 1

    def _may_write(self, key: int) -> bool:
        return not self._options.one_writer or key % self._options.processes == self._number

    def _read(self, key: int) -> tuple[int, Any]:
        before = self._notes.highest(key)
        found = self._client.read(self._names[key])
        self.counts["reads"] += 1
        if found is None:
            self.counts["absent_reads"] += 1
            is_stale = self._notes.highest_delete(key) < before | 1
            # Whichever delete it was, it came after what had been seen.
            seen, version = before | 1, None
        else:
            seen, version = found
            is_stale = seen < before
        if is_stale:
            self.counts["stale_reads"] += 1
            what = "absent" if found is None else str(seen)
            self.stale.append(f"key {key}: read {what} after somebody had seen {before}")
        elif self._options.consistency == "linearizable":
            self._notes.saw(self._number, key, seen)
        return seen, version

    def _write(self, key: int, seen: int, version: Any) -> None:
        if seen % 2 == 1:
            self._insert(key)
        elif self._chance.random() < self._options.deletes:
            self._delete(key, seen, version)
        else:
            # Without a condition on the version what was read may be older than what others know.
            number = (max(seen, self._notes.highest(key)) | 1) + 1
            condition = None if self._options.one_writer else version
            self._client.replace(self._names[key], condition, number)
            self._wrote("replaced", key, number)

    # An inserter does not see which state its key is in. What was there before the last delete has
    # been noted by whoever deleted it; and while it inserts nobody else deletes or inserts.

    def _delete(self, key: int, seen: int, version: Any) -> None:
        with self._alone(key):
            self._notes.deletes(self._number, key, seen + 1)
            self._client.delete(self._names[key], version)
            self._wrote("deleted", key, seen + 1)

    def _insert(self, key: int) -> None:
        with self._alone(key):
            number = (self._notes.highest(key) | 1) + 1
            self._client.insert(self._names[key], number)
            self._wrote("inserted", key, number)

    @contextlib.contextmanager
    def _alone(self, key: int) -> Iterator[None]:
        if not self._locks[key].acquire(timeout=self._options.limit_s):
            raise Failed("the key's lock is not to be had")
        try:
            yield
        finally:
            self._locks[key].release()

    def _wrote(self, what: str, key: int, number: int) -> None:
        self.counts[what] += 1
        self._notes.saw(self._number, key, number)


def name_of(key: int) -> str:
    """Return the name of a key."""
    return f"probe {key}"


def connect(options: argparse.Namespace, target: str) -> Any:
    """Return a client of the system that is probed."""
    if options.system == "mooncake":
        return MooncakeClient(target, options.cache_bytes, options.value_bytes)
    return KvstoreClient(target, options.cache_bytes, options.value_bytes, options.apart)


def work(
    number: int,
    options: argparse.Namespace,
    target: str,
    notes_name: str,
    together: Any,
    locks: Any,
    answers: Any,
) -> None:
    """Do this process's share of the reads, and answer with what it counted."""
    notes = Notes(notes_name, options.keys, options.processes)
    client = connect(options, target)
    if number == 0:
        for key in range(options.keys):
            client.insert(name_of(key), 0)
    worker = Worker(number, options, client, notes, locks)
    together.wait(options.limit_s)
    began = time.monotonic()
    worker.run(options.reads // options.processes)
    elapsed_s = time.monotonic() - began
    figures = client.figures()
    # Who has left does not answer: the others are not to wait for that.
    together.wait(options.limit_s)
    client.close()
    notes.close()
    answers.put({**worker.counts, **figures, "elapsed_s": elapsed_s, "examples": worker.stale[:3]})


def probe(options: argparse.Namespace, targets: list[str]) -> dict[str, Any]:
    """Run the processes, each with its target, and return one row."""
    if options.lost or options.late:
        os.environ["KVSTORE_TEST_MESSAGES"] = f"{options.lost},{options.late},{options.late_us}"
    memory = SharedMemory(create=True, size=Notes.bytes_of(options.keys, options.processes))
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    together = context.Barrier(options.processes)
    locks = [context.Lock() for _ in range(options.keys)]
    workers = [
        context.Process(
            target=work, args=(i, options, targets[i], memory.name, together, locks, answers)
        )
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
    return row_of(options, told)


def row_of(options: argparse.Namespace, told: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums of what the processes told."""
    row: dict[str, Any] = {
        "system": options.system,
        "fabric": options.fabric,
        "consistency": options.consistency,
        "compute_nodes": options.processes,
    }
    for name in told[0]:
        values = [one[name] for one in told]
        if name == "elapsed_s":
            row[name] = max(values)
        elif name == "examples":
            row[name] = [line for one in values for line in one][:3]
        else:
            row[name] = sum(values)
    if "cache_hits" in row:
        row["hit_ratio"] = row["cache_hits"] / max(row["reads"], 1)
    return row


def probe_kvstore(options: argparse.Namespace) -> dict[str, Any]:
    """Start a node and probe it."""
    from tests.support.nodes import start_node

    with start_node("64MiB", "--consistency", options.consistency) as node:
        scheme = "kv" if options.fabric == "shm" else "tcp"
        return probe(options, [f"{scheme}://{node.address}"] * options.processes)


def probe_mooncake(options: argparse.Namespace) -> dict[str, Any]:
    """Start Mooncake's processes and probe them."""
    from kvstore.bench.peers.mooncake import Processes
    from kvstore.bench.redis_server import free_port

    processes = Processes()
    try:
        processes.worker("storage", 256 << 20)
        os.environ |= processes.variables
        targets = [
            f"{processes.master} 127.0.0.1:{free_port()} {processes.packages}"
            for _ in range(options.processes)
        ]
        return probe(options, targets)
    finally:
        processes.close()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", choices=("kvstore", "mooncake"), default="kvstore")
    parser.add_argument("--fabric", choices=("shm", "tcp"), help="default: shm; mooncake: tcp")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--keys", type=int, default=12)
    parser.add_argument("--reads", type=int, default=300_000, help="of all processes together")
    parser.add_argument("--writes", type=float, default=0.01, help="share of the reads")
    parser.add_argument("--deletes", type=float, default=0.3, help="share of these, where present")
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--cache-bytes", type=int, default=16 << 20, help="0: without copies")
    parser.add_argument(
        "--apart", action="store_true", help="processes end each other's copies by messages alone"
    )
    parser.add_argument(
        "--one-writer",
        action="store_true",
        help="each key has one, without conditions; no deletes; mooncake: always",
    )
    parser.add_argument(
        "--consistency", choices=("linearizable", "regular"), default="linearizable"
    )
    parser.add_argument("--lost", type=int, default=0, help="of a million messages")
    parser.add_argument("--late", type=int, default=0, help="of a million messages")
    parser.add_argument("--late-us", type=int, default=20_000, help="at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=600.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    mooncake = options.system == "mooncake"
    if mooncake and (options.fabric == "shm" or options.lost or options.late):
        parser.error("mooncake runs over tcp, and its messages can't be lost or late here")
    options.fabric = options.fabric or ("tcp" if mooncake else "shm")
    options.one_writer = options.one_writer or mooncake
    options.deletes = 0.0 if options.one_writer else options.deletes
    return options


def main() -> int:
    """Start what is probed, probe it, print what was found. 0: no stale read."""
    options = parse()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    row = probe_mooncake(options) if options.system == "mooncake" else probe_kvstore(options)
    if options.json:
        print(json.dumps(row))
    else:
        for name, value in row.items():
            print(f"{name:20} {value}")
    return 0 if row["stale_reads"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
