"""`kvstore router` in front of two real vLLM servers that share a store, one of which is killed.

The first one also computes prompts for the second one, behind another router.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pytest

from tests.engines.conftest import ENVIRONMENT, VOCABULARY, engine_module
from tests.engines.vllm_engines import ROOT, START_S, wait_for
from tests.support.nodes import NodeProcess

engine_module("vllm")
pytestmark = pytest.mark.timeout(600)
NAME = "small"
NEW_TOKENS = 8
CALL_S: Final = 120.0
STOP_S: Final = 30.0
BLOCK_TOKENS = 32


class Server:
    """A process that serves HTTP on 127.0.0.1, with what it started."""

    def __init__(self, words: list[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                words,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @cached_property
    def port(self) -> int:
        """What it says on its first line."""
        wait_for(lambda: b"\n" in self._log.read_bytes())
        return int(self._log.read_text().splitlines()[0].rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CALL_S)
        with contextlib.closing(connection):
            data = json.dumps(body).encode() if body is not None else None
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.call("GET", "/metrics")[1].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def wait(self) -> None:
        """Until it serves."""
        deadline = time.monotonic() + START_S
        while True:
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            with contextlib.suppress(OSError):
                if self.call("GET", "/health")[0] == 200:
                    return
            assert time.monotonic() < deadline, self._log.read_text()[-4000:]
            time.sleep(0.1)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_S)

    def stop(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self.kill()


@pytest.fixture(scope="module")
def model(llama: Path) -> Path:
    """The model with a tokenizer, which a server needs: a word is a token."""
    tokenizers = engine_module("tokenizers")
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    engine_module("transformers").PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0"
    ).save_pretrained(llama)
    return llama


@contextmanager
def ended(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.stop()


def kept_port(stack: contextlib.ExitStack) -> int:
    """A port that is bound for the test's time; vLLM shares it, since it sets SO_REUSEADDR too."""
    kept = stack.enter_context(socket.socket())
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    return int(kept.getsockname()[1])


def start_vllm(model: Path, node: NodeProcess, hand_off: str, port: int, log: Path) -> Server:
    transfer = {
        "kv_connector": "KvStoreConnector",
        "kv_connector_module_path": "kvstore.llm.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "target": node.target,
            "hand_off": hand_off,
            # Above what computing takes on a machine that does much else.
            "hand_off_wait_s": 60.0,
        },
    }
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    words += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)]
    words += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"]
    words += ["--max-num-seqs", "8", "--kv-cache-memory-bytes", str(64 << 20)]
    words += ["--block-size", str(BLOCK_TOKENS), "--enable-prompt-tokens-details"]
    # Small steps: a prompt lasts long enough to be handed off meanwhile.
    words += ["--max-num-batched-tokens", "64"]
    words += ["--kv-transfer-config", json.dumps(transfer)]
    server = Server(words, {**ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}, log)
    server.port = port
    return server


def start_router(instances: list[Server], log: Path, prefills: Sequence[Server] = ()) -> Server:
    words = [sys.executable, "-m", "kvstore.cli.main", "router", "--listen", "127.0.0.1:0"]
    words += [word for server in instances for word in ("--instance", server.url)]
    words += [word for server in prefills for word in ("--prefill", server.url)]
    # Also the deadline of a check: engines that compute may answer late.
    return Server([*words, "--health-interval", "5"], {}, log)


def prompt_of(number: int) -> list[int]:
    return [3 + (i * 37 + number * 101) % 2000 for i in range(700)]


def complete(router: Server, prompt: list[int]) -> tuple[list[str], int]:
    """The words of an answer, and how many tokens of its prompt were cached."""
    request = {
        "model": NAME,
        "prompt": " ".join(f"w{token}" for token in prompt),
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    status, body = router.call("POST", "/v1/completions", request)
    assert status == 200, body
    answer = json.loads(body)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    details = answer["usage"]["prompt_tokens_details"] or {}
    return answer["choices"][0]["text"].split(), details.get("cached_tokens") or 0


def test_two_servers_behind_a_router(model: Path, node: NodeProcess, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                ended(start_vllm(model, node, hand_off, kept_port(stack), tmp_path / hand_off))
            )
            for hand_off in ("publish", "receive")
        ]
        for server in servers:
            server.wait()
        router = stack.enter_context(ended(start_router(servers, tmp_path / "router")))
        wait_for(lambda: router.metric("kvstore_router_instance_up") == 2)
        prefill, decode = servers
        with ended(start_router([decode], tmp_path / "pair", [prefill])) as pair:
            check_that_prompts_are_handed_off(pair, prefill, decode)
        answers = check_that_a_prompt_stays_where_it_went(router, servers)
        check_that_the_other_one_serves_what_a_killed_one_computed(router, servers, answers)


def check_that_prompts_are_handed_off(pair: Server, prefill: Server, decode: Server) -> None:
    prompts = [prompt_of(number) for number in range(100, 104)]
    answers = [complete(pair, prompt) for prompt in prompts]
    assert [cached for _, cached in answers] == [672] * len(prompts)
    for prompt, (words, _) in zip(prompts, answers, strict=True):
        assert complete(prefill, prompt)[0] == words
    # A counter moves with the next step of its engine, and the prompts' ends are counted on a
    # thread: they are all in sight since the engine computed the prompts once more.
    wait_for(lambda: prefill.metric("vllm:kvstore_hand_offs_published_total") == len(prompts))
    # Most came by layers; whoever was asked late found whole blocks.
    assert 0 < decode.metric("vllm:kvstore_hand_offs_received_total") <= len(prompts)
    assert decode.metric("vllm:kvstore_hand_offs_failed_total") == 0


def check_that_a_prompt_stays_where_it_went(
    router: Server, servers: list[Server]
) -> list[list[str]]:
    """Prompts spread, and each comes back to the engine that has it in its own cache."""
    answers: list[list[str]] = []
    places: list[int] = []
    loaded = [server.metric("vllm:kvstore_loaded_remote_total") for server in servers]
    # The ports choose the places of idle engines, so a few prompts may all go to one of them.
    while len(places) < 6 or (len(places) < 20 and set(places) != {0, 1}):
        before = [requests(server) for server in servers]
        words, cached = complete(router, prompt_of(len(places)))
        assert cached == 0
        places.append(moved(before, servers))
        answers.append(words)
    assert set(places) == {0, 1}
    for number, place in enumerate(places):
        before = [requests(server) for server in servers]
        assert complete(router, prompt_of(number)) == (answers[number], 672)
        assert moved(before, servers) == place
    # Its own cache: nothing came from the store.
    assert [server.metric("vllm:kvstore_loaded_remote_total") for server in servers] == loaded
    return answers


def requests(server: Server) -> float:
    return server.metric("vllm:request_success_total")


def moved(before: list[float], servers: list[Server]) -> int:
    """Which server has served one request more."""
    (place,) = (i for i, server in enumerate(servers) if requests(server) > before[i])
    return place


def check_that_the_other_one_serves_what_a_killed_one_computed(
    router: Server, servers: list[Server], answers: list[list[str]]
) -> None:
    dead, alive = servers
    loaded = alive.metric("vllm:kvstore_loaded_remote_total")
    dead.kill()
    for number, words in enumerate(answers):
        # The first request that meets the dead one is given to the other one.
        assert complete(router, prompt_of(number)) == (words, 672)
    assert alive.metric("vllm:kvstore_loaded_remote_total") > loaded
    wait_for(lambda: router.metric("kvstore_router_instance_up") == 1)
