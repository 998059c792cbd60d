"""Copies of values in the client, through the public interface."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import kvstore
from kvstore.client import native
from kvstore.client.native import lib
from kvstore.cluster.control import ControlClient
from tests.support.nodes import start_again, start_node

VALUE = b"v" * 1024


@pytest.fixture
def store() -> Iterator[kvstore.Store]:
    with kvstore.connect("embedded", capacity_bytes=64 << 20, cache_bytes=8 << 20) as opened:
        opened.put("first", VALUE)
        settle(opened, "first")
        yield opened


def settle(store: kvstore.Store, key: str) -> None:
    """Read a key until a copy serves it."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        before = store.stats().cache_hits
        store.get(key)
        if store.stats().cache_hits > before:
            return
    pytest.fail(f"no copy was made of {key}")


def explain(store: kvstore.Store, key: str) -> kvstore.CopyState:
    """What the store knows of a key, once it has a lease: on a busy machine one may have ended."""
    give_up = time.monotonic() + 10
    while (known := store.explain(key)).state == "no lease" and time.monotonic() < give_up:
        time.sleep(0.001)
    return known


def verbs(store: kvstore.Store) -> int:
    stats = store.stats()
    return stats.reads + stats.writes + stats.cas + stats.faa


def test_every_read_of_a_copy(store: kvstore.Store) -> None:
    version = store.put("first", VALUE)
    settle(store, "first")
    before = verbs(store)
    buffer = bytearray(2000)
    assert store.get("first") == VALUE
    assert store["first"] == VALUE
    assert store.get_versioned("first") == (VALUE, version)
    assert store.get_into("first", buffer) == len(VALUE)
    assert buffer[: len(VALUE)] == VALUE
    assert "first" in store
    assert store.get_many(["first"]) == [VALUE]
    with pytest.raises(kvstore.BufferTooSmall):
        store.get_into("first", bytearray(10))
    assert verbs(store) == before


def test_uncached_reads_ask_the_node(store: kvstore.Store) -> None:
    before = verbs(store)
    assert store.get("first", cached=False) == VALUE
    assert store.get_versioned("first", cached=False) is not None
    assert store.get_into("first", bytearray(2000), cached=False) == len(VALUE)
    assert store.contains("first", cached=False)
    assert verbs(store) >= before + 8


def test_what_was_written_is_read(store: kvstore.Store) -> None:
    for number in range(50):
        store.put("first", b"%d" % number)
        assert store.get("first") == b"%d" % number
        assert store.get("first") == b"%d" % number
    assert store.delete("first")
    assert store.get("first") is None
    assert "first" not in store


def test_structured_and_empty_and_large_values(store: kvstore.Store) -> None:
    store.put_object("object", {"a": [1, 2, 3]})
    store.put("empty", b"")
    large = bytes(range(256)) * 2000
    store.put("large", large)
    buffer = bytearray(len(large))
    for _ in range(5):
        assert store.get_object("object") == {"a": [1, 2, 3]}
        assert store.get("empty") == b""
        assert store.get("large") == large
        assert store.get_into("large", buffer) == len(large)
        assert buffer == large
    assert store.stats().cache_fills >= 4


def test_clear_ends_copies(store: kvstore.Store) -> None:
    assert store.clear() == 1
    assert store.get("first") is None


def test_without_cache_bytes_there_are_no_copies() -> None:
    with kvstore.connect("embedded", capacity_bytes=64 << 20) as store:
        store.put("key", VALUE)
        for _ in range(10):
            assert store.get("key") == VALUE
        assert store.stats().cache_fills == 0
        assert store.stats().cache_hits == 0


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(kvstore.ConfigurationError, match="cache_bytes"):
        kvstore.connect("embedded", cache_bytes=-1)


