"""`kvstore-bench llm`: policies against slow and simple ones, and replays in miniature."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from kvstore.bench.llm import load, ssd
from kvstore.bench.llm.policies import POLICIES, Lru
from kvstore.bench.llm.replay import count
from kvstore.bench.llm.routing import ROUTERS, replay
from kvstore.bench.llm.traces import Prompt, Trace, load_trace
from kvstore.bench.peers.case import Unavailable
from kvstore.demo.trace import TraceError, read_trace, workload_facts

COMMAND = [sys.executable, "-m", "kvstore.bench.main", "llm"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=150)


def chains(seed: int, requests: int = 60, heads: int = 4) -> list[list[int]]:
    """Random prompts that share prefixes: an id is a block and all before it."""
    source = random.Random(seed)
    ids: dict[tuple[int, ...], int] = {}
    made = []
    for _ in range(requests):
        path: tuple[int, ...] = ()
        blocks = []
        for _ in range(source.randrange(1, 7)):
            path = (*path, source.randrange(heads if not path else 2))
            blocks.append(ids.setdefault(path, len(ids)))
        made.append(blocks)
    return made


def single(seed: int, requests: int = 12, blocks: int = 5) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(blocks)] for _ in range(requests)]


def hits(policy: str, requests: list[list[int]], capacity: int) -> int:
    cache = POLICIES[policy](requests, capacity)
    return sum(cache.request(blocks) for blocks in requests)


def optimum(requests: list[list[int]], capacity: int) -> int:
    """The most hits that any choice of what to keep gives; for requests of one block."""
    best: dict[frozenset[int], int] = {frozenset(): 0}
    for (block,) in requests:
        following: dict[frozenset[int], int] = {}
        for cached, found in best.items():
            found += block in cached
            candidates = cached | {block}
            for size in range(min(capacity, len(candidates)) + 1):
                for kept in map(frozenset, combinations(sorted(candidates), size)):
                    following[kept] = max(following.get(kept, 0), found)
        best = following
    return max(best.values())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_belady_is_the_optimum(seed: int, capacity: int) -> None:
    requests = single(seed)
    assert hits("belady", requests, capacity) == optimum(requests, capacity)
    assert hits("lru", requests, capacity) <= optimum(requests, capacity)


@pytest.mark.parametrize("seed", range(20))
def test_no_policy_beats_an_unlimited_cache_nor_lru_the_optimum(seed: int) -> None:
    requests = chains(seed)
    unlimited = hits("none", requests, 0)
    for capacity in (3, 8, 20):
        lru, belady = hits("lru", requests, capacity), hits("belady", requests, capacity)
        assert lru <= belady <= unlimited
    everything = len({block for blocks in requests for block in blocks})
    assert hits("lru", requests, everything) == hits("belady", requests, everything) == unlimited


def test_lru_forgets_the_ends_of_chains_first() -> None:
    cache = Lru([], 3)
    assert cache.request([1, 2, 3]) == 0
    assert cache.request([9]) == 0
    assert cache.request([1, 2, 3]) == 2


def test_the_published_figures_of_the_conversation_trace(traces: Path | None) -> None:
    if traces is None:
        pytest.skip("KVSTORE_TRACES names no folder of traces")
    trace = load_trace(traces / "conversation_trace.jsonl.gz")
    ratios = [
        count(trace, "lru", n, print)["token_hit_ratio"] for n in (1000, 3000, 10_000, 30_000)
    ]
    assert [round(ratio, 3) for ratio in ratios] == [0.045, 0.067, 0.216, 0.332]
    assert round(count(trace, "none", 0, print)["token_hit_ratio"], 4) == 0.3736


def write_trace(folder: Path, requests: list[list[int]]) -> Path:
    path = folder / "trace.jsonl"
    lines = [
        {"timestamp": i, "input_length": 512 * len(b) - 7, "output_length": 1, "hash_ids": b}
        for i, b in enumerate(requests)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("fabric", ["local", "shm", "tcp"])
def test_the_store_hits_what_an_unlimited_cache_hits(tmp_path: Path, fabric: str) -> None:
    path = write_trace(tmp_path, chains(1, requests=200))
    finished = run(
        *("--trace", str(path), "--policy", "store", "--policy", "none", "--json"),
        *("--fabric", fabric, "--block-bytes", "512"),
    )
    assert finished.returncode == 0, finished.stderr
    store, unlimited = json.loads(finished.stdout)["rows"]
    facts = workload_facts(read_trace(path))
    assert store["token_hit_ratio"] == unlimited["token_hit_ratio"]
    assert store["token_hit_ratio"] == pytest.approx(facts.ideal_token_hit_ratio)
    assert (store["stored_blocks"], store["failed_blocks"]) == (facts.distinct_blocks, 0)
    assert (store["fabric"], store["tier"]) == (fabric, "remote")
    assert 0 < store["p50_ms"] <= store["p99_ms"]


def test_a_node_that_evicts_hits_less_and_loses_nothing_else(tmp_path: Path) -> None:
    path = write_trace(tmp_path, chains(2, requests=4000, heads=400))
    finished = run(
        *("--trace", str(path), "--policy", "sampled-lru", "--policy", "none", "--json"),
        *("--capacity-blocks", "1500", "--block-bytes", "8KiB", "--fabric", "local"),
    )
    assert finished.returncode == 0, finished.stderr
    limited, unlimited = json.loads(finished.stdout)["rows"]
    assert 1000 < limited["capacity_blocks"] < 2500
    assert 0 < limited["token_hit_ratio"] < unlimited["token_hit_ratio"]


def test_the_figure_of_the_adapter() -> None:
    finished = run("--figure", "adapter", "--seconds", "0.1", "--fabric", "local", "--json")
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(finished.stdout)["rows"]
    assert [row["block_bytes"] for row in rows] == [4096, 65_536, 1 << 20]
    assert all(row["bytes_per_s"] > 0 and "pass" in row for row in rows)


def test_two_choices_hit_like_one_and_balance_like_load(tmp_path: Path) -> None:
    path = write_trace(tmp_path, chains(3, requests=3000, heads=60))
    finished = run(
        *("--figure", "routing", "--trace", str(path), "--json"),
        *("--instances", "4", "--capacity-blocks", "100"),
    )
    assert finished.returncode == 0, finished.stderr
    rows = {row["policy"]: row for row in json.loads(finished.stdout)["rows"]}
    hits = {name: row["token_hit_ratio"] for name, row in rows.items()}
    assert hits["two-choice"] > max(hits["round-robin"], hits["least-loaded"])
    busiest = {name: row["busiest_ratio"] for name, row in rows.items()}
    assert 1.0 <= busiest["two-choice"] < busiest["one-choice"]
    assert all(
        row["instances"] == 4 and 0 < row["p50_ms"] <= row["p99_ms"] for row in rows.values()
    )


@pytest.mark.parametrize("router", ROUTERS)
def test_a_prompt_without_blocks_is_sent_somewhere(router: str) -> None:
    trace = Trace("short", 16, [Prompt(0.0, 3, ()), Prompt(1.0, 32, (1, 2))])
    assert replay(trace, router, instances=2, capacity_blocks=8)["instances"] == 2


def session(requests: list[dict[str, Any]]) -> bytes:
    return json.dumps({"block_size": 64, "requests": requests}).encode()


def test_sessions_of_agents_have_ids_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "sessions.tar.xz"
    one = {"t": 0.0, "type": "n", "in": 140, "hash_ids": [0, 1]}
    sub = {"t": 5.0, "type": "n", "in": 200, "hash_ids": [0, 1, 2]}
    files = {
        "traces/a.json": session([one, {"type": "subagent", "t": 4, "requests": [sub]}]),
        "traces/b.json": session([{**one, "t": 1.0}]),
    }
    with tarfile.open(path, "w:xz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    trace = load_trace(path)
    assert trace.block_tokens == 64
    assert [prompt.arrival_s for prompt in trace.prompts] == [0.0, 1.0, 5.0]
    first, second, third = (prompt.blocks for prompt in trace.prompts)
    assert third[:2] == first
    assert not set(first) & set(second)
    assert trace.hit_tokens(trace.prompts[0], 2) == 128
    path.write_bytes(b"no archive")
    with pytest.raises(TraceError, match=r"sessions\.tar\.xz"):
        load_trace(path)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--trace"),
        (["--trace", "absent.jsonl"], "absent.jsonl"),
        (["--figure", "adapter", "--capacity-blocks", "many"], "1000,3000"),
        (["--figure", "adapter", "--capacity-blocks", "0"], "at least one"),
    ],
)
def test_a_mistake_is_one_clear_line(words: list[str], reason: str) -> None:
    finished = run(*words)
    assert finished.returncode != 0
    assert reason in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(("fabric", "floor"), [("shm", "memcpy"), ("tcp", "loopback socket")])
def test_the_load_figure_has_a_floor_and_says_who_did_not_run(
    fabric: str, floor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fabric == "tcp" and shutil.which("cc") is None:
        pytest.skip("no C compiler for the bare socket")

    def missing(stack: object, fabric: str) -> load.Load:
        raise Unavailable("not here")

    monkeypatch.setattr(load, "BLOCKS", 3)
    monkeypatch.setattr(load, "_BYTES", 3 << 20)
    for peer in ("lmcache", "mooncake"):
        monkeypatch.setitem(load._SYSTEMS, peer, missing)
    ours, bare, *peers = load.measure(fabric, 0.01, lambda text: None)
    assert (ours["engine"], bare["engine"]) == ("kvstore", floor)
    assert ours["bytes_per_s"] > 0
    assert bare["pass"] == (bare["ratio"] >= 0.8)
    assert [peer["reason"] for peer in peers] == ["not run: not here"] * 2


@pytest.mark.parametrize("fabric", ["shm", "tcp"])
def test_the_ssd_figure_loads_what_only_the_file_has(
    fabric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssd, "BLOCKS", 3)
    rows = ssd.measure(fabric, 0.01, tmp_path, lambda text: None)
    assert [(row["tier"], row.get("file")) for row in rows] == [
        ("ssd", "warm"),
        ("ssd", "cold"),
        ("remote", None),
    ]
    assert all(row["bytes_per_s"] > 0 and row["fabric"] == fabric for row in rows)
    assert all(row["ratio"] > 0 for row in rows[:2])
    assert list(tmp_path.iterdir()) == []
