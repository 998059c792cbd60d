"""vLLM engines with other stores: LMCache's server, and Mooncake Store over loopback TCP.

The engines live in an environment of their own, which has the versions of vLLM and torch that ours
has, and which `scripts/engine.py` makes at first use (gigabytes). So does LMCache's server, which
shares its memory with the engine; Mooncake's processes have their own.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kvstore.bench.llm.engines import Transfer, start_engine
from kvstore.bench.peers import environment, lmcache, mooncake
from kvstore.bench.peers.case import Unavailable
from kvstore.bench.processes import Child, ProcessError

_ENVIRONMENT: Final = "vllm-peers"
#: LMCache's own default.
_CHUNK_TOKENS: Final = 256
_SEGMENT_BYTES: Final = 1 << 30
_BUFFER_BYTES: Final = 256 << 20


def _start_lmcache(stack: contextlib.ExitStack, model: Path) -> Child:
    python = environment.python_of(_ENVIRONMENT)
    # LMCache imports Mooncake where that is installed.
    variables = {**lmcache.VARIABLES, **mooncake.libraries_for(python)}
    server = lmcache.Server(python, _CHUNK_TOKENS, variables)
    stack.callback(server.close)
    server.wait()
    settings = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": server.port}
    transfer = _transfer("LMCacheMPConnector") | {"kv_connector_extra_config": settings}
    return start_engine(stack, "LMCache", model, transfer, python=str(python), variables=variables)


def _start_mooncake(stack: contextlib.ExitStack, model: Path) -> Child:
    python = environment.python_of(_ENVIRONMENT)
    processes = mooncake.Processes()
    stack.callback(processes.close)
    processes.worker("storage", _SEGMENT_BYTES)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    settings = {
        "metadata_server": "P2PHANDSHAKE",
        "master_server_address": processes.master,
        "protocol": "tcp",
        "device_name": "",
        "mode": "standalone-store",
        "global_segment_size": 0,
        "local_buffer_size": _BUFFER_BYTES,
    }
    (folder / "mooncake.json").write_text(json.dumps(settings))
    variables = {
        **mooncake.libraries_for(python),
        "MOONCAKE_CONFIG_PATH": str(folder / "mooncake.json"),
    }
    transfer = _transfer("MooncakeStoreConnector")
    return start_engine(stack, "Mooncake", model, transfer, python=str(python), variables=variables)


def _transfer(connector: str) -> Transfer:
    return {
        "kv_connector": connector,
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
    }


def _or_unavailable(
    start: Callable[[contextlib.ExitStack, Path], Child],
) -> Callable[[contextlib.ExitStack, Path], Child]:
    def guarded(stack: contextlib.ExitStack, model: Path) -> Child:
        # What was begun of a system that can't run ends at once, not with the figure.
        with contextlib.ExitStack() as begun:
            try:
                engine = start(begun, model)
            except ProcessError as error:
                raise Unavailable(str(error)) from error
            stack.push(begun.pop_all())
            return engine

    return guarded


#: Each starts an engine, until the end of the stack, or raises Unavailable.
PEERS: Final = {
    "LMCache (shm)": _or_unavailable(_start_lmcache),
    "Mooncake (tcp)": _or_unavailable(_start_mooncake),
}
