"""`kvstore-bench cache --fabric sim`."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvstore.bench.cache import cache
from kvstore.bench.cache_simulated import compare, summary
from kvstore.bench.cache_workloads import SHAPES, STATISTICS, twitter

SHORT = ("--fabric", "sim", "--operations", "4000")
COLUMNS = {
    *("workload", "policy", "fabric", "compute_nodes", "ops_per_s", "verbs_per_op", "hit_ratio"),
    *("invalidations_per_op", "p99_us", "stale_reads"),
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cache, list(arguments))


def document(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three clusters, made up: one without figures, one without a skew, one with both."""
    names = ("cluster", "zipf_alpha", "read_ratio_norm", "mean_value_bytes")
    with open(tmp_path / STATISTICS, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerows([names, (5, "", "", ""), (7, "", "0.5", "600"), (9, "1.9", "1.0", "60")])
    sizes = {"valSizeRange": [100, 300, 900], "valSizeRangeProbability": [2, 1, 1]}
    content = json.dumps(sizes).encode()
    with tarfile.open(tmp_path / SHAPES, "w:gz") as archive:
        entry = tarfile.TarInfo("cachelib/hit_ratio/kvcache_reg/sizes.json")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    monkeypatch.setenv("KVSTORE_TRACES", str(tmp_path))
    return tmp_path


def test_every_policy_of_a_workload() -> None:
    told = document(*SHORT, "--workload", "ycsb-b")
    rows = told["rows"]
    assert [row["policy"] for row in rows] == ["none", *["central"] * 4, "lease", "coherent"]
    for row in rows:
        assert row.keys() >= COLUMNS
        assert row["ops_per_s"] > 0
        assert row["policy"] == "lease" or row["stale_reads"] == 0
    by_policy = {row["policy"]: row for row in rows}
    assert by_policy["none"]["hit_ratio"] == 0
    assert by_policy["lease"]["stale_reads"] > 0
    assert by_policy["central"]["invalidations_per_op"] > 0
    rates = [row["manager_messages_per_s"] for row in rows if row["policy"] == "central"]
    assert rates == [2_000_000, 1_000_000, 4_000_000, 8_000_000]
    (ratio,) = told["meta"]["ratios"]
    assert ratio["over_none"] == by_policy["coherent"]["ops_per_s"] / rows[0]["ops_per_s"]


def test_a_comparison_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    keep = tmp_path / "rows"
    arguments = (*SHORT, "--workload", "ycsb-b", "--keep", str(keep), "--warm-up", "1000")
    first = document(*arguments, "--policy", "none")
    (line,) = keep.read_text().splitlines()
    assert "warmup_operations=1000 " in json.loads(line)["job"]
    changed = json.loads(line)
    changed["row"]["ops_per_s"] = 12345.0
    keep.write_text(json.dumps(changed) + "\n" + line[:40])
    rates = ("--policy", "central", "--manager-rate", "4")
    rows = document(*arguments, "--policy", "none", *rates)["rows"]
    assert [row["ops_per_s"] == 12345.0 for row in rows] == [True, False]
    assert rows[1]["manager_messages_per_s"] == 4_000_000
    assert rows[0]["p99_us"] == first["rows"][0]["p99_us"]
    assert len(keep.read_text().splitlines()) == 2
    keep.write_text("something else\n")
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "holds no kept rows" in refused.output


def test_clusters_are_synthetic_and_a_missing_skew_is_marked(traces: Path) -> None:
    seventh, ninth = twitter(traces)
    assert (seventh.name, seventh.zipf, seventh.reads) == ("twitter-7", 0, 500)
    assert seventh.skew_missing
    assert not ninth.skew_missing
    # Half of the shape's values have 100 bytes, of 350 in the mean.
    assert sorted(seventh.sizes)[:24] == [171] * 24
    assert sum(seventh.sizes) / len(seventh.sizes) == pytest.approx(600, rel=0.01)
    told = document(*SHORT, "--workload", "twitter", "--policy", "none", "--policy", "coherent")
    assert [row["workload"] for row in told["rows"][::2]] == ["twitter-7", "twitter-9"]
    assert all(row["synthetic"] for row in told["rows"])
    (total,) = told["meta"]["summary"]
    assert (total["count"], total["paper_mean"], total["paper_maximum"]) == (2, 5.53, 10.83)
    # What is read only and hot is copied, and read without a verb.
    assert told["rows"][3]["hit_ratio"] > 0.5


def test_without_traces_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVSTORE_TRACES", raising=False)
    refused = run(*SHORT, "--workload", "twitter-4")
    assert refused.exit_code == 1
    assert STATISTICS in refused.output
    assert "KVSTORE_TRACES" in refused.output


def test_the_summary_has_means_and_the_worst() -> None:
    rows = [
        {"workload": f"twitter-{n}", "policy": p, "manager_messages_per_s": None, "ops_per_s": rate}
        for n, own in ((1, 1.0), (2, 4.0))
        for p, rate in (("none", 1.0), ("coherent", own))
    ]
    (total,) = summary(compare(rows))
    assert total["geometric_mean"] == pytest.approx(2)
    assert total["arithmetic_mean"] == pytest.approx(2.5)
    assert (total["maximum"], total["minimum"], total["least_on"]) == (4, 1, "twitter-1")


def test_a_workload_belongs_to_its_fabric() -> None:
    for arguments in (
        ("--fabric", "sim", "--workload", "hot"),
        ("--fabric", "shm", "--workload", "ycsb-d"),
        ("--fabric", "sim", "--fabric", "shm"),
    ):
        assert run(*arguments).exit_code == 2
