"""Hashes of blocks and chunks."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
from array import array

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import ConfigurationError
from kvstore.llm import Namespace, block_hashes, chunk_hash
from kvstore.llm.keys import Algorithm, KeyMaker

ALGORITHMS: tuple[Algorithm, ...] = ("sha256", "xxh3-128")
tokens = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(one=tokens, other=tokens, block=st.integers(1, 7))
def test_equal_hashes_mean_equal_prefixes(
    algorithm: Algorithm, one: list[int], other: list[int], block: int
) -> None:
    ours = block_hashes(one, block, algorithm=algorithm)
    theirs = block_hashes(other, block, algorithm=algorithm)
    assert len(ours) == len(one) // block
    for place, (left, right) in enumerate(zip(ours, theirs, strict=False)):
        end = (place + 1) * block
        assert (left == right) == (one[:end] == other[:end])


def test_a_chain_goes_on_from_its_parent() -> None:
    whole = block_hashes(range(100), 10)
    assert whole[:4] + block_hashes(range(40, 100), 10, parent=whole[3]) == whole


def test_the_first_hash_is_the_documented_one() -> None:
    root = hashlib.sha256(b"kvstore.llm.block/1" + struct.pack("<I", 4)).digest()
    expected = hashlib.sha256(root + struct.pack("<4I", 1, 2, 3, 2**32 - 1)).digest()
    assert block_hashes([1, 2, 3, 2**32 - 1], 4) == [expected]


def test_every_form_of_tokens_gives_the_same_hashes() -> None:
    ids = list(range(1000, 1064))
    forms = [
        tuple(ids),
        range(1000, 1064),
        array("I", ids),
        array("q", ids),
        numpy.array(ids, numpy.int64),
        numpy.array(ids, numpy.int32),
        numpy.array(ids, numpy.uint32),
        memoryview(numpy.array(ids, numpy.int64)),
    ]
    assert {tuple(block_hashes(form, 16)) for form in forms} == {tuple(block_hashes(ids, 16))}


def test_hashes_are_the_same_in_another_process() -> None:
    source = (
        "from kvstore.llm import block_hashes\n"
        "print([h.hex() for a in ('sha256', 'xxh3-128')\n"
        "       for h in block_hashes(range(64), 16, algorithm=a)])\n"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", source],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    hashes = [h.hex() for a in ALGORITHMS for h in block_hashes(range(64), 16, algorithm=a)]
    assert runs == {f"{hashes}\n"}


def test_what_else_the_kv_depends_on_changes_every_hash() -> None:
    plain, image = block_hashes(range(64), 16), block_hashes(range(64), 16, extra=b"image")
    assert not set(plain) & set(image)
    assert not set(plain) & set(block_hashes(range(64), 8))


@pytest.mark.parametrize("bad", [[-1], [2**32], ["a"], [1.5]])
def test_what_is_no_token_is_refused(bad: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="token ids"):
        block_hashes(bad, 1)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigurationError, match="at least one token"):
        block_hashes([1], 0)
    with pytest.raises(ConfigurationError, match="sha1"):
        block_hashes([1], 1, algorithm="sha1")  # type: ignore[arg-type]


def test_a_chunk_is_the_same_wherever_it_stands_and_never_a_block(namespace: Namespace) -> None:
    chunk = chunk_hash(range(16))
    assert chunk == chunk_hash(list(range(16))) != chunk_hash(range(1, 17))
    assert chunk != chunk_hash(range(16), extra=b"x")
    assert chunk not in block_hashes(range(16), 16)
    maker = KeyMaker(namespace)
    assert maker.chunk(chunk) not in maker.blocks([chunk])