def test_why_a_key_is_read_from_a_copy(store: kvstore.Store) -> None:
    assert store.explain("first").state == "held"
    reads = 64 * 400
    for _ in range(reads):
        store.get("first")
    held = store.explain(b"first")
    assert held.uses >= 200
    assert held.fills == 1
    # By about 400 samples: a fifth is seven times their deviation.
    assert 0.8 * reads <= held.hits <= 1.2 * reads
    # Its writer keeps what has paid, unless its lease has ended just then.
    for _ in range(20):
        store.put("first", b"second")
        kept = explain(store, "first")
        if kept.state == "held":
            break
        settle(store, "first")
        for _ in range(reads):
            store.get("first")
    assert kept.state == "held"
    assert (kept.invalidated, kept.uses) == (0, 0)
    assert kept.overwritten >= 1
    assert store.get("first") == b"second"

    # Copies that are hardly read before they are written away do not pay.
    for _ in range(200):
        store.get("first")
        store.put("first", VALUE)
    waiting = explain(store, "first")
    assert waiting.state == "waits"
    assert f"{waiting.reads_to_wait} more reads" in waiting.reason
    # How many it takes is measured all the time.
    for _ in range(1000):
        if explain(store, "first").state != "waits":
            break
        store.get("first")
    assert explain(store, "first").state == "next"
    assert explain(store, "first").bypassed > waiting.bypassed


def test_what_is_never_copied_says_why(store: kvstore.Store) -> None:
    assert store.explain("never read").state == "waits"
    store.put("mortal", VALUE, ttl_s=60)
    store.put("large", bytes(4 << 20))
    for _ in range(3):
        store.get("mortal")
        store.get_into("large", bytearray(4 << 20))
    assert store.explain("mortal").state == "mortal"
    assert store.explain("large").state == "too large"
    with pytest.raises(kvstore.KeyInvalid):
        store.explain("")
    with pytest.raises(kvstore.KeyInvalid):
        store.explain(5)  # type: ignore[arg-type]
    with kvstore.connect("embedded", capacity_bytes=64 << 20) as plain:
        assert plain.explain("first").state == "off"


def test_what_was_in_the_way_is_forgotten(store: kvstore.Store) -> None:
    store.put("mortal", VALUE, ttl_s=60)
    store.put("large", bytes(4 << 20))
    for _ in range(3):
        store.get("mortal")
        store.get("large")
    assert store.explain("mortal").spoiled > 0
    for key in ("mortal", "large"):
        store.put(key, VALUE)
        store.get(key)
        assert store.explain(key).state not in ("mortal", "too large")


def test_keys_read_in_turn_share_the_hits(store: kvstore.Store) -> None:
    store.put("second", VALUE)
    settle(store, "second")
    for _ in range(20_000):
        store.get("first")
        store.get("second")
    for key in ("first", "second"):
        assert 10_000 < store.explain(key).hits < 30_000


@pytest.mark.parametrize("scheme", ["kv", "tcp"])
def test_hits_of_clients_that_leave_are_counted(scheme: str) -> None:
    with start_node("32MiB") as node, ControlClient(node.address) as control:
        hits = 0
        for _ in range(3):
            with kvstore.connect(f"{scheme}://{node.address}", cache_bytes=8 << 20) as store:
                store.put("key", VALUE)
                settle(store, "key")
                for _ in range(20_000):
                    store.get("key")
                hits += store.stats().cache_hits
        give_up = time.monotonic() + 10
        while control.stats()["clients_live"] > 1 and time.monotonic() < give_up:
            time.sleep(0.02)
        assert control.stats()["cache_hits"] == hits


@pytest.mark.parametrize("scheme", ["kv", "tcp"])
def test_a_refused_client_leaves_at_once(scheme: str) -> None:
    """Long before the lease: a client that never came has no heartbeat, and would be fenced."""
    with (
        start_node("32MiB", "--consistency", "regular", "--membership-lease", "60") as node,
        ControlClient(node.address) as control,
    ):
        before = control.stats()
        with pytest.raises(kvstore.ConsistencyMismatch):
            kvstore.connect(f"{scheme}://{node.address}", consistency="linearizable")
        after = control.stats()
        assert after["clients_live"] == before["clients_live"]
        assert after["clients_total"] == before["clients_total"] + 1


