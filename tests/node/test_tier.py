"""The tier service of a real node: who may ask, what is refused, and what the node shows."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvstore import errors
from kvstore.cluster.control import ControlClient
from kvstore.cluster.tier import TierAddress, TierClient
from kvstore.node.log import Log
from kvstore.node.memory_node import MemoryNode
from kvstore.node.metrics import TIER_METRICS
from kvstore.node.service import ControlServer
from kvstore.node.ssd.log import SsdLog
from kvstore.node.ssd.tier import Outcome, SsdTier
from kvstore.node.tier_service import GLANCES_AT_ONCE, KEYS_MAX, WAITS_AT_ONCE
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
        with pytest.raises(errors.NodeUnreachable, match="UNAUTHENTICATED"):
            stranger.lookup(stranger.begin_lookup(keys, 5), 3)
        with pytest.raises(errors.NodeUnreachable, match="UNAUTHENTICATED"):
            stranger.promote(stranger.begin_promote(keys, 5, waits=False), 3)
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


def test_however_many_ask_the_tier_the_control_plane_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log("json", io.StringIO())
    node = MemoryNode(capacity_bytes=8 << 20)
    tier = SsdTier(node, SsdLog.open(str(tmp_path / "log"), 16 << 20), log)
    server = ControlServer(
        node, log, token=None, certificate=None, advertise="", grace_s=1, tier=tier
    )
    address = f"127.0.0.1:{server.start('127.0.0.1', 0)}"
    client = TierClient(TierAddress(address, None, None))
    goes_on, runs = threading.Event(), threading.Semaphore(0)

    def slow_lookup(keys: Sequence[bytes]) -> list[bool]:
        runs.release()
        assert goes_on.wait(60)
        return [False] * len(keys)

    def slow_promote(keys: Sequence[bytes], *_: float) -> list[Outcome]:
        slow_lookup(keys)
        return [Outcome.ABSENT] * len(keys)

    monkeypatch.setattr(tier, "lookup", slow_lookup)
    monkeypatch.setattr(tier, "promote", slow_promote)
    looks = [client.begin_lookup([b"L1b"], 60) for _ in range(GLANCES_AT_ONCE // 2)]
    promotions = [
        *[client.begin_promote([b"L1b"], 60, waits=False) for _ in range(GLANCES_AT_ONCE // 2)],
        *[client.begin_promote([b"L1b"], 60, waits=True) for _ in range(WAITS_AT_ONCE)],
    ]
    try:
        for _ in (*looks, *promotions):
            assert runs.acquire(timeout=30)
        with pytest.raises(errors.NodeUnreachable, match="RESOURCE_EXHAUSTED"):
            client.lookup(client.begin_lookup([b"L1b"], 60), 1)
        for waits in (False, True):
            with pytest.raises(errors.NodeUnreachable, match="RESOURCE_EXHAUSTED"):
                client.promote(client.begin_promote([b"L1b"], 60, waits=waits), 1)
        with ControlClient(address) as control:
            assert control.describe().ssd_bytes > 0
        # Nor does whoever has something to forget.
        assert client.forget(b"L1b", 60) == 0
        goes_on.set()
        assert not any(client.lookup(call, 1)[0] for call in looks)
        assert not any(client.promote(call, 1)[0] for call in promotions)
        # Their places are free again.
        assert client.lookup(client.begin_lookup([b"L1b"], 60), 1) == [False]
    finally:
        goes_on.set()
        client.close()
        server.stop(10)
        tier.close()
        node.close()
