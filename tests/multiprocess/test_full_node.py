"""Full nodes with several writers: they evict what is old, or refuse puts and say so."""

from __future__ import annotations

import kvstore
from tests.multiprocess.conftest import (
    LEASE_S,
    StartWorker,
    stats_of,
    target_on,
    wait_swept,
    wait_until,
)
from tests.multiprocess.content import check_value
from tests.support.nodes import start_node

LEASE = f"--membership-lease={LEASE_S}"


def figures(line: str) -> dict[str, int]:
    words = line.split()
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def test_writers_of_a_full_node_evict(fabric: str, start_worker: StartWorker) -> None:
    """Three writers put several times what it holds; no put is refused, recent keys are there."""
    count, value_bytes = 1500, 3000
    with start_node("8MiB", LEASE) as node:
        target = target_on(node, fabric)
        writers = [start_worker("churn", target, f"w{i}", count, value_bytes) for i in range(3)]
        doomed = start_worker("churn", target, "doomed", 1000000, value_bytes)
        doomed.wait_lines(10)
        doomed.kill()
        found = [figures(writer.finish(30.0)[-1]) for writer in writers]
        assert sum(figure["evictions"] for figure in found) > 0
        assert all(figure["hits"] > 0.9 * count for figure in found)
        wait_swept(node)
        with kvstore.connect(target) as store:
            keys = [f"w{i}-{j}" for i in range(3) for j in range(count)]
            kept = 0
            for at in range(0, len(keys), 500):
                some = keys[at : at + 500]
                for key, value in zip(some, store.get_many(some), strict=True):
                    if value is not None:
                        assert isinstance(value, bytes), value
                        assert check_value(key, value) == int(key.split("-")[1])
                        kept += 1
            assert 500 < kept < 2600
        assert stats_of(node)["keys"] >= kept


def test_out_of_memory_where_nothing_is_evicted(fabric: str, start_worker: StartWorker) -> None:
    with start_node("8MiB", LEASE, "--eviction=none") as node:
        target = target_on(node, fabric)
        writers = [start_worker("fill", target, f"w{i}", 3000) for i in range(3)]
        put = [int(writer.finish()[-1].split()[1]) for writer in writers]
        keys = [f"w{i}-{j}" for i in range(3) for j in range(put[i])]
        assert len(keys) > 1500
        with kvstore.connect(target) as store:
            for at in range(0, len(keys), 500):
                some = keys[at : at + 500]
                for key, value in zip(some, store.get_many(some), strict=True):
                    assert isinstance(value, bytes), f"{key}: {value}"
                    check_value(key, value)
            outcomes = store.put_many([(f"more-{i}", bytes(100_000)) for i in range(10)])
            refused = [outcome for outcome in outcomes if not isinstance(outcome, int)]
            assert refused
            assert all(isinstance(outcome, kvstore.OutOfMemory) for outcome in refused)
            deleted = store.delete_many(keys[:1000])
            assert deleted == [True] * 1000
            # Deleted memory is free once every client has passed the epoch.
            wait_until("room after deletes", lambda: takes(store, 500))
            assert store.size() >= len(keys) - 1000 + 500


def takes(store: kvstore.Store, count: int) -> bool:
    outcomes = store.put_many([(f"again-{i}", bytes(3000)) for i in range(count)])
    return all(isinstance(outcome, int) for outcome in outcomes)
