"""Prompts that prefill engines compute: what each server is asked, and what failures change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.llm.router.conftest import Process, Starter, wait_for
from tests.llm.router.test_proxy import PATH, metric, posting, prompt

COMPUTE = "tokens 1 of ['do_remote_decode']"
TAKE_OVER = "tokens 7 of ['do_remote_prefill']"
AS_IT_CAME = "tokens 7 of []"


@dataclass
class Set:
    """A router, a server that decodes, and one that computes prompts."""

    router: Process
    decode: Process
    prefill: Process


@pytest.fixture
def pair(starter: Starter) -> Set:
    decode, prefill = starter.servers()
    return Set(starter.router(decode, prefills=(prefill,)), decode, prefill)


def body(key: str, **more: Any) -> dict[str, Any]:
    return prompt(key, max_tokens=7, **more)


def test_both_are_asked_at_the_same_time(pair: Set) -> None:
    with posting(pair.router, PATH, body("a", hold="first")) as answers:
        wait_for(lambda: bool(pair.prefill.seen().get(COMPUTE)))
        wait_for(lambda: bool(pair.decode.seen().get(TAKE_OVER)))
        pair.prefill.release("a")
        wait_for(lambda: metric(pair.router, "kvstore_router_prefills_total") == 1)
        pair.decode.release("a")
    assert answers[0][0] == 200


@pytest.mark.parametrize("path", [PATH, "/v1/chat/completions"])
def test_the_answer_is_that_of_the_engine_that_decodes(pair: Set, path: str) -> None:
    request = body("a", messages=[{"role": "user", "content": "word " * 1000}])
    if path != PATH:
        del request["prompt"]
    status, answer = pair.router.post(path, request)
    assert (status, answer["pid"]) == (200, pair.decode.seen()["pid"])
    assert answer["key"] == "Bearer secret"


def test_a_prompt_that_nobody_waits_for_is_not_computed_on(pair: Set) -> None:
    with posting(pair.router, PATH, body("a", hold="first")):
        wait_for(lambda: bool(pair.prefill.seen().get("started a")))
        pair.decode.release("a")
    wait_for(lambda: bool(pair.prefill.seen().get("cancelled a")))


def test_requests_go_as_they_came_where_no_prefill_engine_lives(pair: Set) -> None:
    pair.prefill.kill()
    wait_for(
        lambda: metric(pair.router, f'kvstore_router_instance_up{{instance="{url(pair)}"') == 0
    )
    assert pair.router.post(PATH, body("a"))[0] == 200
    assert pair.decode.seen()[AS_IT_CAME] == 1


def url(pair: Set) -> str:
    return f"http://127.0.0.1:{pair.prefill.port}"


def test_a_prefill_engine_that_fails_harms_no_request(pair: Set) -> None:
    pair_pid = pair.prefill.seen()["pid"]
    assert pair.router.post(PATH, body("a", **{f"status_{pair_pid}": 500}))[0] == 200
    assert pair.decode.seen()[TAKE_OVER] == 1
    wait_for(lambda: metric(pair.router, "kvstore_router_prefills_total") == 1)


@pytest.mark.parametrize(
    ("path", "changed"),
    [
        ("/v1/embeddings", {}),
        (PATH, {"kv_transfer_params": {"mine": 1}}),
        (PATH, {"prompt": ""}),
        (PATH, {"prompt": "short " * 80}),
    ],
)
def test_what_is_not_computed_elsewhere(pair: Set, path: str, changed: dict[str, Any]) -> None:
    assert pair.router.post(path, body("a") | changed)[0] == 200
    assert "started" not in pair.prefill.seen()
    kept = "tokens 7 of ['mine']" if "kv_transfer_params" in changed else AS_IT_CAME
    assert pair.decode.seen()[kept] == 1
