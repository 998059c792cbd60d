"""What copies cost while nobody reads or writes: processor time and verbs of an idle client."""

from __future__ import annotations

import time
from typing import Any, Final

from kvstore.bench.document import Row
from kvstore.bench.processes import ProcessError, require_fabric

_KEYS: Final = 64
_VALUE: Final = bytes(1024)
_SETTLE_S: Final = 10.0


def measure_idle(target: str, fabric: str, cache_bytes: int, seconds: float) -> Row:
    """One row: a client that has copies, if it may, and does nothing for so long.

    `cpu_percent` is of this process, `heartbeat_verbs_per_s` the price of its lease; `verbs`,
    `messages` and `ops_per_s` are all that it did beside.

    Raises:
        ProcessError: The client made no copies.
    """
    import kvstore

    options: dict[str, Any] = {"cache_bytes": cache_bytes} if cache_bytes else {}
    with kvstore.connect(target, **options) as store:
        keys = [b"idle %d" % number for number in range(_KEYS)]
        for key in keys:
            store.put(key, _VALUE)
        give_up = time.monotonic() + _SETTLE_S
        while cache_bytes and store.stats().cache_entries < _KEYS:
            if time.monotonic() > give_up:
                raise ProcessError(f"no copies of {_KEYS} keys after {_SETTLE_S:.0f} s")
            for key in keys:
                store.get(key)
        time.sleep(min(seconds, 0.5))  # the heartbeat slows down
        before, cpu_s, began_s = store.stats(), time.process_time(), time.monotonic()
        time.sleep(seconds)
        after, cpu_s, took_s = (
            store.stats(),
            time.process_time() - cpu_s,
            time.monotonic() - began_s,
        )
        held = after.cache_entries
        shown = require_fabric(store, fabric)

    def grown(*names: str) -> int:
        return sum(getattr(after, name) - getattr(before, name) for name in names)

    return {
        "workload": "idle",
        "policy": "coherent" if cache_bytes else "none",
        "fabric": shown,
        "compute_nodes": 1,
        "ops_per_s": grown("operations") / took_s,
        "copies": held,
        "cpu_percent": 100 * cpu_s / took_s,
        "heartbeat_verbs_per_s": grown("heartbeat_verbs") / took_s,
        "verbs": grown("reads", "writes", "cas", "faa"),
        "messages": grown("invalidations_sent", "invalidations_received"),
    }
