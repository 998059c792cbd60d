"""What the client processes of these tests do: `python -m tests.multiprocess.worker NAME ...`.

Each prints one line for what has happened, at once: `+KEY` when a put of it was acknowledged,
`ready` when it is connected, others as each function says.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable

import kvstore
from tests.multiprocess.content import HEAD_BYTES, check_value, value_of


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def put(target: str, prefix: str, count: str, value_bytes: str) -> None:
    """Puts one key after the other, over and over if `count` is 0: then over the same 200."""
    size, limit = int(value_bytes), int(count)
    with kvstore.connect(target) as store:
        say("ready")
        sequence = 0
        while limit == 0 or sequence < limit:
            key = f"{prefix}-{sequence % 200 if limit == 0 else sequence}"
            store.put(key, value_of(key, sequence, size))
            say(f"+{key} {sequence}")
            sequence += 1
    say("done")


def put_batches(target: str, prefix: str, seed: str, value_bytes: str) -> None:
    """Puts batches for ever: new keys of tiny values, so that the index grows."""
    order = random.Random(int(seed))
    size = int(value_bytes)
    with kvstore.connect(target) as store:
        say("ready")
        at = 0
        while True:
            keys = [f"{prefix}-{i}" for i in range(at, at + order.randrange(1, 64))]
            at += len(keys)
            outcomes = store.put_many([(key, value_of(key, 0, size)) for key in keys])
            pairs = zip(keys, outcomes, strict=True)
            done = [key for key, outcome in pairs if type(outcome) is int]
            say("+" + " ".join(done))


def fill(target: str, prefix: str, value_bytes: str) -> None:
    """Puts new keys until the node is full."""
    size, count = int(value_bytes), 0
    with kvstore.connect(target) as store:
        try:
            while True:
                key = f"{prefix}-{count}"
                store.put(key, value_of(key, 0, size))
                count += 1
        except kvstore.OutOfMemory:
            say(f"full {count}")


def churn(target: str, prefix: str, count: str, value_bytes: str) -> None:
    """Puts `count` new keys where old ones are evicted; reads some back."""
    size = int(value_bytes)
    hits = 0
    with kvstore.connect(target) as store:
        for i in range(int(count)):
            key = f"{prefix}-{i}"
            store.put(key, value_of(key, i, size))
            back = f"{prefix}-{max(i - 20, 0)}"
            value = store.get(back)
            if value is not None:
                check_value(back, value)
                hits += 1
    say(f"hits {hits}")


def overwrite(target: str, keys: str, seconds: str, seed: str) -> None:
    """Overwrites the shared keys with values of all sizes; now and then deletes one."""
    order = random.Random(int(seed))
    end = time.monotonic() + float(seconds)
    puts = 0
    with kvstore.connect(target) as store:
        say("ready")
        while time.monotonic() < end:
            key = f"shared-{order.randrange(int(keys))}"
            if order.random() < 0.05:
                store.delete(key)
            size = HEAD_BYTES + int(2 ** order.uniform(0, 16))
            store.put(key, value_of(key, order.randrange(1 << 30), size))
            puts += 1
    say(f"puts {puts}")


def verify(target: str, keys: str, seconds: str, seed: str) -> None:
    """Reads the shared keys, singly, in batches and into buffers, and checks every byte."""
    order = random.Random(int(seed))
    end = time.monotonic() + float(seconds)
    hits = 0
    buffer = bytearray(1 << 17)
    names = [f"shared-{i}" for i in range(int(keys))]
    with kvstore.connect(target) as store:
        say("ready")
        while time.monotonic() < end:
            key = order.choice(names)
            value = store.get(key)
            hits += value is not None and check_value(key, value) >= 0
            size = store.get_into(key, buffer)
            hits += size is not None and check_value(key, bytes(buffer[:size])) >= 0
            some = order.sample(names, 8)
            for name, one in zip(some, store.get_many(some), strict=True):
                hits += one is not None and check_value(name, one) >= 0
    say(f"hits {hits}")


def increment(target: str, seconds: str) -> None:
    """Adds one to a counter by compare-and-put; prints how often it has won."""
    end = time.monotonic() + float(seconds)
    won = 0
    with kvstore.connect(target) as store:
        say("ready")
        while time.monotonic() < end:
            found = store.get_versioned("counter")
            assert found is not None
            value, version = found
            try:
                store.put("counter", str(int(value) + 1).encode(), if_version=version)
                won += 1
            except kvstore.ConditionFailed:
                pass
    say(f"won {won}")


def claim(target: str, keys: str) -> None:
    """Puts keys if they are absent; prints the ones that it has won."""
    with kvstore.connect(target) as store:
        say("ready")
        for i in range(int(keys)):
            try:
                store.put(f"claim-{i}", str(os.getpid()).encode(), if_absent=True)
                say(f"won {i}")
            except kvstore.ConditionFailed:
                pass
    say("done")


def watch(target: str, keys: str, timeout_s: str) -> None:
    """Gets and puts all the time; one line a call: start, duration in s, what came of it."""
    names = keys.split(",")
    with kvstore.connect(target) as store:
        say("ready")
        turn = 0
        while True:
            turn += 1
            key = names[turn % len(names)]
            began = time.monotonic()
            try:
                if turn // len(names) % 2:
                    store.put(key, value_of(key, turn, 1000), timeout_s=float(timeout_s))
                    outcome = "put"
                else:
                    value = store.get(key, timeout_s=float(timeout_s))
                    outcome = "miss" if value is None else f"get {check_value(key, value)}"
            except kvstore.KvError as error:
                outcome = type(error).__name__
            ended = time.monotonic()
            restarts = store.stats().node_restarts if turn % 50 == 0 else 0
            say(f"{began:.6f} {ended - began:.6f} {key} {restarts} {outcome}")
            if outcome == "NodeUnreachable":
                time.sleep(0.002)


def blocked(target: str) -> None:
    """Puts with a long time-out until interrupted; says how long after the signal that was."""
    with kvstore.connect(target) as store:
        arrived = 0.0

        def note(number: int, frame: object) -> None:
            nonlocal arrived
            arrived = time.monotonic()
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, note)
        try:
            while True:
                say("put")
                store.put("k", b"v", timeout_s=30.0)
                time.sleep(0.05)
        except KeyboardInterrupt:
            say(f"interrupted {time.monotonic() - arrived:.3f}")
            os._exit(0)


def main() -> None:
    work: Callable[..., None] = globals()[sys.argv[1]]
    work(*sys.argv[2:])


if __name__ == "__main__":
    main()
