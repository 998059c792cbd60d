"""The SSD tier of real nodes: what they held survives eviction, and their death."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import kvstore
import kvstore.aio
from kvstore.cluster import local_tier
from kvstore.cluster.control import ControlClient
from kvstore.cluster.membership import ShmAttacher
from kvstore.llm import AsyncPrefixCache, Limits, Namespace, PrefixCache, Verdict, block_hashes
from kvstore.node.ssd.log import SsdLog
from tests.multiprocess.conftest import stats_of, wait_until
from tests.support.nodes import NodeProcess, run_node, start_again, start_node

BLOCK_BYTES = 32 << 10
COUNT = 320
HASHES = block_hashes(range(16 * COUNT), 16)
NAMESPACE = Namespace(model="tiny", dtype="bytes", layout="test", block_tokens=16)
#: The blocks together are larger than this.
CAPACITY = "8MiB"
#: The machine may be busy; nothing here is about how long it takes.
PATIENT = Limits(match_s=10, load_s=60, store_s=60)


def block(number: int) -> bytes:
    return random.Random(number).randbytes(BLOCK_BYTES)


def options(directory: Path) -> list[str]:
    return [f"--ssd={directory / 'log'}", "--ssd-bytes=64MiB"]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with start_node(CAPACITY, *options(tmp_path)) as started:
        yield started


@contextmanager
def cache_on(node: NodeProcess, fabric: str = "kv") -> Iterator[PrefixCache]:
    address = node.shm if fabric == "shm" else node.address
    with (
        kvstore.connect(f"{fabric}://{address}") as store,
        PrefixCache(store, NAMESPACE, limits=PATIENT) as cache,
    ):
        yield cache


def fill(cache: PrefixCache, node: NodeProcess, count: int = COUNT) -> None:
    """Stores blocks until the node has them all on its SSD: some are evicted before that."""
    for begin in range(0, count, 64):
        part = range(begin, min(count, begin + 64))

        def is_down(part: range = part) -> bool:
            assert not cache.put([HASHES[i] for i in part], [block(i) for i in part]).failed
            return stats_of(node)["ssd_records"] >= part.stop

        wait_until("demoted", is_down, 60)


def check_all(cache: PrefixCache, count: int = COUNT) -> None:
    """Loads every block, and finds it as it was."""
    assert cache.match(HASHES[:count]) == count
    for begin in range(0, count, 64):
        part = range(begin, min(count, begin + 64))
        buffers = [bytearray(BLOCK_BYTES) for _ in part]
        loaded = cache.get([HASHES[i] for i in part], buffers)
        assert loaded.all_ok, loaded.reasons
        assert buffers == [block(i) for i in part]


def test_what_was_evicted_comes_back(node: NodeProcess) -> None:
    with cache_on(node) as cache:
        fill(cache, node)
        assert stats_of(node)["keys"] < COUNT
        explained = cache.explain(HASHES)
        assert explained.matched == COUNT
        kinds = {block.verdict for block in explained.blocks}
        assert kinds == {Verdict.HIT, Verdict.ON_SSD}
        assert all(cache.contains(HASHES))
        check_all(cache)
        stats = cache.stats()
        assert stats.loaded_ssd > 0
        assert stats.loaded_ssd + stats.loaded_remote == COUNT
        assert stats.matched_ssd > 0
        figures = stats_of(node)
    # Some may have come up twice, if they were evicted before they were read.
    assert figures["ssd_hits"] >= stats.loaded_ssd
    assert figures["ssd_hit_bytes"] == figures["ssd_hits"] * BLOCK_BYTES
    # What came up was on the SSD already: it is not written again.
    assert figures["ssd_demoted"] == COUNT
    assert figures["ssd_damaged"] == figures["ssd_errors"] == 0


@pytest.mark.parametrize("fabric", ["kv", "tcp", "shm"])
def test_a_killed_node_serves_what_it_held(node: NodeProcess, tmp_path: Path, fabric: str) -> None:
    with cache_on(node, fabric) as cache:
        fill(cache, node)
        node.kill()
        with start_again(node, CAPACITY, *options(tmp_path)) as again:
            assert stats_of(again)["keys"] == 0
            assert stats_of(again)["ssd_records"] == COUNT
            wait_until("attached again", lambda: cache.match(HASHES) == COUNT, 30)
            check_all(cache)
            assert cache.stats().loaded_ssd == COUNT
            with cache_on(again, fabric) as other:
                check_all(other)


def test_a_flipped_or_cut_record_is_a_miss(node: NodeProcess, tmp_path: Path) -> None:
    with cache_on(node) as cache:
        fill(cache, node, 16)
        keys = [cache.key_of(item) for item in HASHES]
    node.kill()
    path = tmp_path / "log"
    log = SsdLog.open(str(path), 64 << 20)
    entries = [log.find(key) for key in keys[:16]]
    log.close()
    data = bytearray(path.read_bytes())
    flipped, cut = entries[3], max(entry.offset for entry in entries if entry is not None)
    assert flipped is not None
    data[flipped.offset + 5000] ^= 4
    path.write_bytes(data[: cut + 5000])
    last = next(i for i, entry in enumerate(entries) if entry is not None and entry.offset == cut)
    with start_again(node, CAPACITY, *options(tmp_path)) as again, cache_on(again) as cache:
        for i in range(16):
            buffer = bytearray(BLOCK_BYTES)
            loaded = cache.get([HASHES[i]], [buffer])
            assert loaded.all_ok == (i not in (3, last)), (i, loaded.reasons)
            assert not loaded.all_ok or buffer == block(i)
        assert stats_of(again)["ssd_damaged"] == 2
        # Whoever computes them stores them anew.
        assert cache.put([HASHES[3]], [block(3)]).stored == 1
        wait_until("demoted", lambda: stats_of(again)["ssd_records"] == 15, 30)


@pytest.mark.parametrize("fabric", ["kv", "shm"])
def test_what_was_cleared_stays_away(node: NodeProcess, tmp_path: Path, fabric: str) -> None:
    with cache_on(node, fabric) as cache:
        fill(cache, node, 16)
        cache.clear()
        assert cache.match(HASHES) == 0
        assert stats_of(node)["ssd_records"] == 0
    node.kill()
    with start_again(node, CAPACITY, *options(tmp_path)) as again, cache_on(again) as cache:
        assert cache.match(HASHES) == 0


def test_the_file_is_read_before_the_node_lets_anybody_in(
    node: NodeProcess, tmp_path: Path
) -> None:
    # The name of its door is taken, so that it gets no further than that.
    more = ["--listen=127.0.0.1:0", "--data-port=0", f"--shm={node.shm}"]
    ended = run_node(
        f"--capacity={CAPACITY}", *more, f"--ssd={tmp_path / 'other'}", "--ssd-bytes=32MiB"
    )
    assert ended.returncode == 2
    assert "ssd opened" in ended.stderr


def test_clearing_looks_anew_for_a_tier(node: NodeProcess) -> None:
    with cache_on(node, "shm") as cache:
        fill(cache, node, 16)
        (attacher,) = cache._store._membership._attachers
        assert isinstance(attacher, ShmAttacher)
        # As after a look at a node that was not ready yet.
        attacher._has_tier, attacher._look_again_s = False, float("inf")
        assert not cache._tiers.present
        cache.clear()
        assert stats_of(node)["ssd_records"] == 0


def test_the_tier_of_a_node_that_is_gone_is_not_asked_whoever_has_its_name(
    node: NodeProcess,
) -> None:
    with cache_on(node, "shm") as cache:
        wait_until("the tier is found", lambda: cache._tiers.present, 30)
        membership = cache._store._membership
        node.kill()
        wait_until("seen", lambda: not cache.match(HASHES) and not cache._tiers.present, 30)
        (attacher,) = membership._attachers
        assert isinstance(attacher, ShmAttacher)
        wait_until("down", lambda: not cache.match(HASHES) and not attacher._is_attached, 30)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(local_tier._name(node.shm))
            other.listen()
            assert local_tier.listens(node.shm)
            assert membership.tiers(anew=True) == [None]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs a node as another user")
def test_root_asks_the_tier_of_a_node_of_any_user() -> None:
    name = f"kvstore-{os.getpid()}-other"
    program = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
        f"s.bind({local_tier._name(name)!r}); s.listen(); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    assert not local_tier.listens(name)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        assert local_tier.listens(name)
        other.communicate()


async def _check_async(node: NodeProcess) -> None:
    async with await kvstore.aio.connect(node.target) as store:
        cache = AsyncPrefixCache(store, NAMESPACE, limits=PATIENT)
        assert await cache.match(HASHES) == COUNT
        buffers = [bytearray(BLOCK_BYTES) for _ in range(16)]
        assert (await cache.get(HASHES[:16], buffers)).all_ok
        assert buffers == [block(i) for i in range(16)]
        stats = cache.stats()
        assert stats.loaded_ssd + stats.loaded_remote == 16
        assert stats.matched_ssd > 0


def test_the_asynchronous_cache_does_the_same(node: NodeProcess) -> None:
    with cache_on(node) as cache:
        fill(cache, node)
    asyncio.run(_check_async(node))


def test_prefetching_brings_blocks_up(node: NodeProcess) -> None:
    with cache_on(node) as cache:
        fill(cache, node)
        wanted = [
            item.place for item in cache.explain(HASHES).blocks if item.verdict is Verdict.ON_SSD
        ][:8]
        hashes = [HASHES[i] for i in wanted]
        assert cache.prefetch(hashes, BLOCK_BYTES) == len(wanted)
        buffers = [bytearray(BLOCK_BYTES) for _ in wanted]
        assert cache.get(hashes, buffers, timeout_s=60).all_ok
        assert buffers == [block(i) for i in wanted]
        assert cache.stats().loaded_prefetched == len(wanted)


def test_options_that_make_no_sense_are_refused(tmp_path: Path, node: NodeProcess) -> None:
    base = ["--capacity=8MiB", "--listen=127.0.0.1:0"]
    long_name = "n" * 95
    for extra, said in (
        (["--ssd-bytes=64MiB"], "without --ssd"),
        (["--ssd-index-bytes=4MiB"], "without --ssd"),
        ([*options(tmp_path), "--ssd-index-bytes=1MiB"], "below the least"),
        ([*options(tmp_path), "--ssd-index-bytes=1000000GiB"], "for --ssd-index-bytes is more"),
        (
            [*options(tmp_path), "--ssd-index-bytes=1000000GiB", "--hugepages"],
            "beside the huge pages",
        ),
        ([f"--ssd={tmp_path / 'x'}", "--ssd-bytes=8MiB"], "below twice the --capacity"),
        ([f"--ssd={tmp_path}", "--ssd-bytes=64MiB"], "Is a directory"),
        (options(tmp_path), "in use by another node"),
        ([*options(tmp_path), f"--shm={long_name}"], "leaves no room"),
    ):
        ended = run_node(*base, *extra)
        assert ended.returncode == 2
        assert said in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_a_socket_that_is_a_file_leads_to_the_tier_too(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o600)
    # A path of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="kv-") as directory:
        # gRPC decodes such a name.
        more = [*options(tmp_path), f"--shm={directory}/shm%41", f"--token-file={token}"]
        target = f"shm://{directory}/shm%41"
        for expected in (0, 4):
            # The second time both sockets of the first are in the way.
            with (
                start_node(CAPACITY, *more) as node,
                kvstore.connect(target, token="secret") as store,
                PrefixCache(store, NAMESPACE, limits=PATIENT) as cache,
            ):
                wait_until("the tier is found", lambda: cache._tiers.present, 30)
                assert cache.match(HASHES) == expected
                if not expected:
                    with ControlClient(node.address, token="secret") as control:
                        cache.put(HASHES[:4], [block(i) for i in range(4)])
                        wait_until(
                            "demoted",
                            lambda: control.stats()["ssd_records"] == 4,
                            60,
                        )
                node.kill()


def test_a_node_without_a_tier_has_no_socket_for_one() -> None:
    with start_node(CAPACITY) as node, cache_on(node, "shm") as cache:
        assert not cache._tiers.present
        assert not local_tier.listens(node.shm)
