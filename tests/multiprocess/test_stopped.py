"""SIGSTOP: whoever stops is not dead. Others go on, and it goes on itself, or is told why not."""

from __future__ import annotations

import itertools
import signal
import time

import kvstore
from kvstore.cluster.control import ControlClient
from kvstore.node.description import ClientRecord
from tests.multiprocess.conftest import (
    LEASE_S,
    StartWorker,
    calls_of,
    check_history,
    stats_of,
    target_on,
    wait_call,
    wait_swept,
    wait_until,
)
from tests.multiprocess.content import check_value, value_of
from tests.support.clients import ClientProcess
from tests.support.nodes import NodeProcess, start_node, target_of

LEASE = f"--membership-lease={LEASE_S}"
TIMEOUT_S = 1.0
#: What a put says for which no memory came free in time.
REFUSED = ("OutOfMemory", "DeadlineExceeded")
KEYS = ",".join(f"k{i}" for i in range(8))


def record_of(node: NodeProcess, fabric: str, pid: int) -> ClientRecord | None:
    """What the node knows of a client."""
    with ControlClient(node.address) as control:
        for record in control.clients():
            if record.process_id == pid or f"/{pid}" in record.peer:
                assert record.fabric == fabric
                return record
    return None


def go_on(client: ClientProcess, lines: int = 300) -> None:
    client.wait_lines(len(client.lines()) + lines)


def test_a_stopped_shm_client_keeps_its_place(start_worker: StartWorker) -> None:
    """It maps the region and may write at any time: so it is named, not fenced and not swept."""
    with start_node("64MiB", LEASE) as node:
        target = target_on(node, "shm")
        # Slowly: what is overwritten meanwhile is not free again.
        other = start_worker("watch", target, "a,b,c", TIMEOUT_S, 0.002)
        stopped = start_worker("watch", target, KEYS, TIMEOUT_S)
        for client in (other, stopped):
            go_on(client)
        stopped.pause()

        def stalled() -> bool:
            record = record_of(node, "shm", stopped.pid)
            assert record is not None
            assert record.state in ("live", "stalled")
            return record.state == "stalled" and record.silent_ms > 1300 * LEASE_S

        wait_until("named as stalled", stalled)
        stats = stats_of(node)
        assert stats["clients_stalled"] == 1
        assert stats["clients_fenced"] == 0
        go_on(other)
        stopped.resume()
        go_on(stopped)
        for client in (other, stopped):
            calls = calls_of(client.kill())
            assert all(call.is_answered for call in calls)
            check_history(calls)
        began = [call.began for call in calls_of(stopped.lines())]
        assert max(b - a for a, b in itertools.pairwise(began)) > LEASE_S
        assert max(call.took for call in calls_of(other.lines())) < 1.0


def test_what_a_stopped_shm_client_holds_back_is_missing_until_it_goes_on(
    start_worker: StartWorker,
) -> None:
    """Overwritten values cannot be freed while it may read them: a full node refuses puts."""
    with start_node("16MiB", LEASE) as node:
        target = target_on(node, "shm")
        stopped = start_worker("watch", target, KEYS, TIMEOUT_S)
        go_on(stopped)
        stopped.pause()
        other = start_worker("watch", target, "a,b,c", 0.3)
        wait_call(other, "a refused put", lambda call: call.outcome in REFUSED)
        refused_at = time.monotonic()
        wait_call(other, "a get", lambda call: call.outcome == "get" and call.began > refused_at)
        resumed_at = time.monotonic()
        stopped.resume()
        wait_call(other, "a put", lambda call: call.outcome == "put" and call.began > resumed_at)
        go_on(stopped)
        calls = calls_of(other.kill())
        assert {call.outcome for call in calls} <= {"put", "get", "miss", *REFUSED}
        assert max(call.took for call in calls) < 0.3 + 0.5
        check_history([call for call in calls if call.outcome != "miss"])


def test_a_stopped_shm_client_is_killed_where_the_node_may(start_worker: StartWorker) -> None:
    with start_node("16MiB", LEASE, "--fence-after=1.5", "--eviction=none") as node:
        target = target_on(node, "shm")
        other = start_worker("put", target, "other", 0, 3000)
        stopped = start_worker("put", target, "stopped", 0, 3000)
        for client in (other, stopped):
            client.wait_lines(300)
        stopped.pause()
        assert stopped.process.wait(15) == -signal.SIGKILL
        wait_swept(node, clients_left=1)
        assert stats_of(node)["clients_fenced"] == 1
        # What was held back is free again: this writes far more than the node can hold.
        go_on(other, 10000)
        other.kill()


