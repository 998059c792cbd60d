"""What importing the prefix cache loads, and what engines must not trip over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kvstore.llm


def run(source: str, repository: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", source], cwd=repository, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


def test_the_package_loads_no_engine_nor_the_core(repository: Path) -> None:
    run(
        "import sys, kvstore.llm\n"
        "for name in kvstore.llm.__all__: assert getattr(kvstore.llm, name) is not None\n"
        "heavy = {n.partition('.')[0] for n in sys.modules}"
        " & {'torch', 'vllm', 'transformers', 'lmcache', 'sglang', 'numpy', 'zstandard', 'grpc'}\n"
        "assert not heavy, heavy\n",
        repository,
    )


def test_only_the_names_load_the_core(repository: Path) -> None:
    run(
        "import sys, kvstore.llm\n"
        "from kvstore.llm import Namespace, block_hashes\n"
        "assert 'kvstore._native' not in sys.modules\n",
        repository,
    )


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="PrefixCash"):
        kvstore.llm.PrefixCash  # type: ignore[attr-defined]  # noqa: B018
    assert "PrefixCache" in dir(kvstore.llm)


def test_every_attribute_of_every_module_can_be_looked_at(repository: Path) -> None:
    """vLLM on processors calls `vars(value).get` on every attribute of every loaded module."""
    run(
        "import sys, kvstore, kvstore.aio, kvstore.llm\n"
        "from kvstore.llm import PrefixCache, AsyncPrefixCache\n"
        "with kvstore.connect('embedded', capacity_bytes=16 << 20) as store: store.put('k', b'v')\n"
        "bad = []\n"
        "for name, module in list(sys.modules.items()):\n"
        "    for attribute, value in list(vars(module).items()):\n"
        "        if hasattr(value, '__dict__') and not hasattr(vars(value), 'get'):\n"
        "            bad.append(f'{name}.{attribute}')\n"
        "assert not bad, bad\n",
        repository,
    )
