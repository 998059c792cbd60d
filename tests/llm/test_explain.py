"""`explain`: each kind of miss is told apart."""

from __future__ import annotations

import dataclasses

import kvstore
from kvstore.llm import Namespace, PrefixCache, Verdict, block_hashes, directory
from kvstore.llm.keys import KeyMaker

HASHES = block_hashes(range(16 * 8), 16)


def verdicts(cache: PrefixCache) -> list[Verdict]:
    return [block.verdict for block in cache.explain(HASHES).blocks]


def test_every_verdict(store: kvstore.Store, namespace: Namespace) -> None:
    cache = PrefixCache(store, namespace)
    other = PrefixCache(store, dataclasses.replace(namespace, adapter="lora-7"))
    cache.put([*HASHES[:4], HASHES[6]], [b"x" * 64] * 5)
    other.put([HASHES[5]], [b"x" * 64])
    keys = KeyMaker(namespace).blocks(HASHES)
    store.delete(keys[3])
    assert cache.get([HASHES[2]], [bytearray(8)]).reasons == {0: "BufferTooSmall"}
    explained = cache.explain(HASHES)
    assert [block.verdict for block in explained.blocks] == [
        Verdict.HIT,
        Verdict.HIT,
        Verdict.LOAD_FAILED,
        Verdict.EVICTED,
        Verdict.NEVER_STORED,
        Verdict.OTHER_NAMESPACE,
        Verdict.BEHIND_A_GAP,
        Verdict.NEVER_STORED,
    ]
    assert explained.matched == cache.match(HASHES) == 2
    assert explained.blocks[5].detail == "adapter 'lora-7'"
    assert "2 of 8 blocks match" in str(explained)
    assert "s left" in str(explained)


def test_another_salt_is_said_without_the_salt(store: kvstore.Store, namespace: Namespace) -> None:
    PrefixCache(store, dataclasses.replace(namespace, salt="hidden")).put(HASHES, [b"x"] * 8)
    explained = PrefixCache(store, namespace).explain(HASHES)
    assert {block.detail for block in explained.blocks} == {"another salt"}
    assert not any(b"hidden" in key for key in store)
    assert b"hidden" not in (store.get(directory.KEY) or b"")


def test_the_directory_is_bounded_and_tells_no_lies(
    store: kvstore.Store, namespace: Namespace
) -> None:
    for number in range(260):
        named = dataclasses.replace(namespace, model=f"model {number}")
        assert directory.register(store, named, timeout_s=5)
        assert directory.register(store, named, timeout_s=5)
    listed = directory.listed(store, timeout_s=5)
    assert len(listed) == 256
    assert [fields["model"] for fields in listed.values()][::255] == ["model 4", "model 259"]
    store.put_object(directory.KEY, [["no digest", {}], 7, [b"x" * 16, "no fields"]])
    assert directory.listed(store, timeout_s=5) == {}
    store.put(directory.KEY, b"no list at all")
    assert directory.listed(store, timeout_s=5) == {}
    assert not directory.register(store, namespace, timeout_s=5)
    # None of which keeps blocks from being stored.
    cache = PrefixCache(store, namespace)
    assert cache.put(HASHES, [b"x"] * 8).stored == 8
    assert set(verdicts(cache)) == {Verdict.HIT}
