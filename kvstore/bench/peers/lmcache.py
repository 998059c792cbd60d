"""LMCache as a holder of blocks: its server over shared memory, its remote store over TCP.

Both are processes of their own, and so is the client (`lmcache_worker.py`): they live in LMCache's
environment, which `scripts/engine.py` makes at first use.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path
from typing import Final

from kvstore.bench.peers.case import Unavailable
from kvstore.bench.processes import Child, ProcessError, load_once
from kvstore.bench.redis_server import free_port

_ROOT: Final = Path(__file__).resolve().parents[3]
_WORKER: Final = str(Path(__file__).with_name("lmcache_worker.py"))
_INSTALL_TIMEOUT_S: Final = 1800
#: Its processes import torch before they say anything.
_START_S: Final = 180.0
_SERVER: Final = (
    *("--chunk-size", "16", "--l1-size-gb", "1", "--no-l1-use-lazy", "--eviction-policy", "LRU"),
    *("--disable-observability", "--supported-transfer-mode", "auto"),
)
_VARIABLES: Final = {
    "LMCACHE_TRACK_USAGE": "false",
    "LMCACHE_DISABLE_BANNER": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}


class LMCacheLoads:
    """A holder and a client that loads `blocks` blocks from it, again and again."""

    name = "lmcache"

    def __init__(self, fabric: str, block_bytes: int, blocks: int) -> None:
        python = _environment_python()
        port = free_port()
        if fabric == "shm":
            program = str(python.with_name("lmcache"))
            address = ["--host", "127.0.0.1", "--port", str(port), "--http-port", str(free_port())]
            shared = ["--shm-name", f"kvstore-bench-{uuid.uuid4().hex[:12]}"]
            holder = [program, "server", *address, *shared, *_SERVER]
        else:
            holder = [str(python), "-m", "lmcache.v1.server", "127.0.0.1", str(port), "cpu"]
        self._children: list[Child] = []
        try:
            self._children.append(Child("LMCache's server", holder, environment=_VARIABLES))
            # Isolated: the script's own folder must not be where it imports from.
            worker = [str(python), "-I", _WORKER, fabric, f"127.0.0.1:{port}"]
            client = Child(
                "LMCache's client", [*worker, str(block_bytes), str(blocks)], environment=_VARIABLES
            )
            self._children.append(client)
            while client.receive(_START_S).get("event") != "ready":
                pass
        except ProcessError as error:
            self.close()
            raise Unavailable(str(error)) from error
        self._client = client

    def load(self) -> float:
        """Load all blocks once; return the seconds it took. ProcessError if it fails."""
        return load_once(self._client)

    def close(self) -> None:
        """End what was started."""
        for child in reversed(self._children):
            child.stop()


def _environment_python() -> Path:
    """The interpreter of LMCache's environment, made at first use. Raises Unavailable."""
    script = _ROOT / "scripts" / "engine.py"
    if not script.exists():
        raise Unavailable("LMCache's environment is made by scripts/engine.py of a checkout")
    try:
        made = subprocess.run(
            [sys.executable, str(script), "lmcache"],
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"scripts/engine.py lmcache: {error}") from error
    if made.returncode != 0:
        lines = made.stderr.strip().splitlines()
        raise Unavailable(f"LMCache can't be installed: {lines[-1] if lines else '?'}")
    return Path(made.stdout.strip())
