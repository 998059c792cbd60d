"""The endpoint over real servers in processes of their own, some of which are killed."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.llm.router.conftest import Process, Servers, Starter, wait_for

PATH = "/v1/completions"


def prompt(key: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": f"{key} " * 1000, "key": key, **more}


def metric(router: Process, name: str) -> float:
    """The sum of a metric over its labels."""
    _, text = router.get("/metrics")
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def up(router: Process) -> int:
    return int(metric(router, "kvstore_router_instance_up"))


def prompts_until(router: Process, key: str, least: int, pids: set[int]) -> list[int]:
    """Post prompts, at least so many, until each of these servers had one; who had which.

    The ports choose the places of idle servers on the ring, so any number may miss one of them.
    """
    served: list[int] = []
    while len(served) < least or (len(served) < 60 and not pids <= set(served)):
        served.append(router.post(PATH, prompt(f"{key}{len(served)}"))[1]["pid"])
    assert pids <= set(served)
    return served


def holder_of(servers: Servers, key: str) -> Servers:
    """The server that has a request, and the other one."""
    wait_for(lambda: any(server.seen().get(f"started {key}") for server in servers))
    one, other = servers
    return (one, other) if one.seen().get(f"started {key}") else (other, one)


def release(servers: Servers, key: str) -> None:
    for server in servers:
        server.release(key)


@contextmanager
def posting(router: Process, path: str, body: Any) -> Iterator[list[tuple[int, Any]]]:
    """Post in another thread; the answer is there at the end of the `with`."""
    answers: list[tuple[int, Any]] = []
    caller = threading.Thread(target=lambda: answers.append(router.post(path, body)))
    caller.start()
    yield answers
    caller.join()


def test_a_prompt_stays_where_it_went_and_prompts_spread(
    starter: Starter, servers: Servers
) -> None:
    router = starter.router(*servers)
    pids = prompts_until(router, "p", 12, {server.child.pid for server in servers})
    for _ in range(2):
        assert [router.post(PATH, prompt(f"p{i}"))[1]["pid"] for i in range(len(pids))] == pids
    assert metric(router, "kvstore_router_requests_total") == 3 * len(pids)
    assert metric(router, "kvstore_router_first_byte_seconds_count") == 3 * len(pids)
    matched = metric(router, "kvstore_router_matched_tokens_total")
    assert 0.5 < matched / metric(router, "kvstore_router_input_tokens_total") < 0.67
    assert metric(router, "kvstore_router_in_flight") == 0
    assert metric(router, "kvstore_router_instance_waiting_tokens") == 0


def test_requests_and_answers_pass_as_they_are(router: Process, servers: Servers) -> None:
    answer = router.begin(PATH + "?a=%2F&b=1", prompt("as it is"))
    assert answer.getheader("X-Query") == "a=%2F&b=1"
    assert int(answer.getheader("X-Server", "")) in [server.child.pid for server in servers]
    assert json.load(answer)["key"] == "Bearer secret"
    assert router.post(PATH, prompt("not found", status=404))[0] == 404
    assert router.begin(PATH, b"no json").status == 500
    assert router.get("/v1/absent")[0] == 405
    assert router.get("/health") == (200, '{"alive": 2, "instances": 2}')


def test_a_stream_comes_piece_by_piece(router: Process, servers: Servers) -> None:
    answer = router.begin(PATH, prompt("stream", stream=True, hold="middle"))
    assert answer.getheader("Content-Type") == "text/event-stream"
    # The server waits with the rest until we have had this.
    assert answer.readline() == b'data: {"word": "one"}\n'
    assert metric(router, "kvstore_router_instance_running") == 1
    assert metric(router, "kvstore_router_instance_waiting_tokens") == 0
    release(servers, "stream")
    rest = answer.read()
    assert rest.count(b"data: ") == 3
    assert rest.endswith(b"data: [DONE]\n\n")


def test_a_caller_that_goes_away_ends_its_request(router: Process, servers: Servers) -> None:
    connection = router.connection()
    body = json.dumps(prompt("away", hold="first"))
    connection.request("POST", PATH, body, {"Content-Type": "application/json"})
    holder, _ = holder_of(servers, "away")
    connection.close()
    wait_for(lambda: holder.seen().get("cancelled away") == 1)
    wait_for(lambda: metric(router, "kvstore_router_in_flight") == 0)


def test_a_busy_server_is_passed_over(router: Process, servers: Servers) -> None:
    busy, free = servers
    more = {f"status_{busy.child.pid}": 503}
    for i in range(8):
        assert router.post(PATH, prompt(f"busy {i}", **more))[1]["pid"] == free.child.pid
    status, text = router.post(PATH, prompt("busy", status=503))
    assert (status, "busy" in text["error"]["message"]) == (503, True)
    assert up(router) == 2


def test_a_body_beyond_the_bound_and_a_target_that_is_no_path(router: Process) -> None:
    connection = router.connection()
    connection.connect()
    with connection.sock as wire:
        wire.sendall(b"GET http://elsewhere/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.recv(100).startswith(b"HTTP/1.1 400")
    assert router.begin(PATH, b"x" * (33 << 20)).status == 413


def test_a_killed_server_is_replaced_and_welcome_again(starter: Starter) -> None:
    victim, survivor = servers = starter.servers()
    router = starter.router(*servers)
    before = prompts_until(router, "p", 10, {victim.child.pid})
    victim.kill()
    for i in range(len(before)):
        status, text = router.post(PATH, prompt(f"p{i}"))
        assert (status, text["pid"]) == (200, survivor.child.pid)
    wait_for(lambda: up(router) == 1)
    returned = starter.server(victim.port)
    wait_for(lambda: up(router) == 2)
    prompts_until(router, "q", 10, {returned.child.pid})


def test_a_server_killed_before_its_first_byte_is_replaced_for_a_prompt(starter: Starter) -> None:
    servers = starter.servers()
    router = starter.router(*servers)
    with posting(router, PATH, prompt("first", hold="first")) as answers:
        holder, other = holder_of(servers, "first")
        other.release("first")
        holder.kill()
    assert [(status, text["pid"]) for status, text in answers] == [(200, other.child.pid)]
    assert metric(router, "kvstore_router_failures_total") >= 1


def test_what_cannot_be_repeated_is_not(starter: Starter) -> None:
    servers = starter.servers()
    router = starter.router(*servers)
    with posting(router, "/v1/files", {"key": "file", "hold": "first"}) as answers:
        holder, other = holder_of(servers, "file")
        holder.kill()
    assert [status for status, _ in answers] == [502]
    assert "started" not in other.seen()


def test_a_server_killed_in_mid_stream_breaks_the_stream(starter: Starter) -> None:
    servers = starter.servers()
    router = starter.router(*servers)
    answer = router.begin(PATH, prompt("middle", stream=True, hold="middle"))
    assert answer.readline() == b'data: {"word": "one"}\n'
    holder, _ = holder_of(servers, "middle")
    holder.kill()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read()


def test_a_late_answer_is_an_error_and_is_computed_once(starter: Starter, servers: Servers) -> None:
    deadlines = ("--answer-deadline", "0.2", "--connect-deadline", "1")
    router = starter.router(*servers, options=deadlines)
    status, text = router.post(PATH, prompt("late", hold="first"))
    assert status == 504
    assert "did not answer in time" in text["error"]["message"]
    assert sum(server.seen().get("started late", 0) for server in servers) == 1
    # The server is not to blame for long prompts.
    assert up(router) == 2


def test_a_stream_that_stops_is_broken_off(starter: Starter, servers: Servers) -> None:
    router = starter.router(*servers, options=("--idle-deadline", "0.3"))
    answer = router.begin(PATH, prompt("idle", stream=True, hold="middle"))
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read()
    holder, _ = holder_of(servers, "idle")
    wait_for(lambda: holder.seen().get("cancelled idle") == 1)


def test_more_than_may_be_in_flight_is_refused_and_the_end_waits_for_the_rest(
    starter: Starter, servers: Servers
) -> None:
    router = starter.router(*servers, options=("--in-flight-max", "1"))
    answer = router.begin(PATH, prompt("one", stream=True, hold="middle"))
    refused = router.begin(PATH, prompt("two"))
    assert (refused.status, refused.getheader("Retry-After")) == (503, "1")
    ended: list[int] = []
    stopper = threading.Thread(target=lambda: ended.append(router.stop()))
    stopper.start()
    release(servers, "one")
    assert answer.read().endswith(b"data: [DONE]\n\n")
    stopper.join()
    assert ended == [0]


def test_nobody_is_there(starter: Starter) -> None:
    server = starter.server()
    assert server.port
    server.kill()
    router = starter.router(server)
    assert router.get("/health")[0] == 503
    status, text = router.post(PATH, prompt("nobody"))
    assert (status, text["error"]["message"]) == (503, "router: no instance is alive")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--instance"),
        (["--instance", "gpu1:8000"], "http://HOST:PORT"),
        (["--instance", "http://gpu1:99999"], "http://HOST:PORT"),
        (["--instance", "http://a:1", "--instance", "http://a:1/"], "named once"),
        (["--instance", "http://a:1", "--listen", "8080"], "HOST:PORT"),
        (["--instance", "http://127.0.0.1:1", "--listen", "127.0.0.1:TAKEN"], "cannot listen on"),
    ],
)
def test_a_mistake_is_one_clear_line(words: list[str], reason: str, servers: Servers) -> None:
    words = [word.replace("TAKEN", str(servers[0].port)) for word in words]
    finished = subprocess.run(
        [sys.executable, "-m", "kvstore.cli", "router", *words],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent,
    )
    assert finished.returncode != 0
    assert reason in finished.stderr
    assert "Traceback" not in finished.stderr
