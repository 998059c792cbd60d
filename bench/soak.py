#!/usr/bin/env python3
"""Runs many seeds, spread over all scenarios of the simulator: `make soak`.

It takes hours of processor time, and goes on where it was interrupted as long as the commit is the
same: what is done is kept in build/soak.json. The result goes to bench/results/soak.json, one row a
scenario, with the commit. The exit status is 1 if any seed failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from kvstore.bench.sim.runner import find_simulator, read_parameters
from kvstore.bench.sim.scenario import Catalogue

ROOT: Final = Path(__file__).resolve().parent.parent
PROGRESS: Final = ROOT / "build" / "soak.json"
RESULT: Final = ROOT / "bench" / "results" / "soak.json"
CHUNK_SEEDS: Final = 100 * (os.cpu_count() or 1)
# fmt: off
COUNTS: Final = (
    "violations", "operations", "verbs", "events", "unknown", "breaks", "crashes", "pauses",
    "leaves", "partitions", "power_losses", "damages", "fenced", "swept", "orphans", "torn",
    "cache_hits", "cache_revoked", "leases_waited", "virtual_s", "cpu_s",
)
# fmt: on

Document = dict[str, Any]


def git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit_here() -> str:
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + (", with changes" if changed else "")


def simulate(scenario: str, first: int, last: int) -> Document:
    """Run these seeds; the document of the summary. Progress goes to the terminal."""
    words = ["sim", scenario, "--seeds", f"{first}-{last}", "--json", "--summary"]
    command = [sys.executable, "-m", "kvstore.bench.main", *words]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode not in (0, 1) or not finished.stdout:
        sys.exit(finished.returncode or 1)
    document: Document = json.loads(finished.stdout)
    return document


def add(total: Document, row: Document, seeds: int) -> None:
    """Add the counts of some seeds to those before; ratios and quantiles are left out."""
    total.setdefault("scenario", row["scenario"])
    total["seeds"] = total.get("seeds", 0) + seeds
    for name in COUNTS:
        total[name] = total.get(name, 0) + row[name]
    failures = total.setdefault("failures", [])
    if row["violations"]:
        failures.append({"violation": row["violation"], "replay": row["replay"]})


def save(path: Path, document: Document) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def begun(commit: str) -> Document:
    """What an interrupted soak of this commit has done, or nothing."""
    if PROGRESS.exists():
        document: Document = json.loads(PROGRESS.read_text(encoding="utf-8"))
        if document["meta"]["commit"] == commit:
            print(f"going on after {document['meta']['seeds']:,} seeds", flush=True)
            return document
    return {"meta": {"commit": commit, "seeds": 0, "hours": 0.0}, "rows": []}


def soak(document: Document, scenarios: list[str], each: int) -> None:
    """Run what is left of `each` seeds a scenario, a chunk of each in turn."""
    rows: dict[str, Document] = {row["scenario"]: row for row in document["rows"]}
    for first in range(1, each + 1, CHUNK_SEEDS):
        last = min(first + CHUNK_SEEDS - 1, each)
        for scenario in scenarios:
            if rows.get(scenario, {}).get("seeds", 0) >= last:
                continue
            begin = time.monotonic()
            answer = simulate(scenario, first, last)
            if scenario not in rows:
                rows[scenario] = {}
                document["rows"].append(rows[scenario])
            add(rows[scenario], answer["rows"][0], last - first + 1)
            document["meta"] = answer["meta"] | document["meta"]
            for name in ("summary", "settings"):
                document["meta"].pop(name, None)
            document["meta"]["seeds"] += last - first + 1
            document["meta"]["hours"] += (time.monotonic() - begin) / 3600
            save(PROGRESS, document)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seeds", type=int, help="of all scenarios together")
    parser.add_argument("--commit", help="what these sources are, where there is no git")
    return parser.parse_args(words)


def main(seeds: int, commit: str) -> int:
    scenarios = Catalogue(read_parameters(find_simulator())).names("scenarios")
    each = -(-seeds // len(scenarios))
    print(f"{each:,} seeds of each of {len(scenarios)} scenarios, on {commit}", flush=True)
    document = begun(commit)
    soak(document, scenarios, each)
    save(RESULT, document)
    for row in document["rows"]:
        print(f"{row['scenario']:<20} {row['violations']} violations")
    print(f"written to {RESULT.relative_to(ROOT)}")
    return int(any(row["violations"] for row in document["rows"]))


if __name__ == "__main__":
    arguments = parse(sys.argv[1:])
    try:
        sys.exit(main(arguments.seeds, arguments.commit or commit_here()))
    except KeyboardInterrupt:
        print("interrupted; `make soak` goes on from here", file=sys.stderr)
        sys.exit(130)
