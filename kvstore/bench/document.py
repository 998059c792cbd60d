"""The `{"meta", "rows"}` document of every `--json`, and the same rows as a table."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kvstore._version import __version__

Row = dict[str, Any]


def metadata(command: str, **facts: Any) -> dict[str, Any]:
    """What a reader must know to judge the rows: machine, versions, settings."""
    return {
        "command": command,
        "kvstore_version": __version__,
        "python_version": platform.python_version(),
        "kernel": platform.release(),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **facts,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def print_json(meta: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """Prints the one document of a command. A figure that there is none of is null."""
    document = _in_json({"meta": meta, "rows": list(rows)})
    json.dump(document, sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")


def _in_json(value: Any) -> Any:
    """The value, with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {name: _in_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(title: str, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Prints the named columns of `rows`; a column that no row has is left out."""
    from rich.console import Console
    from rich.table import Table

    shown = [name for name in columns if any(row.get(name) is not None for row in rows)]
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    numeric = {n for n in shown if any(isinstance(row.get(n), int | float) for row in rows)}
    for name in shown:
        table.add_column(name, justify="right" if name in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in shown))
    console = Console()
    if not console.is_terminal:
        # A pipe has no width; a table that is cut off there would lose figures.
        console = Console(width=280)
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def percentile(sorted_values: Sequence[float], fraction: float) -> float:
    """The value below which `fraction` of the sorted values lie (nearest rank)."""
    if not sorted_values:
        return float("nan")
    return sorted_values[min(len(sorted_values) - 1, int(fraction * len(sorted_values)))]


def median(values: Iterable[float]) -> float:
    """The median of `values`."""
    import statistics

    return statistics.median(values)
