"""Hand-off between processes: layer by layer, and from a prefill engine that is killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvstore
from tests.multiprocess.conftest import LEASE_S, target_on, wait_until
from tests.multiprocess.hand_off_worker import LAYERS
from tests.support.clients import ClientProcess, start_client
from tests.support.nodes import start_node


@pytest.fixture
def target(fabric: str) -> Iterator[str]:
    with start_node("64MiB", f"--membership-lease={LEASE_S}") as node:
        yield target_on(node, fabric)


def start(role: str, target: str) -> ClientProcess:
    return start_client("tests.multiprocess.hand_off_worker", role, target)


def test_each_layer_arrives_before_the_next_is_computed(target: str) -> None:
    with (
        kvstore.connect(target) as store,
        start("decode", target) as decode,
        start("prefill", target) as prefill,
    ):
        for layer in range(LAYERS):
            store.put(f"go {layer}", b"")
            decode.wait_line(f"arrived {layer}")
        assert decode.finish()[-1] == "received"
        assert prefill.finish()[-1] == f"published {LAYERS - 1}"


def somebody_waits(store: kvstore.Store) -> bool:
    rows, _ = store._client.survey_locks(0, 5.0)
    return any(row["state"] == "waits" for row in rows)


@pytest.mark.parametrize("published", [0, 2])
def test_a_killed_prefill_engine_is_not_waited_for(target: str, published: int) -> None:
    with kvstore.connect(target) as store, start("prefill", target) as prefill:
        prefill.wait_line("begins")
        with start("decode", target) as decode:
            for layer in range(published):
                store.put(f"go {layer}", b"")
            if published:
                decode.wait_line(f"arrived {published - 1}")
            # It is in the queue of the layer that is computed just now.
            wait_until("decode waits", lambda: somebody_waits(store))
            prefill.kill()
            # Long before its own deadline.
            assert decode.finish()[-1] == "computes: not published"
