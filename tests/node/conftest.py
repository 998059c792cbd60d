"""A real node for the tests of the control plane, and a certificate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.certificates import Certificate, make_certificate
from tests.support.nodes import NodeProcess, start_node


@pytest.fixture
def node() -> Iterator[NodeProcess]:
    """A node without a token."""
    with start_node("64MiB") as running:
        yield running


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))
