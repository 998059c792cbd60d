"""Environments of other systems, which `scripts/engine.py` of a checkout makes at first use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from kvstore.bench.peers.case import Unavailable

_SCRIPT: Final = Path(__file__).resolve().parents[3] / "scripts" / "engine.py"
_INSTALL_TIMEOUT_S: Final = 1800


def python_of(name: str) -> Path:
    """Return the interpreter of an environment. Raises Unavailable."""
    if not _SCRIPT.exists():
        raise Unavailable(f"the environment {name} is made by scripts/engine.py of a checkout")
    try:
        made = subprocess.run(
            [sys.executable, str(_SCRIPT), name],
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"scripts/engine.py {name}: {error}") from error
    if made.returncode != 0:
        lines = made.stderr.strip().splitlines()
        raise Unavailable(f"{name} can't be installed: {lines[-1] if lines else '?'}")
    return Path(made.stdout.strip())
