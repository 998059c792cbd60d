"""get, put, rm, ls, clear and stat KEY against a real node."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, run_cli, run_process
from tests.support.certificates import make_certificate
from tests.support.nodes import NodeProcess, start_node


def test_put_then_get(cli: Cli) -> None:
    assert cli("put", "greeting", "hello").code == 0
    found = cli("get", "greeting")
    assert (found.code, found.out, found.err) == (0, b"hello", "")


def test_as_a_process(cli: Cli, node: NodeProcess) -> None:
    assert run_process("--target", node.target, "put", "k", stdin=b"from stdin").code == 0
    assert run_process("--target", node.target, "get", "k").out == b"from stdin"
    assert run_process("--target", node.target, "get", "absent").code == 1
    assert cli("get", "k").out == b"from stdin"


def test_absent_key_is_exit_code_1(cli: Cli) -> None:
    for command in ("get", "rm", "stat"):
        ended = cli(command, "nothing")
        assert ended.code == 1
        assert ended.out == b""
        assert ended.err == "kvstore: there is no key 'nothing'\n"
    assert cli("get", "nothing", "--json").rows == []


def test_values_of_any_bytes_by_file_and_stdin(cli: Cli, tmp_path: Path) -> None:
    value = bytes(range(256)) * 1000
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(value)
    assert cli("put", "a", "--file", str(source)).code == 0
    assert cli("put", "b", stdin=value).code == 0
    assert cli("put", "empty", stdin=b"").code == 0
    assert cli("get", "a").out == value
    ended = cli("get", "b", "--output", str(target))
    assert (ended.code, ended.out) == (0, b"")
    assert target.read_bytes() == value
    assert cli("get", "empty").out == b""
    (row,) = cli("get", "a", "--json").rows
    assert row["value_bytes"] == len(value)
    assert base64.b64decode(row["value_base64"]) == value


def test_json_of_text(cli: Cli) -> None:
    (stored,) = cli("put", "k", "text", "--json").rows
    (found,) = cli("get", "k", "--json").rows
    assert found == {
        "key": "k",
        "key_hex": "6b",
        "value_bytes": 4,
        "version": stored["version"],
        "value": "text",
    }


def test_put_if_absent(cli: Cli) -> None:
    assert cli("put", "k", "first", "--if-absent").code == 0
    ended = cli("put", "k", "second", "--if-absent")
    assert ended.code == 1
    assert "exists" in ended.err
    assert cli("get", "k").out == b"first"


def test_ttl(cli: Cli) -> None:
    assert cli("put", "k", "v", "--ttl", "0.05").code == 0
    # Expiry counts in ticks of 64 ms of the node's clock, which a client knows to some 20 ms.
    time.sleep(0.5)
    assert cli("get", "k").code == 1
    assert cli("put", "k", "v", "--ttl", "60").code == 0
    assert cli("get", "k").code == 0


def test_rm_says_which_were_absent(cli: Cli) -> None:
    cli("put", "a", "1")
    ended = cli("rm", "a", "b")
    assert ended.code == 1
    assert "'b'" in ended.err
    assert "'a'" not in ended.err
    assert cli("get", "a").code == 1
    cli("put", "a", "1")
    assert [row["deleted"] for row in cli("rm", "a", "b", "--json").rows] == [True, False]


def test_ls(cli: Cli) -> None:
    for number in range(5):
        cli("put", f"user:{number}", "x" * number)
    cli("put", "other", "y")
    assert sorted(cli("ls").text.split()) == ["other", *(f"user:{n}" for n in range(5))]
    assert len(cli("ls", "--prefix", "user:").text.split()) == 5
    assert len(cli("ls", "--limit", "2").text.split()) == 2
    assert cli("ls", "--prefix", "none").out == b""
    rows = cli("ls", "--prefix", "user:", "--long", "--json").rows
    assert {row["key"]: row["value_bytes"] for row in rows} == {f"user:{n}": n for n in range(5)}
    assert "value_bytes" in cli("ls", "--long").text


def test_binary_keys(cli: Cli) -> None:
    assert cli("put", "--hex", "00ff0a", "v").code == 0
    assert cli("get", "--hex", "00ff0a").out == b"v"
    assert cli("ls").text == "\\x00\\xff\\n\n"
    assert cli("ls", "--json").rows == [{"key": "\\x00\\xff\\n", "key_hex": "00ff0a"}]
    assert cli("get", "--hex", "xyz").code == 2


def test_stat_of_a_key_names_its_node(cli: Cli, node: NodeProcess) -> None:
    cli("put", "k", "12345")
    (row,) = cli("stat", "k", "--json").rows
    assert row["value_bytes"] == 5
    assert row["node"] == node.address
    assert node.address in cli("stat", "k").text


def test_clear_wants_a_yes(cli: Cli) -> None:
    cli("put", "k", "v")
    ended = cli("clear")
    assert ended.code == 2
    assert "--yes" in ended.err
    assert cli("clear", "--yes").text == "1 keys deleted\n"
    assert cli("clear", "--yes", "--json").rows == [{"deleted_keys": 0}]
    assert cli("ls").out == b""


@pytest.mark.parametrize("scheme", ["tcp", "shm"])
def test_other_schemes(cli: Cli, node: NodeProcess, scheme: str) -> None:
    cli("put", "k", "v")
    place = node.shm if scheme == "shm" else node.address
    assert run_cli("--target", f"{scheme}://{place}", "get", "k").out == b"v"


@pytest.mark.parametrize(
    "arguments",
    [
        ("get",),
        ("nonsense",),
        ("--no-such-option",),
        ("--target", "nonsense", "get", "k"),
        ("--target", "kv://127.0.0.1", "get", "k"),
        ("--token-file", "/nonexistent", "get", "k"),
        ("put", "k", "v", "--file", "f"),
        ("put", "k", "--file", "/nonexistent"),
        ("get", ""),
        ("get", "x" * 1025),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    node: NodeProcess, arguments: tuple[str, ...]
) -> None:
    target = () if "--target" in arguments else ("--target", node.target)
    ended = run_cli(*target, *arguments)
    assert ended.code == 2
    assert ended.out == b""
    assert ended.err.startswith("kvstore: ")
    assert ended.err.count("\n") == 1


def test_unreachable_is_exit_code_3() -> None:
    for command in (("get", "k"), ("put", "k", "v"), ("ls",), ("nodes",), ("stat",)):
        ended = run_cli("--target", "kv://127.0.0.1:1", "--timeout", "2", *command)
        assert ended.code == 3, ended.err
        assert "127.0.0.1:1" in ended.err or "127.0.0.1:1" in ended.text


def test_another_member_list_is_exit_code_2(cli: Cli, node: NodeProcess) -> None:
    with start_node("16MiB") as other:
        ended = run_cli("--target", f"{node.target},{other.address}", "get", "k")
    assert ended.code == 2
    assert node.address in ended.err
    assert other.address in ended.err


def test_token(tmp_path: Path) -> None:
    token, wrong = tmp_path / "token", tmp_path / "wrong"
    token.write_text("right\n")
    wrong.write_text("wrong\n")
    with start_node("16MiB", f"--token-file={token}") as node:
        options = ("--target", node.target, "--token-file")
        assert run_cli(*options, str(token), "put", "k", "v").code == 0
        assert run_cli(*options, str(token), "get", "k").out == b"v"
        for arguments in ((*options, str(wrong), "get", "k"), (*options[:2], "get", "k")):
            ended = run_cli(*arguments)
            assert ended.code == 2
            assert "token" in ended.err
        by_socket = ("--target", f"shm://{node.shm}")
        assert run_cli(*by_socket, "--token-file", str(token), "get", "k").out == b"v"
        for arguments in ((*by_socket, "--token-file", str(wrong)), by_socket):
            assert run_cli(*arguments, "get", "k").code == 2


def test_tls(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with start_node("16MiB", *certificate.node_options) as node:
        options = ("--target", node.target, "--tls-ca", str(certificate.certificate))
        assert run_cli(*options, "put", "k", "v").code == 0
        assert run_cli(*options, "get", "k").out == b"v"
        assert run_cli(*options, "nodes").code == 0
        ended = run_cli("--target", node.target, "--timeout", "2", "get", "k")
        assert ended.code == 3
        assert "TLS" in ended.err


def test_two_nodes_share_the_keys() -> None:
    with start_node("16MiB") as one, start_node("16MiB") as other:
        target = f"kv://{one.address},{other.address}"
        for number in range(12):
            assert run_cli("--target", target, "put", f"k{number}", "v").code == 0
        (totals,) = run_cli("--target", target, "stat", "--json").rows
        assert totals["keys"] == 12
        shares = [row["keys"] for row in run_cli("--target", target, "nodes", "--json").rows]
        assert sum(shares) == 12
        assert min(shares) > 0
