"""A store over real verbs: what it holds, what it says, and what becomes of who is killed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvstore
from kvstore.cluster.control import ControlClient
from kvstore.errors import DomainMismatch, NodeUnreachable, OutcomeUnknown
from tests.rxe.guest.conftest import TIMEOUT_S, start_verbs_node, wait_until
from tests.support.nodes import ROOT, NodeProcess

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
# Longer than a process takes from its admission to its first heartbeat here.
LEASE = "--membership-lease=15"
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.integers(0, 40_000)),
        st.tuples(st.just("delete"), KEYS, st.just(0)),
        st.tuples(st.just("get"), KEYS, st.just(0)),
    ),
    max_size=30,
)


def content(length: int) -> bytes:
    return bytes((length * 7 + index) % 251 for index in range(length))


def test_the_fabric_is_verbs(node: NodeProcess, store: kvstore.Store) -> None:
    assert [member.fabric for member in store.members()] == ["verbs"]
    assert node.ready["device"] == "rxe0"
    assert node.data_port == 0
    with ControlClient(node.address) as control:
        assert control.describe().domain == "verbs"
        assert {client.fabric for client in control.clients()} == {"verbs"}


@settings(
    max_examples=8,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_it_holds_what_a_dictionary_holds(
    store: kvstore.Store, prefix: bytes, steps: list[tuple[str, bytes, int]]
) -> None:
    expected: dict[bytes, bytes] = {}
    for key in (b"a", b"b", b"c", b"d"):
        store.delete(prefix + key)
    for step, name, length in steps:
        key = prefix + name
        if step == "put":
            expected[key] = content(length)
            store.put(key, expected[key])
        elif step == "delete":
            assert store.delete(key) == (expected.pop(key, None) is not None)
        else:
            assert store.get(key) == expected.get(key)


def test_a_batch_and_a_large_value(store: kvstore.Store, prefix: bytes) -> None:
    keys = [prefix + b"%d" % index for index in range(50)]
    store.put_many([(key, key * 20) for key in keys])
    assert store.get_many(keys) == [key * 20 for key in keys]
    large = content(1 << 20)
    store.put(prefix + b"large", large)
    into = bytearray(len(large))
    assert store.get_into(prefix + b"large", into) == len(large)
    assert into == large
    registered = bytearray(len(large) + 8)
    with store.register(registered):
        assert store.get_into(prefix + b"large", memoryview(registered)[8:]) == len(large)
        assert registered[8:] == large
        store.put_from(prefix + b"copy", memoryview(registered)[8:])
    assert store.get(prefix + b"copy") == large


def test_verbs_are_counted_as_over_any_fabric(store: kvstore.Store, prefix: bytes) -> None:
    store.put(prefix + b"key", b"value")
    store.get(prefix + b"key")
    before = store.stats()
    for _ in range(10):
        store.get(prefix + b"key")
    after = store.stats()
    # The address is remembered: READ of the slot and READ of the object, in one round trip.
    assert after.reads - before.reads == 20
    assert after.round_trips - before.round_trips == 10


def test_tcp_is_refused_with_the_reason(node: NodeProcess) -> None:
    with pytest.raises(DomainMismatch, match="atomic domain"):
        kvstore.connect(f"tcp://{node.address}")


WRITER = """
import sys, kvstore
store = kvstore.connect(sys.argv[1], timeout_s=60)
print("ready", flush=True)
n = 0
while True:
    store.put(b"killed-%d" % (n % 20), b"%d" % n * 100)
    n += 1
"""


@contextlib.contextmanager
def writer(target: str) -> Iterator[subprocess.Popen[str]]:
    """A process that puts without end."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, target], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_killed_client_is_fenced_and_leaves_nothing_broken() -> None:
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(start_verbs_node("16MiB", LEASE))
        store = stack.enter_context(kvstore.connect(node.target, timeout_s=TIMEOUT_S))
        with writer(node.target) as process:
            wait_until(lambda: store.get(b"killed-5") is not None)
            process.kill()
        with ControlClient(node.address) as control:
            wait_until(lambda: len(control.clients(timeout_s=TIMEOUT_S)) == 1)
            assert control.stats(timeout_s=TIMEOUT_S)["clients_fenced"] == 1
        for index in range(20):
            value = store.get(b"killed-%d" % index)
            number = value[: len(value) // 100] if value else b""
            assert value is None or (value == number * 100 and int(number) % 20 == index)
            store.put(b"killed-%d" % index, b"new")
            assert store.get(b"killed-%d" % index) == b"new"


def test_a_killed_node_is_unreachable_and_its_successor_is_found() -> None:
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(start_verbs_node())
        store = stack.enter_context(kvstore.connect(node.target, timeout_s=TIMEOUT_S))
        store.put(b"key", b"value")
        node.kill()
        with pytest.raises((NodeUnreachable, OutcomeUnknown)):
            store.put(b"key", b"changed")
        with pytest.raises(NodeUnreachable):
            store.get(b"key")
        stack.enter_context(start_verbs_node(listen=node.address))
        wait_until(lambda: store.members()[0].state == "up")
        assert store.get(b"key") is None
        store.put(b"key", b"again")
        assert store.get(b"key") == b"again"
        assert store.members()[0].restarts == 1