def test_a_stopped_tcp_client_is_cut_off_and_told(start_worker: StartWorker) -> None:
    with start_node("64MiB", LEASE) as node:
        target = target_on(node, "tcp")
        other = start_worker("watch", target, "a,b,c", TIMEOUT_S)
        stopped = start_worker("watch", target, KEYS, TIMEOUT_S)
        for client in (other, stopped):
            go_on(client)
        stopped.pause()
        wait_swept(node, clients_left=1)
        assert stats_of(node)["clients_fenced"] == 1
        go_on(other)
        with kvstore.connect(target) as store:
            mine = {key: store.get(key) for key in KEYS.split(",")}
            resumed_at = time.monotonic()
            stopped.resume()
            wait_call(
                stopped,
                "a call that came off",
                lambda call: call.is_answered and call.began > resumed_at,
            )
            go_on(stopped)
            calls = calls_of(stopped.kill())
            errors = {call.outcome for call in calls if not call.is_answered}
            assert errors <= {"Fenced", "NodeUnreachable", "OutcomeUnknown", "DeadlineExceeded"}
            assert errors, "it was told nothing"
            check_history(calls)
            for key, value in mine.items():
                assert value is not None
                check_value(key, value)
        assert all(call.is_answered for call in calls_of(other.kill()))


def test_a_short_stop_of_a_client_goes_unnoticed(fabric: str, start_worker: StartWorker) -> None:
    with start_node("64MiB") as node:
        client = start_worker("watch", target_on(node, fabric), KEYS, 5.0)
        go_on(client, 100)
        client.pause()

        def silent() -> bool:
            record = record_of(node, fabric, client.pid)
            return record is not None and record.silent_ms > 300

        wait_until("it is silent", silent)
        client.resume()
        go_on(client, 100)
        calls = calls_of(client.kill())
        assert all(call.is_answered for call in calls)
        check_history(calls)


def test_a_stopped_node_costs_one_time_out(start_worker: StartWorker) -> None:
    """Over tcp: the first call waits, the others are told at once until it answers again."""
    with start_node() as stopped, start_node() as other:
        target = target_of([stopped, other], "tcp")
        clients = [
            start_worker("watch", target, ",".join(f"{name}{i}" for i in range(16)), TIMEOUT_S)
            for name in "ab"
        ]
        for client in clients:
            go_on(client)
        paused_at = time.monotonic()
        stopped.pause()
        for client in clients:
            wait_call(
                client,
                "a time-out",
                lambda call: call.began > paused_at and call.outcome == "NodeUnreachable",
            )
            go_on(client)
        resumed_at = time.monotonic()
        stopped.resume()
        for client in clients:
            lost = {call.key for call in calls_of(client.lines()) if not call.is_answered}
            assert 0 < len(lost) < 16
            wait_call(
                client,
                "an answer of the node",
                lambda call, lost=lost: (
                    call.key in lost and call.began > resumed_at and call.is_answered
                ),
            )
            go_on(client)
            calls = calls_of(client.kill())
            # No value is lost, for the node was not.
            check_history(calls)
            failed = [call for call in calls if not call.is_answered]
            assert TIMEOUT_S / 2 < failed[0].took < TIMEOUT_S + 0.5
            slow = [call for call in failed[1:] if call.took > TIMEOUT_S / 2]
            assert not slow
            assert {call.outcome for call in failed[1:]} == {"NodeUnreachable"}
            kept = [call for call in calls if call.key not in lost]
            assert all(call.is_answered for call in kept)
            assert sum(paused_at < call.began < resumed_at for call in kept) > 50


def test_a_batch_keeps_its_deadline_where_a_node_is_stopped() -> None:
    names = [f"shared-{i}" for i in range(64)]
    with (
        start_node() as stopped,
        start_node() as other,
        kvstore.connect(target_of([stopped, other], "tcp")) as store,
    ):
        store.put_many([(name, value_of(name, 1, 3000)) for name in names])
        stopped.pause()
        for limit_s in (TIMEOUT_S + 0.5, 0.5):
            began = time.monotonic()
            outcomes = store.get_many(names, timeout_s=TIMEOUT_S)
            assert time.monotonic() - began < limit_s
            errors = [outcome for outcome in outcomes if not isinstance(outcome, bytes)]
            assert 8 <= len(errors) <= 56
            for error in errors:
                assert isinstance(error, kvstore.NodeUnreachable | kvstore.DeadlineExceeded)
        assert all(isinstance(error, kvstore.NodeUnreachable) for error in errors)
        stopped.resume()
        wait_until(
            "the node is back",
            lambda: all(isinstance(found, bytes) for found in store.get_many(names)),
        )
        for name, value in zip(names, store.get_many(names), strict=True):
            assert isinstance(value, bytes)
            check_value(name, value)
