"""Counts the instructions of the verbs fabric's post path, and of whole gets, with callgrind.

    bench/post_path.py [--json]

A count is that of the client's own code over a stand-in for the device
(bench/native/verbs/loopback_device.cpp): of the fabric from a post to its completion, and of the
store from a call to its outcome. It has neither the provider's instructions nor those of the
stand-in, and does not depend on the machine's load. Needs two programs:

    make verbs && cmake --build build/editable --target post_path store_path

and valgrind: the system's, or what `python scripts/debs.py valgrind` unpacks.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvstore.bench import debs
from kvstore.bench.document import Row, metadata, print_json, print_table

BENCHES = Path(__file__).resolve().parents[1] / "build" / "editable" / "benches"

STAND_IN = "loopback_"
FEW = 320
TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Program:
    """A program that makes calls of some kinds, and the functions that a call is within."""

    name: str
    layer: str
    kinds: tuple[str, ...]
    doors: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where the build puts it."""
        return BENCHES / self.name


PROGRAMS: Final = (
    Program(
        "post_path",
        "fabric",
        ("get", "write", "cas", "faa", "put", "get-32", "read-1MiB"),
        ("verbs_post(", "verbs_poll("),
    ),
    Program("store_path", "store", ("get", "get-cold", "get-32"), ("kvstore::Lane::run(",)),
)


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


def count(program: Program, kind: str, calls: int) -> int:
    """Instructions of so many calls, within the program's doors and outside of the stand-in."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(str(debs.provide_program("valgrind", "valgrind")), "--tool=callgrind", "--quiet"),
            *("--separate-threads=yes", f"--callgrind-out-file={folder}/out"),
            *(str(program.path), kind, str(calls)),
        ]
        library = BENCHES / "loopback_verbs.so"
        environment = {**os.environ, "KVSTORE_VERBS_LIBRARY": str(library)}
        unpacked = debs.default_folder() / "root" / "usr" / "libexec" / "valgrind"
        if unpacked.exists():
            environment["VALGRIND_LIB"] = str(unpacked)
        subprocess.run(command, check=True, env=environment, timeout=TIMEOUT_S)
        # The thread that makes the calls.
        costs = calls_into((Path(folder) / "out-01").read_text())
    within = 0
    for (caller, callee), cost in costs.items():
        if any(door in callee for door in program.doors):
            within += cost
        elif STAND_IN in callee and STAND_IN not in caller:
            within -= cost
    return within


def main() -> int:
    """Prints one row a kind of call."""
    missing = [program.name for program in PROGRAMS if not program.path.exists()]
    if missing:
        print(
            f"{' and '.join(missing)} not built: make verbs && cmake --build build/editable"
            f" --target {' '.join(missing)}"
        )
        return 1
    rows: list[Row] = []
    for program in PROGRAMS:
        for kind in program.kinds:
            # What happens once is in both.
            few, many = (count(program, kind, calls) for calls in (FEW, 3 * FEW))
            instructions = round((many - few) / (2 * FEW), 1)
            rows.append(
                {"layer": program.layer, "call": kind, "instructions_per_call": instructions}
            )
    if "--json" in sys.argv[1:]:
        print_json(metadata("bench/post_path.py"), rows)
    else:
        print_table("The client's own instructions over verbs", rows, [*rows[0]])
    return 0


if __name__ == "__main__":
    sys.exit(main())
