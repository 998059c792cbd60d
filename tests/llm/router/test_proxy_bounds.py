"""What the endpoint keeps apart, does not repeat, bounds, and ends."""

from __future__ import annotations

import gzip
import json
import signal
import socket

import pytest

from tests.llm.router.conftest import DEADLINE_S, Process, Servers, Starter
from tests.llm.router.test_proxy import PATH, holder_of, posting, prompt, release


def test_cookies_of_one_caller_are_not_sent_for_another(starter: Starter, servers: Servers) -> None:
    # A cookie jar would take none from a server that is named by its address.
    named = f"http://localhost:{servers[0].port}"
    router = starter.router(options=("--instance", named))
    answer = router.begin(PATH, prompt("alice", cookie="session=alice"))
    assert answer.getheader("Set-Cookie") == "session=alice"
    assert router.begin(PATH, prompt("bob")).getheader("X-Cookie") == ""


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/responses", {}),
        (PATH, {"store": True}),
        (PATH, {"background": True}),
        (PATH, {"filler": "x" * (1 << 20)}),
    ],
)
def test_what_an_instance_may_have_kept_is_not_sent_to_another(
    starter: Starter, path: str, more: dict[str, object]
) -> None:
    servers = starter.servers()
    router = starter.router(*servers)
    with posting(router, path, {"input": "x" * 5000, "key": "k", "hold": "first", **more}) as got:
        holder, other = holder_of(servers, "k")
        holder.kill()
    assert [status for status, _ in got] == [502]
    assert "started" not in other.seen()


def test_bodies_take_bounded_memory_together(starter: Starter, servers: Servers) -> None:
    router = starter.router(*servers, options=("--bodies-max", "1"))
    filler = "x" * (700 << 10)
    with posting(router, PATH, prompt("large", hold="first", filler=filler)) as answers:
        holder_of(servers, "large")
        refused = router.begin(PATH, prompt("another", filler=filler))
        assert (refused.status, refused.getheader("Retry-After")) == (503, "1")
        assert router.post(PATH, prompt("small"))[0] == 200
        release(servers, "large")
    assert [status for status, _ in answers] == [200]
    # What it took is given back.
    assert router.post(PATH, prompt("again", filler=filler))[0] == 200


def test_bodies_are_not_decoded(router: Process, servers: Servers) -> None:
    connection = router.connection()
    body = gzip.compress(json.dumps(prompt("encoded")).encode())
    connection.request("POST", PATH, body, {"Content-Encoding": "gzip"})
    assert connection.getresponse().status == 200
    assert any(server.seen().get("encoding gzip") for server in servers)


def test_a_caller_that_does_not_finish_its_headers_is_let_go(
    starter: Starter, servers: Servers
) -> None:
    router = starter.router(*servers, options=("--idle-deadline", "0.2"))
    with socket.create_connection(("127.0.0.1", router.port), timeout=DEADLINE_S) as wire:
        wire.sendall(b"POST /v1/completions HTTP/1.1\r\nHost")
        assert wire.recv(100) == b""


def test_a_body_that_does_not_come_is_an_error(starter: Starter, servers: Servers) -> None:
    router = starter.router(*servers, options=("--idle-deadline", "0.2"))
    with socket.create_connection(("127.0.0.1", router.port), timeout=DEADLINE_S) as wire:
        wire.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        assert wire.recv(100).startswith(b"HTTP/1.1 408")


def test_the_end_waits_no_longer_than_it_says(starter: Starter, servers: Servers) -> None:
    idle_s = 5.0
    router = starter.router(*servers, options=("--idle-deadline", str(idle_s)))
    connection = router.connection()
    body = json.dumps(prompt("endless", hold="first"))
    connection.request("POST", PATH, body, {"Content-Type": "application/json"})
    holder_of(servers, "endless")
    router.child.send_signal(signal.SIGTERM)
    # Not for the request and then, as long again, for its cancellation.
    assert router.child.wait(timeout=1.9 * idle_s) == 0
