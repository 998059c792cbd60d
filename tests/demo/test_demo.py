"""`kvstore demo` as a newcomer types it, and its clean-up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kvstore.demo import llm
from tests.support.processes import descendants, is_running

COMMAND = [sys.executable, "-m", "kvstore.cli", "demo"]
SMALL = ["--block-bytes", "2KiB", "--limit", "200", "--no-redis"]


def run(*words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=100)
    assert finished.returncode == expect, finished.stderr
    return finished


def row_of(*words: str) -> dict[str, Any]:
    document = json.loads(run(*words, "--json").stdout)
    assert set(document) == {"meta", "rows"}
    (row,) = document["rows"]
    assert all(not isinstance(value, dict | list) for value in row.values())
    return dict(row)


def test_the_run_with_a_kill() -> None:
    row = row_of(*SMALL)
    assert row["synthetic"] is True
    assert row["requests"] == 200
    assert row["mismatches"] == 0
    assert row["killed"] is True
    assert row["resume_ms"] > 0
    assert row["keys_missing"] == 0
    assert 0 < row["keys_lost"] < row["keys_acknowledged"]
    assert row["verbs_per_request"] > row["round_trips_per_request"] > 0
    assert row["request_p50_us"] <= row["request_p99_us"]
    # Blocks of 2 KiB say nothing about bandwidth.
    assert "bytes_per_s" not in row


def test_the_report_ends_with_the_verdict() -> None:
    lines = run(*SMALL).stdout.splitlines()
    assert "synthetic" in lines[0]
    verdict = "\n".join(lines[lines.index("Verdict") :])
    for words in (
        "requests completed      200 of 200",
        "wrong bytes             0",
        "requests flowed again",
        "keys lost with the node",
        "verbs per request",
        "latency of a request",
        "the same through Redis",
    ):
        assert words in verdict
    assert "GB/s" not in "\n".join(lines)


@pytest.mark.parametrize("fabric", ["shm", "tcp"])
def test_a_trace(tmp_path: Path, traces: Path | None, fabric: str) -> None:
    from kvstore.demo.trace import workload_facts
    from kvstore.demo.workload import generate

    limit = "300"
    if traces is not None:
        path = traces / "conversation_trace.jsonl.gz"
        from kvstore.demo.trace import read_trace

        facts = workload_facts(read_trace(path, 300))
    else:
        path = tmp_path / "trace.jsonl"
        requests = generate(300)
        facts = workload_facts(requests)
        path.write_text(
            "".join(
                json.dumps(
                    {
                        "timestamp": request.timestamp_ms,
                        "input_length": request.input_tokens,
                        "output_length": request.output_tokens,
                        "hash_ids": request.blocks,
                    }
                )
                + "\n"
                for request in requests
            )
        )
    row = row_of("--trace", str(path), "--limit", limit, "--block-bytes", "1024",
                 "--fabric", fabric, "--no-redis")  # fmt: skip
    assert row["requests"] == 300
    assert row["fabric"] == fabric
    assert row["killed"] is False
    assert row["distinct_blocks"] == facts.distinct_blocks == row["blocks_written"]
    assert row["token_hit_ratio"] == facts.ideal_token_hit_ratio
    assert row["mismatches"] == row["blocks_failed"] == 0


def test_it_ends_with_the_way_to_a_real_model() -> None:
    if llm.can_run():
        pytest.skip("torch is installed here: tests/engines runs the model itself")
    assert run(*SMALL).stdout.splitlines()[-1] == llm.HOW_TO


def test_bandwidth_appears_from_1_mib_on() -> None:
    row = row_of("--block-bytes", "1MiB", "--limit", "3", "--no-kill", "--no-redis")
    assert row["bytes_per_s"] > 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--trace", "no-such-file"], "No such file"),
        (["--block-bytes", "8"], "16 bytes"),
        (["--block-bytes", "many"], "many"),
        (["--block-bytes", "64GiB"], "free"),
    ],
)
def test_a_mistake_is_one_clear_line(words: list[str], reason: str) -> None:
    finished = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60)
    assert finished.returncode != 0
    assert reason in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_process(number: signal.Signals) -> None:
    command = [*COMMAND, "--limit", "5000", "--speed", "5", "--no-redis", "--block-bytes", "1KiB"]
    # A shell tells the commands that it starts in the background to ignore SIGINT.
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while len(descendants(process.pid)) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        children = descendants(process.pid)
        assert len(children) >= 4
        time.sleep(0.3)
        os.kill(process.pid, number)
        process.wait(20)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            alive = {child for child in children if is_running(child)}
            if not alive:
                return
            time.sleep(0.05)
        pytest.fail(f"left behind: {alive}")
    finally:
        process.kill()
        process.wait()
