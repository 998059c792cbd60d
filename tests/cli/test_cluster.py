"""stat, nodes and top against real nodes, some of them dead."""

from __future__ import annotations

import threading
import time

import kvstore
from tests.cli.conftest import Cli, run_cli
from tests.support.nodes import NodeProcess, start_node, start_nodes, target_of


def test_nodes_shows_each_member(cli: Cli, node: NodeProcess) -> None:
    # The node learns of it a moment later that a client has left.
    give_up = time.monotonic() + 30
    (row,) = cli("nodes", "--json").rows
    while row["clients"] > 0 and time.monotonic() < give_up:
        (row,) = cli("nodes", "--json").rows
    assert row["address"] == node.address
    assert row["state"] == "up"
    assert row["fabric"] == "shm"
    assert row["clients"] == 0
    assert 0 < row["free_bytes"] < row["capacity_bytes"] <= 64 << 20
    text = cli("nodes").text
    assert node.address in text
    assert row["incarnation"] in text


def test_fabric_follows_the_target(node: NodeProcess) -> None:
    (row,) = run_cli("--target", f"tcp://{node.address}", "nodes", "--json").rows
    assert row["fabric"] == "tcp"


def test_asking_fixes_no_membership() -> None:
    with start_nodes(1)[0] as node:
        for command in ("nodes", "stat", "doctor"):
            run_cli("--target", f"kv://{node.address},127.0.0.1:1", command, "--json")
        run_cli("--target", node.target, "top", "--once", "--interval=0.1")
        assert run_cli("--target", node.target, "put", "k", "v").code == 0


def test_a_dead_node_is_shown_beside_a_live_one() -> None:
    one, other = start_nodes(2, "16MiB")
    with one, other:
        target = target_of([one, other])
        other.kill()
        ended = run_cli("--target", target, "nodes", "--json")
        assert ended.code == 3
        states = {row["address"]: row["state"] for row in ended.rows}
        assert states == {one.address: "up", other.address: "down"}
        assert run_cli("--target", target, "nodes").text.count("down") == 1
        totals = run_cli("--target", target, "stat", "--json")
        assert totals.code == 3
        assert (totals.rows[0]["nodes"], totals.rows[0]["nodes_up"]) == (2, 1)
        top = run_cli("--target", target, "top", "--once", "--interval=0.1", "--json")
        assert top.code == 3
        assert sorted(row["state"] for row in top.rows) == ["down", "up"]


def test_stat_totals_count_keys(cli: Cli) -> None:
    before = cli("stat", "--json").rows[0]
    for number in range(3):
        cli("put", f"k{number}", "v")
    after = cli("stat", "--json").rows[0]
    assert (before["keys"], after["keys"]) == (0, 3)
    assert after["capacity_bytes"] > after["free_bytes"] > 0
    assert "keys" in cli("stat").text


def test_top_shows_tcp_traffic(cli: Cli, node: NodeProcess) -> None:
    (row,) = cli("top", "--once", "--interval=0.2", "--json").rows
    assert row["tcp_verbs_per_s"] == 0
    assert 0 < row["used_bytes"] < row["capacity_bytes"]
    assert "verbs/s" in cli("top", "--once", "--interval=0.2").text
    assert node.address in cli("top", "--once", "--interval=0.2").text


def test_top_shows_copies_of_clients_on_any_fabric(cli: Cli, node: NodeProcess) -> None:
    with kvstore.connect(node.target, cache_bytes=1 << 20) as store:
        store.put("key", b"value")
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                store.get("key")

        reader = threading.Thread(target=read)
        reader.start()
        try:
            give_up = time.monotonic() + 30
            row = {"cache_hits_per_s": 0.0}
            while row["cache_hits_per_s"] == 0 and time.monotonic() < give_up:
                (row,) = cli("top", "--once", "--interval=0.3", "--json").rows
        finally:
            stop.set()
            reader.join()
    assert row["cache_hits_per_s"] > 0
    assert row["cache_invalidated_per_s"] == 0
    assert "hits/s" in cli("top", "--once", "--interval=0.2").text


def test_shm_target_has_no_control_plane(node: NodeProcess) -> None:
    ended = run_cli("--target", f"shm://{node.shm}", "nodes")
    assert ended.code == 2
    assert "kv://" in ended.err


def test_drain_says_when_the_node_is_out_of_service() -> None:
    with start_node("16MiB") as started:
        target = ("--target", f"kv://{started.address}")
        waits = run_cli(*target, "drain", started.address, "--no-wait")
        assert (waits.code, waits.err) == (0, "")
        assert "drains: its clients are cut off in 5 s" in waits.text
        (row,) = run_cli(*target, "drain", started.address, "--grace", "0", "--json").rows
        assert row == {"node": started.address, "state": "drained", "grace_s": 0.0}
        (row,) = run_cli(*target, "nodes", "--json").rows
        assert row["state"] == "drained"
        doctor = run_cli(*target, "doctor").text
        assert "its clients have been cut off" in doctor
        endless = run_cli(*target, "drain", started.address, "--grace", "nan")
        assert endless.code == 2
        assert "no number of seconds" in endless.err
        absent = run_cli(*target, "drain", "127.0.0.1:1")
        assert absent.code == 3
