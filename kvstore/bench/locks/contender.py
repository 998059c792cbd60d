"""One process that wants a lock, for what has to be timed between processes.

Reads its setting from the first line of stdin and says `ready`. Then it asks for the lock, says
`held` with the token, holds until it reads another line, releases, and says `released`. Instants
are of CLOCK_MONOTONIC, which all processes of a host share.
"""

from __future__ import annotations

import json
import sys
import time


def say(event: str, **facts: object) -> None:
    """One line to the parent."""
    print(json.dumps({"event": event, **facts}), flush=True)


def main() -> None:
    """Holds the lock once."""
    import kvstore

    setting = json.loads(sys.stdin.readline())
    timeout_s = setting["timeout_s"]
    with kvstore.connect(setting["target"], timeout_s=timeout_s) as store:
        # The table and the connections are there before it begins.
        with store.lock(f"{setting['name']} of {time.monotonic_ns()}"):
            pass
        say("ready")
        sys.stdin.readline()
        with store.lock(setting["name"], timeout_s=timeout_s) as held:
            say("held", token=held.token, at_ns=time.monotonic_ns())
            sys.stdin.readline()
            at_ns = time.monotonic_ns()
        say("released", at_ns=at_ns)


if __name__ == "__main__":
    main()
