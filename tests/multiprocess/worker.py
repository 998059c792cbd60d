"""What the client processes of these tests do: `python -m tests.multiprocess.worker NAME ...`.

Each prints one line for what has happened, at once: `+KEY` when a put of it was acknowledged,
`ready` when it is connected, others as each function says.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

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


def read_large(target: str, timeout_s: str) -> None:
    """Gets the key `large` for ever, by `get` and `get_into`; `Call` lines as of `watch`."""
    with kvstore.connect(target) as store:
        buffer = bytearray(store.get("large") or b"")
        say("ready")
        for turn in itertools.count(1):
            began = time.monotonic()
            try:
                if turn % 2:
                    value = store.get("large", timeout_s=float(timeout_s))
                else:
                    size = store.get_into("large", buffer, timeout_s=float(timeout_s))
                    value = None if size is None else memoryview(buffer)[:size]
                took = time.monotonic() - began
                outcome = "miss" if value is None else f"get {check_value('large', value)}"
            except kvstore.KvError as error:
                took = time.monotonic() - began
                outcome = f"{type(error).__name__} {turn}"
                time.sleep(0.002)
            say(f"{began:.6f} {took:.6f} large {outcome}")


def fill(target: str, prefix: str, value_bytes: str) -> None:
    """Puts new keys until the node is full, then says how many."""
    size, count = int(value_bytes), 0
    with kvstore.connect(target) as store:
        say("ready")
        try:
            while True:
                key = f"{prefix}-{count}"
                store.put(key, value_of(key, 0, size))
                count += 1
        except kvstore.OutOfMemory:
            say(f"full {count}")


def churn(target: str, prefix: str, count: str, value_bytes: str) -> None:
    """Puts `count` new keys, in a node that evicts old ones; reads the ones of a while ago."""
    size = int(value_bytes)
    hits = 0
    with kvstore.connect(target) as store:
        say("ready")
        for i in range(int(count)):
            key = f"{prefix}-{i}"
            store.put(key, value_of(key, i, size))
            if i % 100 == 0:
                say(f"+{key} {i}")
            back = f"{prefix}-{max(i - 20, 0)}"
            value = store.get(back)
            if value is not None:
                assert check_value(back, value) == max(i - 20, 0)
                hits += 1
        say(f"hits {hits} evictions {store.stats().evictions}")


def overwrite(target: str, keys: str, seconds: str, seed: str) -> None:
    """Overwrites the shared keys with values of all sizes; now and then deletes one."""
    order = random.Random(int(seed))
    puts = 0
    with kvstore.connect(target) as store:
        say("ready")
        end = time.monotonic() + float(seconds)
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
    hits = 0
    buffer = bytearray(1 << 17)
    names = [f"shared-{i}" for i in range(int(keys))]
    with kvstore.connect(target) as store:
        say("ready")
        end = time.monotonic() + float(seconds)
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
    """Adds one to a counter by compare-and-put, for ever if `seconds` is 0; a line for each."""
    with kvstore.connect(target) as store:
        say("ready")
        end = time.monotonic() + float(seconds)
        while float(seconds) == 0 or time.monotonic() < end:
            found = store.get_versioned("counter")
            assert found is not None
            value, version = found
            try:
                store.put("counter", str(int(value) + 1).encode(), if_version=version)
                say(f"+{int(value) + 1}")
            except kvstore.ConditionFailed:
                pass


def claim(target: str, keys: str, seed: str) -> None:
    """Puts keys if they are absent, each client in another order; a line for each that it has won
    or not."""
    order = random.Random(int(seed))
    with kvstore.connect(target) as store:
        say("ready")
        for i in order.sample(range(int(keys)), int(keys)):
            try:
                store.put(f"claim-{i}", str(os.getpid()).encode(), if_absent=True)
                say(f"won {i}")
            except kvstore.ConditionFailed:
                say(f"lost {i}")


def watch(target: str, keys: str, timeout_s: str, pause_s: str = "0") -> None:
    """Puts all keys, gets all of them, and so on, each line a `Call` of the tests.

    Nobody else writes these keys. The sequence of a value is the turn in which it was put.
    """
    names = keys.split(",")
    with kvstore.connect(target) as store:
        say("ready")
        for turn in itertools.count(1):
            for key in names:
                began = time.monotonic()
                try:
                    if turn % 2:
                        store.put(key, value_of(key, turn, 1000), timeout_s=float(timeout_s))
                        outcome = f"put {turn}"
                    else:
                        value = store.get(key, timeout_s=float(timeout_s))
                        outcome = "miss" if value is None else f"get {check_value(key, value)}"
                except kvstore.KvError as error:
                    outcome = f"{type(error).__name__} {turn}"
                say(f"{began:.6f} {time.monotonic() - began:.6f} {key} {outcome}")
                if outcome.startswith(("NodeUnreachable", "Fenced")):
                    time.sleep(0.002)
                elif float(pause_s) > 0:
                    time.sleep(float(pause_s))


def watch_batches(target: str, keys: str, timeout_s: str) -> None:
    """Gets all keys in batches, in every way; `Call` lines as of `watch`, `some` for a whole batch.

    The keys are `shared-0` and so on, which are there before.
    """
    names = [f"shared-{i}" for i in range(int(keys))]
    buffers = [bytearray(1 << 14) for _ in names]
    with kvstore.connect(target) as store:
        say("ready")
        for turn in itertools.count(1):
            began = time.monotonic()
            if turn % 2:
                outcomes = store.get_many(names, timeout_s=float(timeout_s))
            else:
                sizes = store.get_many_into(names, buffers, timeout_s=float(timeout_s))
                outcomes = [
                    bytes(buffer[:size]) if isinstance(size, int) else size
                    for size, buffer in zip(sizes, buffers, strict=True)
                ]
            took = time.monotonic() - began
            for name, outcome in zip(names, outcomes, strict=True):
                if isinstance(outcome, bytes):
                    said = f"get {check_value(name, outcome)}"
                else:
                    said = "miss" if outcome is None else f"{type(outcome).__name__} {turn}"
                say(f"{began:.6f} {took:.6f} {name} {said}")
            time.sleep(0.001)


def lock(target: str, name: str, shared: str, hold_s: str) -> None:
    """Takes and releases a lock for ever; `+TOKEN TIME` when it is held, `-TOKEN TIME` before."""
    with kvstore.connect(target) as store:
        say("ready")
        while True:
            try:
                with store.lock(name, shared=shared == "shared", timeout_s=60) as held:
                    say(f"+{held.token} {time.monotonic():.6f}")
                    time.sleep(float(hold_s))
                    say(f"-{held.token} {time.monotonic():.6f}")
            except kvstore.KvError as error:
                say(f"{type(error).__name__}: {error}")
                time.sleep(0.01)


def count_locked(target: str, name: str, rounds: str) -> None:
    """Adds one to a number under a lock, so often; the number is no atomic one."""
    with kvstore.connect(target) as store:
        say("ready")
        for _ in range(int(rounds)):
            with store.lock(name, timeout_s=60) as held:
                number = int(store.get("number") or b"0")
                store.put("number", str(number + 1).encode())
                say(f"+{held.token}")
    say("done")


def blocked(target: str, operation: str) -> None:
    """Calls with a long time-out until interrupted, says when that ended the call, and goes on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with kvstore.connect(target, address_cache_entries=1) as store:
        calls: dict[str, Callable[[], object]] = {
            "get": lambda: store.get("k", timeout_s=30.0),
            "put": lambda: store.put("k", b"v", timeout_s=30.0),
            "get_many": lambda: store.get_many(["k", "l"], timeout_s=30.0),
        }
        store.put("k", b"v")
        try:
            while True:
                say("call")
                calls[operation]()
                time.sleep(0.002)
        except KeyboardInterrupt:
            say(f"interrupted {time.monotonic():.6f}")
        while True:
            try:
                if store.get("k", timeout_s=1.0) == b"v":
                    break
            except kvstore.KvError:
                time.sleep(0.02)
        say("recovered")


