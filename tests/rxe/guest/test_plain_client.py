"""What a client sees that knows the layout and nothing of our code; and what it is not let do."""

from __future__ import annotations

import contextlib

import pytest

import kvstore
from kvstore.cluster.control import ControlClient
from tests.rxe.guest.conftest import TIMEOUT_S, start_verbs_node, wait_until
from tests.rxe.guest.test_store import LEASE
from tests.support.nodes import NodeProcess

plain_client = pytest.importorskip("tests.rxe.guest.plain_client", exc_type=ImportError)
enums = plain_client.enums

VALUES = {b"key-%d" % n: bytes(n * 31 + i & 0xFF for i in range(n * 700)) for n in range(1, 12)}


def client_of(node: NodeProcess) -> object:
    return plain_client.PlainClient(node.address, "rxe0")


def test_it_finds_the_same_keys_and_bytes(node: NodeProcess, store: kvstore.Store) -> None:
    for key, value in VALUES.items():
        store.put(key, b"before")
        store.put(key, value)
    store.put(b"gone", b"value")
    store.delete(b"gone")
    plain = client_of(node)
    assert dict(plain.objects()) == VALUES
    block = plain.superblock()
    assert block["magic"] == plain.layout.numbers["magic"]
    assert block["layout_version"] == plain.layout.numbers["layout_version"]
    assert block["domain"] == 2
    assert block["incarnation"] == store.members()[0].incarnation
    assert block["region_bytes"] == plain.region_bytes


@pytest.mark.parametrize("what", ["behind the end", "before the start", "stale key", "misaligned"])
def test_what_is_not_granted_is_refused(node: NodeProcess, store: kvstore.Store, what: str) -> None:
    store.put(b"key-1", VALUES[b"key-1"])
    plain = client_of(node)
    read = enums.IBV_WR_RDMA_READ
    status = -1
    if what == "behind the end":
        status = plain.post(read, plain.base + plain.region_bytes - 8, 16, plain.key)
    elif what == "before the start":
        status = plain.post(read, plain.base - 8, 16, plain.key)
    elif what == "stale key":
        status = plain.post(read, plain.base, 8, plain.key ^ 1)
    else:
        atomic = enums.IBV_WR_ATOMIC_FETCH_AND_ADD
        # Soft-RoCE's provider refuses it at the post, other devices in the completion.
        with contextlib.suppress(plain_client.PyverbsError):
            status = plain.post(atomic, plain.base + 4, 8, plain.key, add=1)
    assert status != enums.IBV_WC_SUCCESS
    # The node goes on, and so do its other clients.
    assert store.get(b"key-1") == VALUES[b"key-1"]
    assert client_of(node).superblock()["domain"] == 2


@pytest.mark.parametrize("how", ["it detaches", "its lease ends", "the node is drained"])
def test_who_has_left_has_no_key_any_more(how: str) -> None:
    # It never renews its lease, which must not end before it has connected.
    lease = LEASE if how == "its lease ends" else "--membership-lease=3600"
    with start_verbs_node("8MiB", lease) as node:
        plain = plain_client.PlainClient(node.address, "rxe0")
        assert plain.superblock()["domain"] == 2
        with ControlClient(node.address) as control:
            if how == "it detaches":
                assert control.detach(*plain.admission, timeout_s=TIMEOUT_S)
            elif how == "the node is drained":
                assert control.drain(0, timeout_s=TIMEOUT_S) == 0
                wait_until(lambda: control.stats(timeout_s=TIMEOUT_S)["draining"] == 2)
            else:
                wait_until(lambda: control.stats(timeout_s=TIMEOUT_S)["clients_fenced"] == 1)
        # The queue pair is gone: with the right key nothing answers.
        status = plain.post(enums.IBV_WR_RDMA_READ, plain.base, 8, plain.key)
        assert status == enums.IBV_WC_RETRY_EXC_ERR
        with pytest.raises(kvstore.KvError):
            plain.connect_again(node.address)
