"""`kvstore locks` against a real node and other processes that use locks."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import kvstore
from tests.cli.conftest import Cli
from tests.support.nodes import NodeProcess
from tests.support.processes import wait_stopped


def test_no_lock_is_in_use(cli: Cli, node: NodeProcess) -> None:
    ended = cli("locks")
    assert (ended.code, ended.text) == (0, "no lock is in use\n")
    with kvstore.connect(node.target) as store:
        with store.lock("a"):
            pass
        assert cli("locks", "--json").rows == []


def test_holders_and_waiters_are_shown(cli: Cli, node: NodeProcess) -> None:
    with kvstore.connect(node.target) as holder, kvstore.connect(node.target) as waiter:
        with holder.lock("a"):
            thread = threading.Thread(target=lambda: waiter.lock("a", timeout_s=30).acquire())
            thread.start()
            rows = []
            while not any(row["state"] == "waits" for row in rows):
                rows = cli("locks", "--json").rows
            lock, *clients = rows
            assert (lock["state"], lock["requests"], lock["writers"]) == ("in use", 2, 2)
            assert {row["lock"] for row in rows} == {lock["lock"]}
            states = {row["state"]: row for row in clients}
            assert set(states) == {"holds", "waits"}
            assert states["holds"]["client"] == holder.members()[0].registration
            assert states["waits"]["client"] == waiter.members()[0].registration
            assert states["holds"]["index"] + 1 == states["waits"]["index"]
            for row in states.values():
                assert row["mode"] == "exclusive"
                assert row["threads"] == 1
                assert row["age_s"] >= 0
            text = cli("locks").text
            assert "in use, 2 in its queue" in text
            assert "holds" in text
        thread.join(30)


def test_readers_are_shown_as_such(cli: Cli, node: NodeProcess) -> None:
    with kvstore.connect(node.target) as store, store.lock("a", shared=True):
        lock, held = cli("locks", "--json").rows
        assert (lock["requests"], lock["writers"]) == (1, 0)
        assert (held["state"], held["mode"]) == ("holds", "shared")


HOLDER = """
import sys, kvstore
store = kvstore.connect(sys.argv[1])
held = store.lock("a")
held.acquire()
print(store.members()[0].registration, flush=True)
sys.stdin.read()
"""


def test_a_client_that_does_not_answer_is_shown(cli: Cli, node: NodeProcess) -> None:
    command = [sys.executable, "-c", HOLDER, node.target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            registration = int(child.stdout.readline())
            child.send_signal(signal.SIGSTOP)
            wait_stopped(child.pid)
            lock, silent = cli("locks", "--json").rows
            assert (lock["state"], lock["requests"]) == ("in use", 1)
            assert (silent["state"], silent["client"]) == ("unreachable", registration)
            assert silent["lock"] is None
            assert silent["process_id"] == child.pid
            assert "unreachable" in cli("locks").text
        finally:
            child.kill()
