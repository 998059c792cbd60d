"""One client process of a replay: takes requests from its stdin and answers on its stdout.

The first line configures it; each later line is a request, an audit, or the wish for its counters.
A request is what a serving engine does with its prefix cache: match the longest cached prefix in
one batch, read the hits, check every byte, write the misses. End of input ends it.
"""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from kvstore.demo.backend import Backend, batches, open_backend
from kvstore.demo.content import Blocks

_QUEUE_MAX: Final = 64


class ReplayClient:
    """Serves requests with a few threads over one store."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self._blocks = Blocks(configuration["block_bytes"], configuration["seed"])
        self._backend: Backend = open_backend(
            configuration["target"], self._blocks.block_bytes, configuration["fabric"]
        )
        self._work: queue.Queue[dict[str, Any] | None] = queue.Queue(_QUEUE_MAX)
        self._output_lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._serve, daemon=True)
            for _ in range(configuration["threads"])
        ]

    def run(self) -> None:
        """Answers messages until the input ends."""
        for thread in self._threads:
            thread.start()
        self._say({"event": "ready", "fabric": self._backend.fabric})
        for line in sys.stdin.buffer:
            self._work.put(json.loads(line))
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        self._backend.close()

    def _say(self, message: dict[str, Any]) -> None:
        with self._output_lock:
            sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
            sys.stdout.buffer.flush()

    def _serve(self) -> None:
        while (message := self._work.get()) is not None:
            try:
                if "request" in message:
                    self._say(self._replay(message["request"], message["blocks"]))
                elif "audit" in message:
                    self._say(self._audit(message["audit"]))
                else:
                    self._say({"event": "counters", "counters": self._backend.counters()})
            except Exception as error:
                self._say({"event": "failed", "error": f"{type(error).__name__}: {error}"})

    def _replay(self, request: int, blocks: Sequence[int]) -> dict[str, Any]:
        keys = [self._blocks.key(block) for block in blocks]
        started = time.perf_counter()
        matched = min(self._backend.match(keys), len(keys))
        matched_at = time.perf_counter()
        read, wrong = self._read(keys[:matched], blocks)
        read_at = time.perf_counter()
        failed = self._write(keys, blocks, read)
        finished = time.perf_counter()
        return {
            "event": "done",
            "request": request,
            "matched": read,
            "written": len(keys) - read - len(failed),
            "wrong": wrong,
            "failed": failed,
            "match_us": 1e6 * (matched_at - started),
            "read_us": 1e6 * (read_at - matched_at),
            "write_us": 1e6 * (finished - read_at),
            "request_us": 1e6 * (finished - started),
            "counters": self._backend.counters(),
        }

    def _read(self, keys: Sequence[bytes], blocks: Sequence[int]) -> tuple[int, int]:
        """Reads and checks; returns how many leading blocks came, and how many were wrong."""
        wrong = 0
        for batch in batches(len(keys), self._blocks.block_bytes):
            for index, value in enumerate(self._backend.read(keys[batch]), batch.start):
                if value is None:
                    # It went between match and read: from here on the prefix is a miss.
                    return index, wrong
                wrong += not self._blocks.is_right(blocks[index], value)
        return len(keys), wrong

    def _write(
        self, keys: Sequence[bytes], blocks: Sequence[int], begin: int
    ) -> list[tuple[int, str]]:
        """Writes the blocks from `begin` on; returns those that failed, with the error's name."""
        failed: list[tuple[int, str]] = []
        for batch in batches(len(keys) - begin, self._blocks.block_bytes):
            part = slice(begin + batch.start, begin + batch.stop)
            values = [self._blocks.content(block) for block in blocks[part]]
            errors = self._backend.write(keys[part], values)
            failed.extend(
                (block, error) for block, error in zip(blocks[part], errors, strict=True) if error
            )
        return failed

    def _audit(self, blocks: Sequence[int]) -> dict[str, Any]:
        counts: dict[str, int] = {}
        for batch in batches(len(blocks), 0):
            keys = [self._blocks.key(block) for block in blocks[batch]]
            for state in self._backend.present(keys):
                counts[state] = counts.get(state, 0) + 1
        return {"event": "audited", "counts": counts}


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configuration = json.loads(sys.stdin.buffer.readline())
    try:
        client = ReplayClient(configuration)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
    client.run()


if __name__ == "__main__":
    main()
