"""Settings that a node does not start with. In this process: it ends before it serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore.node.main import main


def _assert_refused(capsys: pytest.CaptureFixture[str], options: list[str], expected: str) -> None:
    assert main(options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert expected in err
    assert err.startswith("kvstore-node: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "Missing option '--capacity'"),
        (["--capacity=lots"], "'lots' is no size"),
        (["--capacity=1KiB"], "below the least"),
        (["--capacity=900TiB"], "more than can be had"),
        (["--capacity=64MiB", "--listen=nowhere"], "not HOST:PORT"),
        (["--capacity=64MiB", "--listen=127.0.0.1:65535"], "last port"),
        (["--capacity=64MiB", "--listen=192.0.2.77:7400", "--insecure"], "cannot use 192.0.2.77"),
        (["--capacity=64MiB", "--listen=0.0.0.0:0"], "reachable from other machines"),
        (["--capacity=64MiB", "--token-file=/nonexistent"], "cannot read /nonexistent"),
        (["--capacity=64MiB", "--token-file=/dev/null"], "is empty"),
        (["--capacity=64MiB", "--tls-cert=/dev/null"], "go together"),
        (["--capacity=64MiB", "--tls-cert=/dev/null", "--tls-key=/dev/null"], "no PEM certificate"),
        (["--capacity=64MiB", "--eviction=mru"], "mru"),
        (["--capacity=64MiB", "--members=a:1,a:1"], "named twice"),
        (["--capacity=64MiB", "--config=/nonexistent"], "cannot read /nonexistent"),
        (["--capacity=64MiB", "--no-such-option"], "--no-such-option"),
        (["--capacity=900TiB", "--hugepages"], "more than can be had"),
        (["--capacity=16MiB", "--device=rxe0"], "--device does not go with --fabric cpu"),
        (
            ["--capacity=16MiB", "--fabric=verbs", "--shm=x"],
            "--shm does not go with --fabric verbs",
        ),
        (["--capacity=16MiB", "--fabric=verbs", "--device=absent0"], "kvstore-node: "),
    ],
)
def test_refusal_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    _assert_refused(capsys, ["--listen=127.0.0.1:0", *options], expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("capacity = ", "Invalid value"),
        ("capacitie = 3", "there is no option 'capacitie'"),
        ("[capacity]\nx = 1", "is a table"),
        ('eviction = "mru"', "mru"),
    ],
)
def test_bad_config_file_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, expected: str
) -> None:
    config = tmp_path / "node.toml"
    config.write_text(text)
    options = ["--capacity=16MiB", "--listen=127.0.0.1:0", f"--config={config}"]
    _assert_refused(capsys, options, expected)
