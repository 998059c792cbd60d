"""Byte counts as people write them."""

from __future__ import annotations

import re
from typing import Final

_FACTORS: Final = {
    "": 1,
    "B": 1,
    **{prefix + "IB": 1 << (10 * power) for power, prefix in enumerate("KMGT", 1)},
    **{prefix + "B": 1000**power for power, prefix in enumerate("KMGT", 1)},
}
_PATTERN: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """`4GiB`, `1.5 MB` or `65536` as a count. `ValueError` if it is none of these."""
    if isinstance(text, int):
        return text
    match = _PATTERN.fullmatch(text)
    if match is None or match[2].upper() not in _FACTORS:
        raise ValueError(f"{text!r} is no size; write it as 4GiB, 512MiB or a count of bytes")
    return (
        int(float(match[1]) * _FACTORS[match[2].upper()])
        if "." in match[1]
        else (int(match[1]) * _FACTORS[match[2].upper()])
    )


def format_bytes(count: float) -> str:
    """A count in the largest binary unit that leaves at least 1: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
