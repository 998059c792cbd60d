"""An engine that serves one prompt: `python -m tests.multiprocess.engine_worker NAME TARGET`.

It prints `asks` before its flight; `leads` when it is its turn to compute; then, once there is a
key `go`, `computed N`; or `loaded N` if it had nothing to compute. `leads` fails instead where its
name is on the key `fails`.
"""

from __future__ import annotations

import os
import sys
import time

import kvstore
from kvstore.llm import Limits, Namespace, PrefixCache, block_hashes

HASHES = block_hashes(range(16 * 8), 16)
BLOCK_BYTES = 4096
WAIT_S = 30.0


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def content(place: int) -> bytes:
    return bytes([place + 1]) * BLOCK_BYTES


def serve(cache: PrefixCache, store: kvstore.Store, name: str) -> None:
    with cache.flight(HASHES) as flight:
        buffers = [bytearray(BLOCK_BYTES) for _ in range(flight.matched)]
        loaded = cache.get(HASHES[: flight.matched], buffers).leading
        assert buffers == [content(i) for i in range(flight.matched)]
        if loaded == len(HASHES):
            say(f"loaded {loaded}")
            return
        say("leads" if flight.leads else "alone")
        deadline = time.monotonic() + WAIT_S
        while store.get("go") is None and time.monotonic() < deadline:
            if store.get("fails") == name.encode():
                raise RuntimeError("the computation failed")
            time.sleep(0.002)
        cache.put(HASHES[loaded:], [content(i) for i in range(loaded, len(HASHES))])
    say(f"computed {len(HASHES) - loaded}")


def main() -> None:
    name, target = sys.argv[1:]
    namespace = Namespace(model="tiny", dtype="uint8", layout="test", block_tokens=16)
    with (
        kvstore.connect(target) as store,
        PrefixCache(store, namespace, limits=Limits(flight_s=WAIT_S)) as cache,
    ):
        say("asks")
        try:
            serve(cache, store, name)
        except RuntimeError as error:
            say(str(error))
        stats = cache.stats()
        say(f"led {stats.flights_led} joined {stats.flights_joined} late {stats.flights_late}")


if __name__ == "__main__":
    main()
