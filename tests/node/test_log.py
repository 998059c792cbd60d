"""The log: what cannot be written is no reason to fail."""

from __future__ import annotations

from contextlib import suppress

from kvstore.node.log import Log


def test_a_full_disk_ends_nothing() -> None:
    survived = False
    # Closing fails too, for the line that could not be written.
    with suppress(OSError), open("/dev/full", "w") as full:
        Log("text", full).warning("instance is down")
        survived = True
    assert survived
