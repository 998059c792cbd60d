"""Locks over real verbs: who waits is told by message, and a dead holder's lock goes on."""

from __future__ import annotations

import subprocess
import sys
import threading

import kvstore
from tests.rxe.guest.conftest import TIMEOUT_S, start_verbs_node
from tests.support.nodes import ROOT, NodeProcess

# Longer than a process takes from its admission to its first heartbeat here.
LEASE = "--membership-lease=15"
ROUNDS = 20

HOLDER = """
import sys, time, kvstore
with kvstore.connect(sys.argv[1], timeout_s=60) as store:
    with store.lock(b"left", timeout_s=60) as held:
        print(held.token, flush=True)
        time.sleep(600)
"""


def test_clients_take_turns(node: NodeProcess, store: kvstore.Store, prefix: bytes) -> None:
    key = prefix + b"count"
    store.put(key, b"0")

    def count(client: kvstore.Store) -> None:
        for _ in range(ROUNDS):
            with client.lock(prefix + b"lock", timeout_s=TIMEOUT_S):
                value = client.get(key)
                assert value is not None
                client.put(key, b"%d" % (int(value) + 1))

    with kvstore.connect(node.target, timeout_s=TIMEOUT_S) as other:
        threads = [threading.Thread(target=count, args=(client,)) for client in (store, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert store.get(key) == b"%d" % (2 * ROUNDS)


def test_a_free_pair_costs_two_verbs(store: kvstore.Store, prefix: bytes) -> None:
    lock = store.lock(prefix + b"free", timeout_s=TIMEOUT_S)
    with lock:
        pass  # the table of locks is there
    before = store.stats()
    for _ in range(ROUNDS):
        with lock:
            pass
    after = store.stats()
    assert after.faa - before.faa == 2 * ROUNDS
    # Of others a pair has none; the client itself may have a few, for its upkeep.
    others = [stats.reads + stats.writes + stats.cas for stats in (before, after)]
    assert others[1] - others[0] < ROUNDS / 2


def test_a_killed_holder_is_followed() -> None:
    with (
        start_verbs_node("16MiB", LEASE) as node,
        kvstore.connect(node.target, timeout_s=TIMEOUT_S) as store,
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, node.target],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as process,
    ):
        assert process.stdout is not None
        token = int(process.stdout.readline())
        process.kill()
        with store.lock(b"left", timeout_s=TIMEOUT_S) as held:
            assert held.token > token
