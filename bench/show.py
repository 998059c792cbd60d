"""Prints a JSON document of a command as tables: `python bench/show.py FILE...`.

Rows with the same fields form one table; a document of one wide row is printed downwards.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from kvstore.bench.document import print_table

HIDDEN = {"kind", "comparison", "ops_per_s_min", "ops_per_s_max", "rounds", "bytes_per_s"}
# A row that judges a ratio repeats them from the row that it judges.
FIGURES = {"ops_per_s", "p50_us", "p99_us", "p999_us", "verbs_per_op", "round_trips_per_op"}
COLUMNS_MAX = 20


def show(path: Path) -> None:
    document = json.loads(path.read_text())
    meta = document["meta"]
    print(f"{meta['command']}, kvstore {meta['kvstore_version']}, {meta['processor']}, "
          f"{meta['processors']} processors, {meta['time']}")  # fmt: skip

    def kind(row: dict[str, Any]) -> tuple[str, ...]:
        # What stands in the way of one table is whether a row was judged.
        return ("judged",) if "target" in row else ("measured",)

    for _, group in itertools.groupby(sorted(document["rows"], key=kind, reverse=True), key=kind):
        rows = list(group)
        if len(rows) == 1 and len(rows[0]) > COLUMNS_MAX:
            pairs = [{"field": name, "value": value} for name, value in rows[0].items()]
            print_table("", pairs, ("field", "value"))
            continue
        hidden = HIDDEN | FIGURES if "target" in rows[0] else HIDDEN
        columns = dict.fromkeys(name for row in rows for name in row if name not in hidden)
        print_table("", rows, tuple(columns))


if __name__ == "__main__":
    for word in sys.argv[1:]:
        show(Path(word))
