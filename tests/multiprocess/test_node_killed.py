"""kill -9 of nodes amid calls: nothing succeeds in orphaned memory, and nobody waits for long."""

from __future__ import annotations

import itertools
import time

import pytest

import kvstore
from tests.multiprocess.conftest import (
    Call,
    StartWorker,
    calls_of,
    check_history,
    target_on,
    wait_call,
    wait_calls_after,
    wait_until,
)
from tests.multiprocess.content import value_of
from tests.support.nodes import NodeProcess, start_again, start_node, target_of

TIMEOUT_S = 1.0
#: What a call may take that needs not wait, on a machine that is busy with other things.
FAST_S = 0.5


def check_failing_is_fast(calls: list[Call]) -> None:
    """After the first call that failed, which may pay for finding out, all are told at once."""
    failed = [call for call in calls if not call.is_answered]
    assert failed
    assert failed[0].took < TIMEOUT_S + FAST_S
    slow = [call for call in failed[1:] if call.took > FAST_S]
    assert not slow


def check_dead(calls: list[Call], killed_at: float, dead_at: float) -> None:
    """Nothing that began after the death came off; what was under way may have."""
    after = [call for call in calls if call.began > dead_at]
    assert len(after) >= 20
    assert {call.outcome for call in after} == {"NodeUnreachable"}
    for call in calls:
        if call.ended < killed_at:
            assert call.is_answered, call
        if not call.is_answered:
            assert call.outcome in ("NodeUnreachable", "OutcomeUnknown"), call


def is_absent(store: kvstore.Store, key: str) -> bool:
    """Whether the store says so; false while it says that the node is down."""
    try:
        value = store.get(key)
    except kvstore.NodeUnreachable:
        return False
    assert value is None
    return True


def kill(node: NodeProcess) -> tuple[float, float]:
    """Kills a node; the time before, and the one from which on no call may come off."""
    before = time.monotonic()
    node.kill()
    return before, time.monotonic()


def test_killed_amid_gets_and_puts(fabric: str, start_worker: StartWorker) -> None:
    with start_node() as node:
        clients = [
            start_worker("watch", target_on(node, fabric), f"a{i},b{i},c{i}", TIMEOUT_S)
            for i in range(3)
        ]
        for client in clients:
            client.wait_lines(300)
        killed_at, dead_at = kill(node)
        for client in clients:
            wait_calls_after(client, dead_at)
            calls = calls_of(client.kill())
            check_dead(calls, killed_at, dead_at)
            check_failing_is_fast(calls)
            check_history(calls)


def test_killed_amid_large_transfers(fabric: str, start_worker: StartWorker) -> None:
    """Whatever had come of a value when its node died, it is whole or an error."""
    with start_node("128MiB") as node:
        target = target_on(node, fabric)
        with kvstore.connect(target) as store:
            store.put("large", value_of("large", 7, 24 << 20))
        client = start_worker("read_large", target, TIMEOUT_S)
        client.wait_lines(4)
        killed_at, dead_at = kill(node)
        wait_calls_after(client, dead_at)
        calls = calls_of(client.kill())
        check_dead(calls, killed_at, dead_at)
        check_failing_is_fast(calls)


@pytest.mark.parametrize("scheme", ["kv", "tcp"])
def test_killed_amid_batches_of_two_nodes(scheme: str, start_worker: StartWorker) -> None:
    """The keys of the other node go on to be served, in the same batches."""
    with start_node() as doomed, start_node() as other:
        target = target_of([doomed, other], scheme)
        names = [f"shared-{i}" for i in range(64)]
        with kvstore.connect(target) as store:
            store.put_many([(name, value_of(name, 1, 3000)) for name in names])
        client = start_worker("watch_batches", target, len(names), TIMEOUT_S)
        client.wait_lines(64 * 10)
        _, dead_at = kill(doomed)
        wait_calls_after(client, dead_at, 64 * 20)
        calls = calls_of(client.kill())
        after = [call for call in calls if call.began > dead_at]
        lost = {call.key for call in after if call.outcome == "NodeUnreachable"}
        kept = {call.key for call in after if call.outcome == "get"}
        assert 8 <= len(lost) <= 56
        assert lost | kept == set(names)
        assert not lost & kept
        for call in calls:
            assert call.outcome == "get" or (
                call.key in lost and call.outcome == "NodeUnreachable"
            ), call
        check_failing_is_fast(calls)


@pytest.mark.parametrize("scheme", ["kv", "tcp"])
def test_restarted_in_its_place(scheme: str, start_worker: StartWorker) -> None:
    """Clients attach anew by themselves and find it empty: no address, no version, no value that
    they knew of the node before means anything in the one after it."""
    with start_node() as first:
        target = target_of([first], scheme)
        clients = [
            start_worker("watch", target, ",".join(f"{name}{i}" for name in "abcdefgh"), TIMEOUT_S)
            for i in range(2)
        ]
        with kvstore.connect(target) as store:
            version = store.put("old", b"v")
            assert store.get("old") == b"v"
            for client in clients:
                client.wait_lines(300)
            _, dead_at = kill(first)
            for client in clients:
                wait_call(client, "a failure", lambda call: call.outcome == "NodeUnreachable")
            with start_again(first):
                for client in clients:
                    wait_call(
                        client, "a get", lambda call: call.outcome == "get" and call.began > dead_at
                    )
                    calls = calls_of(client.kill())
                    check_history(calls, lost_at=dead_at)
                    check_failing_is_fast(calls)
                    back = [call for call in calls if call.began > dead_at and call.is_answered]
                    assert {"put", "get"} <= {call.outcome for call in back}
                wait_until("this client has attached anew", lambda: is_absent(store, "old"))
                with pytest.raises(kvstore.ConditionFailed):
                    store.put("old", b"w", if_version=version)
                assert store.put("old", b"w") != version
                assert store.stats().node_restarts == 1


def test_restarted_again_and_again(start_worker: StartWorker) -> None:
    """No value of one life of a node is ever seen in another, while the other node serves on."""
    with start_node() as other:
        node = start_node()
        target = target_of([node, other])
        client = start_worker("watch", target, ",".join(f"k{i}" for i in range(16)), TIMEOUT_S)
        deaths = [-1.0]
        lost: set[str] = set()

        def lost_now(call: Call) -> bool:
            if call.began > deaths[-1] and not call.is_answered:
                lost.add(call.key)
            return call.key in lost

        for _ in range(2):
            client.wait_lines(len(client.lines()) + 200)
            deaths.append(kill(node)[1])
            wait_call(client, "a failure", lost_now)
            node = start_again(node)
            wait_call(
                client,
                "an answer of the new node",
                lambda call: lost_now(call) and call.is_answered and call.began > deaths[-1],
            )
        calls = calls_of(client.kill())
        node.kill()
        assert 0 < len(lost) < 16
        check_history([call for call in calls if call.key not in lost])
        for at, until in itertools.pairwise([*deaths, time.monotonic()]):
            life = [
                call
                for call in calls
                if call.key in lost and at < call.began and call.ended < until
            ]
            check_history(life)
        check_failing_is_fast(calls)
