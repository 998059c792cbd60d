"""Several processes at the same keys, some of which are killed: each key stays one history."""

from __future__ import annotations

import random
import time

import kvstore
from tests.multiprocess.conftest import LEASE_S, StartWorker, target_on, wait_swept
from tests.multiprocess.content import check_value, value_of
from tests.support.nodes import start_node

LEASE = f"--membership-lease={LEASE_S}"


def test_counting_loses_no_increment(fabric: str, start_worker: StartWorker) -> None:
    """Compare-and-put: of the killed, only the increment under way may or may not have happened."""
    with start_node("64MiB", LEASE) as node:
        target = target_on(node, fabric)
        with kvstore.connect(target) as store:
            store.put("counter", b"0")
            others = [start_worker("increment", target, 1.0) for _ in range(2)]
            doomed = [start_worker("increment", target, 0) for _ in range(3)]
            won: list[int] = []
            for client in doomed:
                client.wait_lines(30)
                won.extend(increments(client.kill()))
            for client in others:
                won.extend(increments(client.finish()))
            final = store.get("counter")
            assert final is not None
            assert len(set(won)) == len(won), "two clients won the same increment"
            assert max(won) <= int(final)
            assert len(won) <= int(final) <= len(won) + len(doomed)


def increments(lines: list[str]) -> list[int]:
    return [int(line[1:]) for line in lines if line.startswith("+")]


def test_a_key_is_created_once(fabric: str, start_worker: StartWorker) -> None:
    with start_node("64MiB", LEASE) as node:
        target = target_on(node, fabric)
        doomed = start_worker("claim", target, 1500, 9)
        clients = [start_worker("claim", target, 1500, seed) for seed in range(3)]
        doomed.wait_lines(500)
        lines = {doomed.pid: doomed.kill()}
        for client in clients:
            lines[client.pid] = client.finish(30.0)
        owners: dict[int, int] = {}
        for pid, said in lines.items():
            for line in said:
                if line.startswith("won"):
                    index = int(line.split()[1])
                    assert index not in owners, "a key was created twice"
                    owners[index] = pid
        with kvstore.connect(target) as store:
            unsaid = 0
            for index in range(1500):
                value = store.get(f"claim-{index}")
                assert value is not None
                assert int(value) == owners.get(index, doomed.pid)
                unsaid += index not in owners
            assert unsaid <= 1


def test_readers_see_whole_values_while_writers_die(fabric: str, start_worker: StartWorker) -> None:
    """Values of all sizes at the same few keys, so that memory is reused all the time."""
    order = random.Random(1)
    with start_node("32MiB", LEASE) as node:
        target = target_on(node, fabric)
        # Readers find something from the first moment on.
        with kvstore.connect(target) as store:
            for key in (f"shared-{i}" for i in range(16)):
                store.put(key, value_of(key, 0, 1000))
        readers = [start_worker("verify", target, 16, 1.2, seed) for seed in range(2)]
        writer = start_worker("overwrite", target, 16, 1.2, 7)
        for round_number in range(3):
            doomed = start_worker("overwrite", target, 16, 60.0, 100 + round_number)
            doomed.wait_line("ready")
            time.sleep(order.uniform(0.05, 0.2))
            doomed.kill()
        for client in (*readers, writer):
            assert int(client.finish()[-1].split()[1]) > 100
        with kvstore.connect(target) as store:
            for i in range(16):
                value = store.get(f"shared-{i}")
                assert value is None or check_value(f"shared-{i}", value) >= 0
        wait_swept(node)
