"""vLLM engines in processes of their own, for the tests of what is loaded into them."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kvstore
from kvstore.bench.llm.engines import stop_engine
from kvstore.bench.processes import Child, ProcessError
from kvstore.llm import directory
from tests.engines.conftest import ENVIRONMENT, PROMPTS
from tests.support.processes import descendants, wait_stopped

ROOT = Path(__file__).resolve().parents[2]
START_S = 300.0
ANSWER_S = 240.0
Answer = dict[str, Any]


class Engine:
    """A vLLM engine; `extra` are the connector's settings, None for an engine without one."""

    def __init__(
        self, model: Path, extra: Answer | None, options: Answer, role: str = "kv_both"
    ) -> None:
        configuration: Answer = {
            "model": str(model),
            "max_model_len": 2048,
            "max_num_seqs": 8,
            "kv_cache_memory_bytes": 64 << 20,
            **options,
        }
        environment = dict(ENVIRONMENT)
        if configuration.get("tensor_parallel_size", 1) == 1:
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        else:
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "0|0"
        if extra is not None:
            configuration["kv_transfer_config"] = {
                "kv_connector": "KvStoreConnector",
                "kv_connector_module_path": "kvstore.llm.vllm",
                "kv_role": role,
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": extra,
            }
        command = [sys.executable, "-m", "kvstore.bench.llm.vllm_engine"]
        self._child = Child("engine", command, environment=environment, folder=str(ROOT))
        self._child.send(configuration)
        try:
            self._child.receive(START_S)
        except ProcessError:
            self._child.stop()
            raise

    def ask(self, request: Answer) -> Answer:
        self.send(request)
        return self.receive()

    def send(self, request: Answer) -> None:
        self._child.send(request)

    def receive(self) -> Answer:
        return self._child.receive(ANSWER_S)

    def generate(self, prompts: list[list[int]] = PROMPTS, **options: Any) -> Answer:
        return self.ask({"prompts": prompts, **options})

    def reset(self) -> None:
        """Drops vLLM's own cache: from here on every hit is the store's."""
        assert self.ask({"reset": True})["done"]

    def count(self, name: str) -> float:
        return float(self.ask({"metrics": True}).get(f"vllm:{name}", 0))

    def processes(self) -> set[int]:
        """Those that vLLM has started."""
        return descendants(self._child.pid)

    def pause(self) -> None:
        """SIGSTOP; returns once every thread has stopped."""
        self._child.process.send_signal(signal.SIGSTOP)
        wait_stopped(self._child.pid)

    def resume(self) -> None:
        """SIGCONT."""
        self._child.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._child.process.kill()

    def stop(self) -> None:
        stop_engine(self._child)


@contextmanager
def engine(
    model: Path, extra: Answer | None = None, role: str = "kv_both", **options: Any
) -> Iterator[Engine]:
    started = Engine(model, extra, options, role)
    try:
        yield started
    finally:
        started.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    """Stores of a worker go on behind its back."""
    deadline = time.monotonic() + ANSWER_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def block_keys(store: kvstore.Store) -> list[bytes]:
    return sorted(key for key in store if key != directory.KEY)