@pytest.mark.parametrize("scheme", ["kv", "tcp"])
def test_a_node_that_comes_back_with_another_consistency(scheme: str) -> None:
    with start_node("32MiB") as node:
        target = f"{scheme}://{node.address}"
        with kvstore.connect(target, consistency="linearizable") as store:
            store.put("key", VALUE)
            node.kill()
            with start_again(node, "32MiB", "--consistency", "regular") as again:
                give_up = time.monotonic() + 15
                refused: Exception | None = None
                while time.monotonic() < give_up:
                    with pytest.raises(kvstore.KvError) as raised:
                        store.get("key")
                    refused = raised.value
                    if isinstance(refused, kvstore.ConsistencyMismatch):
                        break
                    time.sleep(0.02)
                assert isinstance(refused, kvstore.ConsistencyMismatch)
                assert (refused.ours, refused.theirs) == ("linearizable", "regular")
                assert again.address in str(refused)
                for walk in (store.size, store.clear, lambda: next(store.keys())):
                    with pytest.raises(kvstore.ConsistencyMismatch, match=again.address):
                        walk()
                with ControlClient(again.address) as control:
                    # At most the attempt that may be under way.
                    assert control.stats()["clients_live"] <= 2


def test_consistency_is_an_assertion(store: kvstore.Store) -> None:
    with kvstore.connect("embedded", capacity_bytes=64 << 20, consistency="regular"):
        pass
    with pytest.raises(kvstore.ConfigurationError, match="eventual"):
        kvstore.connect("embedded", consistency="eventual")


@pytest.mark.parametrize("scheme", ["kv", "tcp", "shm"])
def test_a_node_of_another_consistency_is_refused(scheme: str) -> None:
    with start_node("32MiB", "--consistency", "regular") as node:
        target = f"shm://{node.shm}" if scheme == "shm" else f"{scheme}://{node.address}"
        with pytest.raises(kvstore.ConsistencyMismatch) as refused:
            kvstore.connect(target, consistency="linearizable")
        assert (refused.value.ours, refused.value.theirs) == ("linearizable", "regular")
        with kvstore.connect(target, consistency="regular") as store:
            store.put("key", b"value")
            assert store.get("key") == b"value"


_DIES = """
import os, sys, kvstore
store = kvstore.connect(sys.argv[1])
store.put("other", b"value")
print("there", flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("scheme", ["kv", "tcp"])
@pytest.mark.parametrize("consistency", ["linearizable", "regular"])
def test_copies_after_the_death_of_another_client(scheme: str, consistency: str) -> None:
    """On a regular node nobody knows which copies it has left behind, so all end."""
    options = ("32MiB", "--consistency", consistency, "--membership-lease", "3")
    with start_node(*options) as node, ControlClient(node.address) as control:
        target = f"{scheme}://{node.address}"
        with kvstore.connect(target, cache_bytes=8 << 20) as store:
            store.put("key", VALUE)
            settle(store, "key")
            command = [sys.executable, "-c", _DIES, target]
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as other:
                assert other.stdout is not None
                assert other.stdout.readline() == "there\n"
                assert store.stats().cache_entries == 1
                other.communicate(timeout=30)
            give_up = time.monotonic() + 20
            while control.stats()["clients_fenced"] == 0 and time.monotonic() < give_up:
                time.sleep(0.02)
            assert control.stats()["clients_fenced"] == 1
            if consistency == "linearizable":
                time.sleep(0.3)  # some heartbeats
                assert store.stats().cache_entries == 1
            while consistency == "regular" and store.stats().cache_entries > 0:
                assert time.monotonic() < give_up
                time.sleep(0.01)
            settle(store, "key")
            assert store.get("key") == VALUE


@pytest.mark.parametrize("owes", [False, True])
def test_who_owes_something_leaves_without_a_farewell(
    owes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the node takes it for dead, and tells others."""
    with (
        start_node("32MiB", "--consistency", "regular", "--membership-lease", "3") as node,
        ControlClient(node.address) as control,
    ):
        before = control.stats()["clients_live"]
        store = kvstore.connect(f"tcp://{node.address}")
        store.put("key", VALUE)

        class Owing:
            """The core, but for what a client owes when it is closed."""

            def __getattr__(self, name: str) -> object:
                return getattr(lib, name)

            def kv_client_close(self, handle: object) -> int:
                assert lib.kv_client_close(handle) == 0
                return int(owes)

        monkeypatch.setattr(native, "lib", Owing())
        store.close()
        give_up = time.monotonic() + 20
        while control.stats()["clients_live"] > before and time.monotonic() < give_up:
            time.sleep(0.02)
        assert control.stats()["clients_fenced"] == int(owes)
