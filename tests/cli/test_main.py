"""The shape of the command: help, version, lazy loading."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from kvstore._version import __version__
from kvstore.cli.main import _COMMANDS, command
from tests.cli.conftest import run_cli, run_process


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_every_command_has_help(name: str) -> None:
    shown = CliRunner().invoke(command, [name, "--help"])
    assert shown.exit_code == 0, shown.output
    # A group's own commands say what they print; a server logs.
    found = command.get_command(click.Context(command), name)
    if not isinstance(found, click.Group) and name != "router":
        assert "--json" in shown.output
    if name != "demo":
        assert "Example" in shown.output


def test_help_lists_every_command_and_the_exit_codes() -> None:
    ended = run_process("--help")
    assert ended.code == 0
    for name in _COMMANDS:
        assert f"\n  {name} " in ended.text
    assert "Exit codes" in ended.text
    assert __version__ in run_process("--version").text


def test_environment_names_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSTORE_TARGET", "kv://127.0.0.1:1")
    ended = run_cli("--timeout", "1", "nodes", "--json")
    assert ended.document["meta"]["target"] == "kv://127.0.0.1:1"
    assert ended.code == 3


def test_help_loads_neither_grpc_nor_the_core() -> None:
    program = (
        "import sys\n"
        "from kvstore.cli.main import main\n"
        "main(['get', '--help'])\n"
        "loaded = {'grpc', 'kvstore._native', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(loaded) if loaded else 0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "kvstore.cli", "--help"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert ended.stderr == b""
