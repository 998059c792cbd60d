"""How soon a killed holder's lock goes on: real processes, a real node, SIGKILL.

In each round a process takes the lock, others wait for it in the lock's queue, and the holder is
killed. Then the lock is granted to one of the others, and only after its release to the next; each
token is higher than all before. Measured is the time from the kill to the first of these grants.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any, Final

from kvstore.bench.document import Row
from kvstore.bench.processes import START_TIMEOUT_S, Child, ProcessError, start_node, target_of

#: Beyond the lease of the membership, which is how long a client may be silent.
GRACE_MS: Final = 100.0
_CAPACITY: Final = 64 << 20
_NAME: Final = "recovery"
_QUEUED_TIMEOUT_S: Final = START_TIMEOUT_S / 2
_PATIENCE_S: Final = START_TIMEOUT_S
_POLL_S: Final = 0.01


def measure_recovery(fabric: str, waiters: int, rounds: int, lease_s: float) -> Row:
    """One row of `rounds` kills of a holder that `waiters` processes wait for.

    Raises:
        ProcessError: A process did not come to its end, or the lock was granted where it must not.
    """
    import kvstore

    with ExitStack() as stack:
        node = start_node(
            _CAPACITY, verbs=fabric == "verbs", options=(f"--membership-lease={lease_s}",)
        )
        stack.callback(node.child.stop)
        target = target_of([node], fabric)
        store = stack.enter_context(kvstore.connect(target, timeout_s=_PATIENCE_S))
        took_ms = []
        token = 0
        for _ in range(rounds):
            waited_ms, token = _round(target, store, waiters, token)
            took_ms.append(waited_ms)
    bound_ms = lease_s * 1000 + GRACE_MS
    return {
        "lock": "kvstore",
        "fabric": fabric,
        "workload": "recovery",
        "clients": waiters + 1,
        "rounds": rounds,
        "lease_ms": lease_s * 1000,
        "median_ms": median(took_ms),
        "longest_ms": max(took_ms),
        "bound_ms": bound_ms,
        "met": max(took_ms) <= bound_ms,
        "checked": f"{rounds} times once, with a higher token",
    }


def _round(target: str, store: Any, waiters: int, token: int) -> tuple[float, int]:
    """The milliseconds from the kill to the next grant, and the highest token of the round."""
    with ExitStack() as stack:
        children = []
        for number in range(waiters + 1):
            name = "holder" if number == 0 else f"waiter {number}"
            child = Child(name, [sys.executable, "-m", "kvstore.bench.locks.contender"])
            stack.callback(child.stop)
            child.send({"target": target, "name": _NAME, "timeout_s": _PATIENCE_S})
            children.append(child)
        for child in children:
            child.receive()
        holder, *others = children
        holder.send("go")
        dead = holder.receive(_PATIENCE_S)
        for child in others:
            child.send("go")
        _wait_for_queue(store, waiters)
        killed_ns = time.monotonic_ns()
        holder.kill()
        stories = _grant_all(others)
    begins = [story["at_ns"] for story, _ in stories]
    check_tokens([token, dead["token"], *(story["token"] for story, _ in stories)])
    for (_, released_ns), begin_ns in zip(stories, begins[1:], strict=False):
        if begin_ns < released_ns:
            raise ProcessError("the lock was granted twice: two processes held it at one time")
    return (begins[0] - killed_ns) / 1e6, stories[-1][0]["token"]


def check_tokens(tokens: Sequence[int]) -> None:
    """ProcessError unless each token is higher than the one before."""
    for before, after in itertools.pairwise(tokens):
        if after <= before:
            raise ProcessError(f"the token {after} was granted after {before}")


def _wait_for_queue(store: Any, waiters: int) -> None:
    """Returns when so many clients wait for a lock."""
    deadline = time.monotonic() + _QUEUED_TIMEOUT_S
    while True:
        rows, _ = store._client.survey_locks(0, _QUEUED_TIMEOUT_S)
        if sum(row["state"] == "waits" for row in rows) == waiters:
            return
        if time.monotonic() > deadline:
            raise ProcessError(f"the {waiters} waiters did not come into the queue")
        time.sleep(_POLL_S)


def _grant_all(waiting: Sequence[Child]) -> list[tuple[Row, int]]:
    """What each said that it held, and when it released, in the order of the grants."""
    left = list(waiting)
    stories = []
    while left:
        child, held = _next_to_hold(left)
        left.remove(child)
        child.send("release")
        stories.append((held, int(child.receive(_PATIENCE_S)["at_ns"])))
    return stories


def _next_to_hold(children: Sequence[Child]) -> tuple[Child, Row]:
    import selectors

    deadline = time.monotonic() + _PATIENCE_S
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.stdout, selectors.EVENT_READ, child)
        while (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                child = key.data
                if not child.fill():
                    raise child.death()
                for message in child.messages():
                    return child, message
    raise ProcessError(f"nobody had the lock within {_PATIENCE_S:g} s")
