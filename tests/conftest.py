"""Fixtures that every layer of tests may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def traces() -> Path | None:
    """The folder of real traces, or `None`: then a test runs on its generated miniature."""
    folder = os.environ.get("KVSTORE_TRACES")
    return Path(folder) if folder else None
