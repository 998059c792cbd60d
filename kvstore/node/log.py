"""The node's log: one line an event on stderr, JSON or text.

A line of JSON is one object: `ts` (RFC 3339, UTC), `level`, `event`, then the event's own fields.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from datetime import UTC, datetime
from typing import Any, Final, TextIO

FORMATS: Final = ("text", "json")


class Log:
    """Writes events. Thread-safe; a line is written whole."""

    def __init__(self, log_format: str, stream: TextIO | None = None) -> None:
        """`log_format` is one of `FORMATS`."""
        self._json = log_format == "json"
        self._stream = stream if stream is not None else sys.stderr
        self._lock = threading.Lock()

    def info(self, event: str, **fields: Any) -> None:
        """Something that the operator may want to know."""
        self._write(self._stream, "info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something that the operator should look at."""
        self._write(self._stream, "warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something that failed."""
        self._write(self._stream, "error", event, fields)

    def ready(self, **fields: Any) -> None:
        """The one line on stdout: the node serves, and where. Tools wait for it."""
        if self._json:
            line = json.dumps({"event": "ready", **fields}, default=str)
        else:
            line = " ".join(["ready", *(f"{name}={value}" for name, value in fields.items())])
        with self._lock:
            print(line, file=sys.stdout, flush=True)

    def _write(self, stream: TextIO, level: str, event: str, fields: dict[str, Any]) -> None:
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._json:
            record = {"ts": moment, "level": level, "event": event, **fields}
            line = json.dumps(record, default=str)
        else:
            pairs = "".join(f" {name}={_shown(value)}" for name, value in fields.items())
            line = f"{moment} {level:<7} {event}{pairs}"
        # Whoever read the log may have gone, or its disk be full; the node serves on.
        with self._lock, contextlib.suppress(OSError, ValueError):
            print(line, file=stream, flush=True)


def _shown(value: Any) -> str:
    text = str(value)
    plain = text.isprintable() and text and not set(text) & set(' ="')
    return text if plain else json.dumps(text)
