"""The tier service of a real node: who may ask, what is refused, and what the node shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore import errors
from kvstore.cluster.control import ControlClient
from kvstore.cluster.tier import TierAddress, TierClient
from kvstore.node.metrics import TIER_METRICS
from kvstore.node.tier_service import KEYS_MAX
from tests.node.test_metrics import _scrape
from tests.support.nodes import start_node


def test_a_tier_is_asked_with_the_token_and_shows_its_figures(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o600)
    options = [f"--ssd={tmp_path / 'log'}", "--ssd-bytes=16MiB", f"--token-file={token}"]
    with start_node("8MiB", *options, "--metrics-port=0") as node:
        tier = TierClient(TierAddress(node.address, "secret", None))
        stranger = TierClient(TierAddress(node.address, None, None))
        keys = [b"L1b%d" % i for i in range(3)]
        assert tier.lookup(tier.begin_lookup(keys, 5), 3) == [False] * 3
        assert tier.promote(tier.begin_promote(keys, 5, waits=True), 3) == [False] * 3
        assert tier.forget(b"L1b", 5) == 0
        for begin in (
            lambda: stranger.begin_lookup(keys, 5),
            lambda: stranger.begin_promote(keys, 5, waits=False),
        ):
            with pytest.raises(errors.NodeUnreachable, match="UNAUTHENTICATED"):
                stranger.lookup(begin(), 3)
        with pytest.raises(errors.NodeUnreachable, match="UNAUTHENTICATED"):
            stranger.forget(b"L1b", 5)
        for wrong in ([b""], [b"x" * 1025], [b"k"] * (KEYS_MAX + 1)):
            with pytest.raises(errors.NodeUnreachable, match="INVALID_ARGUMENT"):
                tier.lookup(tier.begin_lookup(wrong, 5), len(wrong))
        with ControlClient(node.address, token="secret") as control:
            assert 0 < control.describe().ssd_bytes <= 16 << 20
            figures = control.stats()
        assert figures["ssd_misses"] == 3
        assert {row.field for row in TIER_METRICS} == {
            name for name in figures if name.startswith("ssd_")
        }
        assert _scrape(node)["kvstore_node_ssd_misses_total{}"] == 3
        tier.close()
        stranger.close()
        assert node.stop() == 0


def test_a_node_without_one_has_none() -> None:
    with start_node("8MiB") as node:
        with ControlClient(node.address) as control:
            assert control.describe().ssd_bytes == 0
            assert not any(name.startswith("ssd_") for name in control.stats())
        tier = TierClient(TierAddress(node.address, None, None))
        with pytest.raises(errors.NodeUnreachable, match="UNIMPLEMENTED"):
            tier.lookup(tier.begin_lookup([b"k"], 5), 1)
        tier.close()
