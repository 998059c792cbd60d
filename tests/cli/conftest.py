"""Runs of the real `kvstore` command against a real node."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from kvstore.cli.main import main
from tests.support.nodes import ROOT, NodeProcess, start_node


@dataclass(frozen=True)
class Outcome:
    """How one run of the command ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def document(self) -> dict[str, Any]:
        document = json.loads(self.out)
        assert set(document) == {"meta", "rows"}
        for row in document["rows"]:
            assert not any(isinstance(value, dict | list) for value in row.values()), row
        return dict(document)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(self.document["rows"])


Cli = Callable[..., Outcome]


def run_cli(*arguments: str, stdin: bytes = b"") -> Outcome:
    """Runs `kvstore` in this process, for a new interpreter each time takes a while."""
    streams = [io.TextIOWrapper(io.BytesIO(content)) for content in (stdin, b"", b"")]
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        code = main(arguments)
    for stream in streams[1:]:
        stream.flush()
    out, err = (stream.buffer.getvalue() for stream in streams[1:])  # type: ignore[attr-defined]
    return Outcome(code, out, err.decode())


def run_process(*arguments: str, stdin: bytes = b"", timeout_s: float = 30) -> Outcome:
    """Runs `kvstore` in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "kvstore.cli", *arguments],
        input=stdin,
        capture_output=True,
        timeout=timeout_s,
        cwd=ROOT,
        check=False,
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr.decode())


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    with start_node("64MiB") as running:
        yield running


@pytest.fixture
def cli(node: NodeProcess) -> Cli:
    """Runs `kvstore --target` the node of this module, which it finds empty."""
    cleared = run_cli("--target", node.target, "clear", "--yes")
    assert cleared.code == 0, cleared.err

    def run(*arguments: str, stdin: bytes = b"") -> Outcome:
        return run_cli("--target", node.target, *arguments, stdin=stdin)

    return run
