"""One end of a hand-off: `python -m tests.multiprocess.hand_off_worker prefill|decode TARGET`.

`prefill` prints `begins`; `published N` after each layer, with which it goes on once there is a key
`go N`.
`decode` prints `arrived N` with each layer, and in the end `received`, or `computes: WHY`.
"""

from __future__ import annotations

import os
import sys
import time

import kvstore
from kvstore.llm import HandOff, Namespace, PrefixCache, block_hashes

LAYERS, BLOCKS, PIECE_BYTES = 4, 8, 64 << 10
HASHES = block_hashes(range(16 * BLOCKS), 16)
WAIT_S = 30.0


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def content(layer: int) -> list[bytes]:
    return [bytes([16 * layer + block + 1]) * PIECE_BYTES for block in range(BLOCKS)]


def prefill(store: kvstore.Store, hand_off: HandOff) -> None:
    with hand_off.publish(HASHES) as publication:
        say("begins")
        for layer in range(LAYERS):
            deadline = time.monotonic() + WAIT_S
            while store.get(f"go {layer}") is None and time.monotonic() < deadline:
                time.sleep(0.002)
            publication.put(content(layer))
            say(f"published {layer}")


def decode(hand_off: HandOff) -> None:
    buffers = [[bytearray(PIECE_BYTES) for _ in range(BLOCKS)] for _ in range(LAYERS)]
    say("asks")

    def arrived(layer: int) -> None:
        assert buffers[layer] == content(layer)
        say(f"arrived {layer}")

    received = hand_off.receive(HASHES, buffers, timeout_s=WAIT_S, arrived=arrived)
    say("received" if received.complete else f"computes: {received.reason}")


def main() -> None:
    role, target = sys.argv[1:]
    namespace = Namespace(model="tiny", dtype="uint8", layout="by layer", block_tokens=16)
    with kvstore.connect(target) as store, PrefixCache(store, namespace) as cache:
        hand_off = HandOff(store, cache, LAYERS)
        if role == "prefill":
            prefill(store, hand_off)
        else:
            decode(hand_off)


if __name__ == "__main__":
    main()
