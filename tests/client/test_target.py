"""Targets and tokens: what is understood, and how the rest is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvstore
from kvstore.cluster.target import parse_target, read_token


@pytest.mark.parametrize(
    ("text", "scheme", "members"),
    [
        (None, "embedded", ("embedded",)),
        ("embedded", "embedded", ("embedded",)),
        ("kv://h:7400", "kv", ("h:7400",)),
        ("kv://b:2,a:1", "kv", ("a:1", "b:2")),
        ("kv://b:2, a:1/", "kv", ("a:1", "b:2")),
        ("tcp://10.0.0.1:07400", "tcp", ("10.0.0.1:7400",)),
        ("kv://[::1]:7400", "kv", ("[::1]:7400",)),
        ("shm://name", "shm", ("name",)),
        ("shm:///run/kv.sock", "shm", ("/run/kv.sock",)),
    ],
)
def test_targets(
    monkeypatch: pytest.MonkeyPatch, text: str | None, scheme: str, members: tuple[str, ...]
) -> None:
    monkeypatch.delenv("KVSTORE_TARGET", raising=False)
    target = parse_target(text)
    assert (target.scheme, target.members) == (scheme, members)
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text",
    ["", "h:1", "kv:h:1", "kv://", "kv://h", "kv://h:", "kv://h:0", "kv://h:65536", "kv://:1",
     "kv://h:x", "kv://a:1,a:1", "kv://a:1,,b:2", "shm://", "rdma://h:1", "http://h:1"],
)  # fmt: skip
def test_targets_that_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.delenv("KVSTORE_TARGET", raising=False)
    with pytest.raises(kvstore.ConfigurationError, match=r"target|socket|twice|HOST:PORT"):
        parse_target(text)


def test_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVSTORE_TARGET", "tcp://h:1")
    assert str(parse_target(None)) == "tcp://h:1"
    assert str(parse_target("kv://h:2")) == "kv://h:2"
    assert str(parse_target("embedded")) == "embedded"
    token_file = tmp_path / "token"
    monkeypatch.setenv("KVSTORE_TOKEN_FILE", str(token_file))
    with pytest.raises(kvstore.ConfigurationError, match="cannot read the token file"):
        read_token(None)
    token_file.write_text("\n")
    with pytest.raises(kvstore.ConfigurationError, match="empty"):
        read_token(None)
    token_file.write_text(" secret\n")
    assert read_token(None) == "secret"
    assert read_token("mine") == "mine"
    monkeypatch.delenv("KVSTORE_TOKEN_FILE")
    assert read_token(None) is None


def test_options_of_the_embedded_node_only() -> None:
    with pytest.raises(kvstore.ConfigurationError, match="capacity_bytes is for the embedded"):
        kvstore.connect("shm://x", capacity_bytes=1 << 30)
    with pytest.raises(kvstore.ConfigurationError, match="eviction"):
        kvstore.connect("embedded", eviction="lru")
    with pytest.raises(kvstore.ConfigurationError, match="capacity_bytes"):
        kvstore.connect("embedded", capacity_bytes=1)


def test_nobody_there() -> None:
    with pytest.raises(kvstore.NodeUnreachable, match="kvstore-test-nobody"):
        kvstore.connect("shm://kvstore-test-nobody")
