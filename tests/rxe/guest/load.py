"""A client under load, for tests that take its node away: `python -m tests.rxe.guest.load TARGET`.

Puts and gets without end, checks what it reads, and says on stdout in which state it is: `up` when
operations succeed again after the start or a failure, `down` with the error when they begin to
fail, `progress` now and then. It alone writes its keys, so it knows what they may hold.
"""

from __future__ import annotations

import faulthandler
import sys
import time

import kvstore
from kvstore.errors import KvError, NodeUnreachable, OutcomeUnknown

KEYS = 20
TIMEOUT_S = 20.0
PAUSE_S = 0.1
STILL_S = 60.0
PROGRESS_EVERY = 50


def main() -> None:
    """Run until killed."""
    # Where it stands, should it stand still.
    faulthandler.dump_traceback_later(STILL_S, repeat=True)
    store = kvstore.connect(sys.argv[1], timeout_s=TIMEOUT_S)
    acceptable: dict[bytes, set[bytes | None]] = {}
    state, number = "", 0
    while True:
        number += 1
        key = b"key-%d" % (number % KEYS)
        began = time.monotonic()
        try:
            check_one(store, key, b"%d-" % number * 100, acceptable)
            now = "up"
        except (NodeUnreachable, OutcomeUnknown, kvstore.errors.DeadlineExceeded) as error:
            now = f"down {type(error).__name__}"
            time.sleep(PAUSE_S)
        except KvError as error:
            print(f"wrong {error!r}", flush=True)
            return
        if number % PROGRESS_EVERY == 0:
            print(f"progress {number}", flush=True)
        if time.monotonic() - began > 2 * TIMEOUT_S:
            print("wrong: a call was not bounded", flush=True)
        faulthandler.dump_traceback_later(STILL_S, repeat=True)
        if now.split()[0] != state:
            state = now.split()[0]
            restarts = store.members()[0].restarts
            print(f"{now} after {number} restarts {restarts}", flush=True)
            if restarts:
                acceptable.clear()


def check_one(
    store: kvstore.Store, key: bytes, value: bytes, acceptable: dict[bytes, set[bytes | None]]
) -> None:
    """One put and one get of a key that nobody else writes."""
    known = acceptable.setdefault(key, {None})
    known.add(value)
    store.put(key, value)
    known.clear()
    known.add(value)
    seen = store.get(key)
    if seen not in known:
        print(f"wrong: {key!r} holds {seen!r}", flush=True)


if __name__ == "__main__":
    main()
