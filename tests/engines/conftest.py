"""What the engine tests share: a small model on disk, prompts, and engines in child processes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.nodes import NodeProcess, start_node

VOCABULARY = 2048
#: 640 tokens that all prompts share, then 60, 130 and 200 of their own.
SHARED = [3 + i * 37 % 2000 for i in range(640)]
PROMPTS = [SHARED + [5 + (i * 13 + j * 101) % 2000 for i in range(60 + 70 * j)] for j in range(3)]
#: The tests' engines are quiet, alone, and use one thread: more only wait for each other.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
}


def engine_module(name: str) -> Any:
    """Imports a part of an engine; where the engine is not installed the tests are left out.

    `make test-engines` says that it is: then a module that cannot be imported is a failure.
    """
    if os.environ.get("KVSTORE_ENGINE"):
        return importlib.import_module(name)
    return pytest.importorskip(name)


def save_model(folder: Path, kind: str, **options: Any) -> Path:
    """Writes a model of random weights, the same each time."""
    torch = engine_module("torch")
    transformers = engine_module("transformers")
    torch.manual_seed(0)
    name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    config = getattr(transformers, name)(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        initializer_range=0.15,
        tie_word_embeddings=False,
        **options,
    )
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "llama", "Llama")


@pytest.fixture
def node() -> Iterator[NodeProcess]:
    with start_node("512MiB") as started:
        yield started


@pytest.fixture(scope="session")
def expected(llama: Path) -> dict[str, Any]:
    """What a vLLM engine without a connector says to `PROMPTS`."""
    from tests.engines.vllm_engines import engine

    with engine(llama) as plain:
        return plain.generate()
