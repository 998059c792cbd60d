"""The lab's tests. They boot virtual machines: `make rxe` runs them, nothing else does."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from deploy.rxe.machine import Machine, machines

collect_ignore_glob = [] if os.environ.get("KVSTORE_RXE") == "1" else ["*"]
# Tests for the inside of a machine are not for its host.
collect_ignore_glob += [] if os.environ.get("KVSTORE_RXE_GUEST") == "1" else ["guest/*"]

ENVIRONMENT = {
    "KVSTORE_VERBS_DEVICE": "rxe0",
    "KVSTORE_VERBS_LIBRARY": "kvstore/_verbs.so",
    "KVSTORE_RXE": "1",
    "KVSTORE_RXE_GUEST": "1",
}


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """One machine for all tests that need no more."""
    with machines(1) as (only,):
        yield only
