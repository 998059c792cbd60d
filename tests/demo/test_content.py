"""The check of a block finds every way in which it can be wrong."""

from __future__ import annotations

import pytest

from kvstore.demo.content import Blocks


@pytest.mark.parametrize("block_bytes", [16, 17, 4096, 100_003])
def test_what_is_made_is_right(block_bytes: int) -> None:
    blocks = Blocks(block_bytes)
    for block in (0, 1, 182_789, 2**63 - 1):
        content = blocks.content(block)
        assert len(content) == block_bytes
        assert blocks.is_right(block, content)
        assert blocks.is_right(block, memoryview(bytearray(content)))


def test_each_flipped_byte_is_wrong() -> None:
    blocks = Blocks(300)
    content = bytearray(blocks.content(5))
    for index in range(len(content)):
        content[index] ^= 1
        assert not blocks.is_right(5, memoryview(content))
        content[index] ^= 1
    assert blocks.is_right(5, memoryview(content))


def test_other_blocks_sizes_and_runs_are_wrong() -> None:
    blocks = Blocks(4096)
    content = blocks.content(5)
    assert not blocks.is_right(6, content)
    assert not blocks.is_right(5, content[:-1])
    assert not blocks.is_right(5, content + b"\0")
    # A body of another block under the right header: torn between two writes.
    torn = content[:16] + blocks.content(6)[16:]
    assert not blocks.is_right(5, torn)
    assert not Blocks(4096, seed=2).is_right(5, content)
    assert Blocks(4096, seed=2).key(5) != blocks.key(5)


def test_a_block_too_small_for_its_header() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Blocks(15)
