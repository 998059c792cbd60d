"""Sizes, addresses and memory limits: what a node's settings are read with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvstore import errors
from kvstore.node.config import default_data_port, parse_listen, read_config_file
from kvstore.node.main import command
from kvstore.node.memory_limits import memory_limit
from kvstore.node.service import derived_cluster_id
from kvstore.node.units import format_bytes, parse_bytes
from tests.support.nodes import ROOT


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("65536", 65536),
        ("4GiB", 4 << 30),
        ("4 gib", 4 << 30),
        ("1.5MiB", 3 << 19),
        ("2KB", 2000),
        ("1TiB", 1 << 40),
        (7, 7),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_parse_bytes(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "4 Gi B", "4XiB", "1e9", "0x10"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB"), (1 << 40, "1.0 TiB")],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_parse_listen() -> None:
    assert parse_listen("0.0.0.0:7400") == ("0.0.0.0", 7400)
    assert parse_listen("[::1]:0") == ("::1", 0)
    assert default_data_port(7400) == 7401
    assert default_data_port(0) == 0


def test_derived_cluster_id_depends_on_the_list_alone() -> None:
    assert derived_cluster_id(("a:1", "b:1")) == derived_cluster_id(("a:1", "b:1"))
    assert derived_cluster_id(("a:1", "b:1")) != derived_cluster_id(("a:1",))


def _machine(root: Path, *, group: str, files: dict[str, str]) -> Path:
    meminfo = "MemTotal: 2048 kB\nMemAvailable: 1000 kB\nHugePages_Free: 3\nHugepagesize: 2048 kB\n"
    files = {"proc/meminfo": meminfo, "proc/self/cgroup": group, **files}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_memory_limit_without_control_groups(tmp_path: Path) -> None:
    root = _machine(tmp_path, group="0::/\n", files={})
    assert memory_limit(root=root).available_bytes == 1000 * 1024
    assert memory_limit(root=root, hugepages=True).available_bytes == 3 * 2048 * 1024


def test_memory_limit_of_an_outer_control_group(tmp_path: Path) -> None:
    outer = "sys/fs/cgroup/a/"
    root = _machine(
        tmp_path,
        group="0::/a/b\n",
        files={
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            outer + "memory.max": "500000\n",
            outer + "memory.current": "300000\n",
            outer + "memory.stat": "anon 1\ninactive_file 100000\n",
        },
    )
    limit = memory_limit(root=root)
    assert limit.available_bytes == 300000
    assert "control group" in limit.source


def test_memory_limit_of_version_1_control_groups(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory/"
    root = _machine(
        tmp_path,
        group="4:cpu:/x\n3:memory:/docker/unmounted\n",
        files={
            folder + "memory.limit_in_bytes": "400000",
            folder + "memory.usage_in_bytes": "500000",
            folder + "memory.stat": "total_inactive_file 0\n",
        },
    )
    assert memory_limit(root=root).available_bytes == 0


def test_the_configuration_to_start_from_names_real_options() -> None:
    options = {parameter.name or "" for parameter in command.params}
    values = read_config_file(str(ROOT / "deploy" / "node.toml"), options)
    assert parse_bytes(values["capacity"]) > 0
    assert parse_listen(values["listen"]) == ("0.0.0.0", 7400)
    # What is commented out has to be right as well.
    text = (ROOT / "deploy" / "node.toml").read_text()
    commented = {match[1] for match in re.finditer(r"^# ([a-z-]+) = ", text, re.MULTILINE)}
    assert commented
    assert {name.replace("-", "_") for name in commented} <= options


def test_listen_errors_are_typed() -> None:
    for text in ("7400", "host:", "host:x", "host:65536", ":1"):
        with pytest.raises(errors.ConfigurationError):
            parse_listen(text)
