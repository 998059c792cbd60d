"""vLLM engines of a benchmark: processes of their own, on one small model of random weights.

They run as users run them, with the core of the engine in one more process: it sleeps for a moment
where nothing can be computed, so that threads of a connector come to run.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kvstore.bench.processes import Child, Node, ProcessError, start_node, target_of

VOCABULARY: Final = 2048
ANSWER_S: Final = 120.0
_START_S: Final = 300.0
_STOP_S: Final = 30.0
_RESET_PAUSE_S: Final = 0.1
_VARIABLES: Final = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
}

#: What vLLM is told of a connector.
Transfer = dict[str, Any]


def model_and_node(stack: contextlib.ExitStack, hidden: int, layers: int) -> tuple[Path, Node]:
    """A model's folder and a node, until the end of `stack`.

    ProcessError, which says how to get it, where vLLM is not installed.
    """
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise ProcessError(
            "vLLM is not installed here: make its environment with scripts/engine.py vllm and run"
            " this with build/venvs/vllm/bin/python -m kvstore.bench.main"
        )
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    model = _save_model(folder / "model", hidden, layers)
    node = start_node(1 << 30)
    stack.callback(node.child.stop)
    return model, node


def transfer_through(node: Node, fabric: str, **settings: Any) -> Transfer:
    """The connector of this store."""
    return {
        "kv_connector": "KvStoreConnector",
        "kv_connector_module_path": "kvstore.llm.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"target": target_of([node], fabric), **settings},
    }


def start_engine(
    stack: contextlib.ExitStack,
    name: str,
    model: Path,
    transfer: Transfer | None = None,
    *,
    python: str = sys.executable,
    variables: Mapping[str, str] | None = None,
) -> Child:
    """Start an engine, which speaks as `vllm_engine.py` says, until the end of `stack`."""
    configuration: dict[str, Any] = {
        "model": str(model),
        "max_model_len": 4096,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 4096,
        "kv_cache_memory_bytes": 512 << 20,
    }
    if transfer is not None:
        configuration["kv_transfer_config"] = transfer
    engine = Child(
        f"engine of {name}",
        [python, "-m", "kvstore.bench.llm.vllm_engine"],
        environment={**_VARIABLES, **(variables or {})},
    )
    stack.callback(stop_engine, engine)
    engine.send(configuration)
    engine.receive(_START_S)
    return engine


def reset(engine: Child) -> None:
    """Have vLLM drop its own prefix cache, which it does once nobody holds a block.

    Raises:
        ProcessError: It did not within `ANSWER_S`, or has died.
    """
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        engine.send({"reset": True})
        if engine.receive(ANSWER_S)["done"]:
            return
        time.sleep(_RESET_PAUSE_S)
    raise ProcessError(f"{engine.name} did not drop its prefix cache within {ANSWER_S:g} s")


def stop_engine(engine: Child) -> None:
    """End an engine, which ends its own processes first."""
    with contextlib.suppress(OSError):
        engine.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        engine.process.wait(_STOP_S)
    engine.stop()


def _save_model(folder: Path, hidden: int, layers: int) -> Path:
    from kvstore.demo.engine import make_model

    model = make_model({"seed": 1, "threads": 1, "hidden": hidden, "layers": layers})
    model.save_pretrained(folder)
    return folder
