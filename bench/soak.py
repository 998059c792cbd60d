#!/usr/bin/env python3
"""Runs many seeds, spread over all scenarios of the simulator: `make soak`.

Writes bench/results/soak.json, one row a scenario, with the commit on which they ran. The exit
status is 1 if any seed failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from kvstore.bench.sim.runner import find_simulator, read_parameters
from kvstore.bench.sim.scenario import Catalogue

ROOT = Path(__file__).resolve().parent.parent


def git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def main(seeds: int) -> int:
    scenarios = Catalogue(read_parameters(find_simulator())).names("scenarios")
    each = -(-seeds // len(scenarios))
    commit = git("rev-parse", "HEAD")
    if git("status", "--porcelain", "--untracked-files=no"):
        commit += ", with changes"
    print(f"{each:,} seeds of each of {len(scenarios)} scenarios, on {commit}", flush=True)
    begin = time.monotonic()
    words = ["all", "--seeds", f"1-{each}", "--json", "--summary"]
    command = [sys.executable, "-m", "kvstore.bench.main", "sim", *words]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if finished.returncode not in (0, 1):
        return finished.returncode
    document = json.loads(finished.stdout)
    document["meta"] |= {
        "commit": commit,
        "seeds": each * len(scenarios),
        "hours": (time.monotonic() - begin) / 3600,
    }
    path = ROOT / "bench" / "results" / "soak.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for row in document["rows"]:
        print(f"{row['scenario']:<20} {row['violations']} violations")
    print(f"written to {path.relative_to(ROOT)}")
    return finished.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
