"""`kvstore-bench lock`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import kvstore
from kvstore.bench.locks.accounts import INITIAL, Bank, account, open_accounts, total
from kvstore.bench.locks.command import lock
from kvstore.bench.locks.points import QUANTILES
from kvstore.bench.locks.recovery import check_tokens
from kvstore.bench.locks.simulated import WAIT_BOUND, compare, interval95, waits
from kvstore.bench.processes import ProcessError

SHORT = ("--warmup-ms", "0.2", "--measure-ms", "0.5", "--seeds", "2")
COLUMNS = {
    *("lock", "fabric", "profile", "compute_nodes", "clients", "locks", "zipf", "read_ratio"),
    *("accesses", "ops_per_s", "p50_us", "p99_us", "jain", "verbs_per_op", "messages_per_op"),
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(lock, list(arguments))


def document(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_all_locks_at_one_point() -> None:
    told = document("--clients", "4", "--compute-nodes", "2", *SHORT)
    rows = {row["lock"]: row for row in told["rows"]}
    assert set(rows) == {
        *("kvstore", "kvstore-flat", "cas", "dslr", "mcs", "shiftlock", "declock"),
    }
    for row in rows.values():
        assert row.keys() >= COLUMNS
        assert row["ops_per_s"] > 0
        assert row["seeds"] == 2
        assert row["clients"] == 8
    assert rows["shiftlock"]["masked_atomics"]
    assert not rows["kvstore"]["masked_atomics"]
    (ratio,) = told["meta"]["ratios"]
    assert ratio["over_cas"] == rows["kvstore"]["ops_per_s"] / rows["cas"]["ops_per_s"]


def test_a_sweep_has_a_row_for_each_combination() -> None:
    told = document(
        *("--lock", "kvstore,declock", "--compute-nodes", "1,2", "--read-percent", "0,100"),
        *("--clients", "2", *SHORT),
    )
    assert len(told["rows"]) == 8
    assert len({row["point"] for row in told["rows"]}) == 4


def test_the_same_seeds_give_the_same_rows() -> None:
    one = document("--lock", "kvstore", "--clients", "2", *SHORT)["rows"]
    assert one == document("--lock", "kvstore", "--clients", "2", *SHORT)["rows"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--lock", "padlock"), "padlock is none of"),
        (("--clients", "0"), "every number is from 1"),
        (("--clients", "x"), "expected numbers"),
        (("--figure", "grid", "--clients", "2"), "a figure has its own points"),
        (("--compute-nodes", "64", "--lock", "declock"), "at most 32 compute nodes"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], text: str) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert text in result.output


def test_a_point_below_its_target_is_named() -> None:
    def row(name: str, rate: float, busy: float) -> dict[str, Any]:
        return {"point": "p", "lock": name, "ops_per_s": rate, "nic_busy": busy}

    (slow,) = compare([row("kvstore", 95, 0.95), row("declock", 100, 0.95), row("cas", 10, 1)])
    assert (slow["bound"], slow["target"], slow["met"]) == ("NIC", 0.97, False)
    (hot,) = compare([row("kvstore", 95, 0.3), row("declock", 100, 0.3)])
    assert (hot["best_rival"], hot["target"], hot["met"]) == ("declock", 0.90, True)
    assert interval95([1.0, 1.0, 1.0]) == 0
    assert interval95([1.0, 3.0]) == pytest.approx(12.71)


def test_the_longest_wait_beside_the_bound() -> None:
    """Where each client has its own place, nobody waits long beside its position."""
    told = document("--lock", "kvstore,kvstore-flat", "--seeds", "1", "--measure-ms", "5")
    longest = {wait["lock"]: wait for wait in told["meta"]["waits"]}
    flat = longest["kvstore-flat"]
    assert 0 < flat["wait_ratio"] <= WAIT_BOUND
    assert flat["met"]
    assert flat["wait_us"] == pytest.approx(
        flat["wait_ratio"] * flat["wait_position"] * flat["handover_us"], rel=1e-3
    )
    assert longest["kvstore"]["met"] == (longest["kvstore"]["wait_ratio"] <= WAIT_BOUND)
    (above,) = waits([{**flat, "p999_us": 1.0, "wait_ratio": WAIT_BOUND + 0.1}])
    assert not above["met"]


def test_the_figure_of_a_death_shows_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "failure.png"
    arguments = ("--figure", "failure", "--seeds", "1", "--warmup-ms", "1", "--measure-ms", "18")
    (row,) = document(*arguments, "--plot", str(picture))["rows"]
    timeline = row["timeline_ops_per_s"]
    assert len(timeline) == 18
    assert min(timeline[:8]) > 0
    assert timeline[10] == 0  # dead since 8 ms, given up 5 ms later
    assert timeline[17] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_figure_of_the_hottest_lock_is_a_row_of_quantiles_for_each_lock() -> None:
    arguments = ("--figure", "cdf", "--lock", "kvstore,declock", *SHORT)
    told = document(*arguments)
    assert told["meta"]["measure_ms"] == 0.5
    for row in told["rows"]:
        assert len(row["hot_acquire_us"]) == len(QUANTILES)
        assert row["hot_acquire_us"] == sorted(row["hot_acquire_us"])
    printed = run(*arguments).output
    assert "p99.9_us" in printed


@pytest.mark.parametrize(("fabric", "lease_s"), [("shm", 20), ("tcp", 0.6)])
def test_a_killed_holder_is_followed(fabric: str, lease_s: float) -> None:
    arguments = ("--fabric", fabric, "--workload", "recovery", "--rounds", "2")
    (row,) = document(*arguments, "--lease-s", str(lease_s))["rows"]
    assert row["checked"] == "2 times once, with a higher token"
    assert row["bound_ms"] == lease_s * 1000 + 100
    assert 0 < row["median_ms"] <= row["longest_ms"]
    if fabric == "shm":  # the death is seen, and no lease waited for
        assert row["longest_ms"] < row["lease_ms"] / 2
        assert row["met"]
    else:  # nobody can know of the death before its lease is over
        assert row["median_ms"] > 400
        assert row["longest_ms"] <= 10 * row["bound_ms"]  # a busy machine is no defect


def test_a_token_that_is_not_higher_is_found_out() -> None:
    check_tokens([0, 3, 4])
    with pytest.raises(ProcessError, match="token 4 was granted after 4"):
        check_tokens([3, 4, 4])


def test_pairs_over_shm() -> None:
    rows = document("--fabric", "shm", "--seconds", "0.2")["rows"]
    assert {row["lock"] for row in rows} >= {"kvstore", "kvstore-native"}
    for row in rows[:2]:
        assert row["verbs_per_op"] == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("fabric", ["shm", "tcp"])
@pytest.mark.parametrize("workload", ["counter", "bank"])
def test_what_is_under_locks_adds_up(fabric: str, workload: str) -> None:
    arguments = ("--fabric", fabric, "--workload", workload, "--processes", "3")
    (row,) = document(*arguments, "--seconds", "0.3")["rows"]
    assert row["checked"].endswith("as expected")
    assert row["jain"] > 0


def test_a_bank_without_locks_would_be_found_out() -> None:
    with kvstore.connect() as store:
        open_accounts(store, 10)
        bank = Bank(store, 10, 1)
        for position in range(200):
            bank.transact(position)
        assert total(store, 10) == 2 * INITIAL * 10 + bank.paid_in
        store.put(account(3), b"0 0")
        assert total(store, 10) != 2 * INITIAL * 10 + bank.paid_in
