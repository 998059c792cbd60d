"""The committed gRPC stubs import on the oldest and the newest supported packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUBS = sorted(
    f"kvstore.cluster.proto.{path.stem}"
    for path in (ROOT / "kvstore" / "cluster" / "proto").glob("*_pb2*.py")
)


@pytest.mark.network
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "requirements",
    [("grpcio==1.74.0", "protobuf==6.31.1"), ("grpcio>=1.74", "protobuf>=6.31.1,<8")],
    ids=["oldest", "newest"],
)
def test_stubs_import(requirements: tuple[str, str], tmp_path: Path) -> None:
    assert STUBS
    command = [sys.executable, "-m", "pip", "install", "-q", "--upgrade", "--target"]
    subprocess.run([*command, str(tmp_path), *requirements], check=True, timeout=240)
    # -S leaves the environment of this interpreter out: only the packages just installed count.
    completed = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", f"import {', '.join(STUBS)}"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert completed.returncode == 0, completed.stderr
