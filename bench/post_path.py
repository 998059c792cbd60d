"""Counts the instructions of the verbs fabric's post path with callgrind.

    bench/post_path.py [--json]

A count is that of the client's own code from a post to its completion, over a stand-in for the
device (bench/native/verbs/loopback_device.hpp): without the provider's instructions, and without
those of the stand-in. It does not depend on the machine's load. Needs the program `post_path`:

    make verbs && cmake --build build/editable --target post_path

and valgrind: the system's, or what `python scripts/debs.py valgrind` unpacks.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from kvstore.bench import debs
from kvstore.bench.document import Row, metadata, print_json, print_table

PROGRAM = Path(__file__).resolve().parents[1] / "build" / "editable" / "benches" / "post_path"
KINDS = ("get", "write", "cas", "faa", "put", "get-32", "read-1MiB")
DOORS = ("verbs_post(", "verbs_poll(")
STAND_IN = "loopback_"
FEW = 320
TIMEOUT_S = 300


def calls_into(text: str) -> dict[tuple[str, str], int]:
    """Instructions within calls, by caller and callee, from a file of callgrind."""
    names: dict[str, str] = {}
    costs: dict[tuple[str, str], int] = defaultdict(int)
    caller = callee = ""
    inclusive = False

    def name_of(word: str) -> str:
        # Later mentions of a name are its number alone.
        match = re.fullmatch(r"(\(\d+\))(?: (.*))?", word)
        if match is None:
            return word
        if match[2] is not None:
            names[match[1]] = match[2]
        return names[match[1]]

    for line in text.splitlines():
        if line.startswith("fn="):
            caller = name_of(line[3:])
        elif line.startswith("cfn="):
            callee = name_of(line[4:])
        elif line.startswith("calls="):
            inclusive = True
        elif inclusive:
            costs[caller, callee] += int(line.split()[1])
            inclusive = False
    return costs


def count(kind: str, calls: int) -> int:
    """Instructions of so many calls, between the doors of the fabric and the stand-in's."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [
            *(str(debs.provide_program("valgrind", "valgrind")), "--tool=callgrind", "--quiet"),
            *(f"--callgrind-out-file={out}", str(PROGRAM), kind, str(calls)),
        ]
        unpacked = debs.default_folder() / "root" / "usr" / "libexec" / "valgrind"
        environment = {**os.environ}
        if unpacked.exists():
            environment["VALGRIND_LIB"] = str(unpacked)
        subprocess.run(command, check=True, env=environment, timeout=TIMEOUT_S)
        costs = calls_into(out.read_text())
    within = 0
    for (caller, callee), cost in costs.items():
        if any(door in callee for door in DOORS):
            within += cost
        elif STAND_IN in callee and STAND_IN not in caller:
            within -= cost
    return within


def main() -> int:
    """Prints one row a kind of call."""
    if not PROGRAM.exists():
        print(f"{PROGRAM} is not built:\n{(__doc__ or '').split('`post_path`:')[1]}")
        return 1
    rows: list[Row] = []
    for kind in KINDS:
        # What happens once is in both.
        instructions = (count(kind, 3 * FEW) - count(kind, FEW)) / (2 * FEW)
        rows.append({"call": kind, "instructions_per_call": round(instructions, 1)})
    if "--json" in sys.argv[1:]:
        print_json(metadata("bench/post_path.py"), rows)
    else:
        print_table("The verbs fabric's own instructions from post to completion", rows, [*rows[0]])
    return 0


if __name__ == "__main__":
    sys.exit(main())