def fork(target: str) -> None:
    """Forks amid the calls of a thread; says what a parent and a child see, and both live on."""
    with kvstore.connect(target) as store:
        store.put("k", b"parent")
        busy = threading.Thread(target=_put_for_ever, args=(store,), daemon=True)
        busy.start()
        child = os.fork()
        if child == 0:
            _forked_child(store, target)
        for turn in itertools.count():
            assert store.get("k") == b"parent"
            say(f"parent {child} {turn}")
            time.sleep(0.01)


def _put_for_ever(store: kvstore.Store) -> None:
    while True:
        store.put("busy", b"v" * 1000)
        time.sleep(0.0005)


def _forked_child(store: kvstore.Store, target: str) -> NoReturn:
    try:
        for call in (lambda: store.get("k"), lambda: store.put("k", b"child"), store.size):
            try:
                call()
                say("child: no error")
            except kvstore.ForkedError as error:
                say(f"child told: {error}")
        own = kvstore.connect(target)
        for turn in itertools.count():
            assert own.get("k") == b"parent"
            own.put("c", value_of("c", turn, 1000))
            say(f"child {os.getpid()} {turn}")
            time.sleep(0.01)
    finally:
        traceback.print_exc()
        os._exit(3)


def main() -> None:
    work: Callable[..., None] = globals()[sys.argv[1]]
    work(*sys.argv[2:])


if __name__ == "__main__":
    main()
