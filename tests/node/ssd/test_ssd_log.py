"""The file of the SSD tier: whatever lies in it, a read gives the right bytes or a miss."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import ConfigurationError
from kvstore.node.ssd import format as form
from kvstore.node.ssd import log as logs
from kvstore.node.ssd.log import BYTES_MIN, SsdLog


def block(number: int, size: int = 10_000) -> bytes:
    return random.Random(number).randbytes(size)


def key_of(number: int) -> bytes:
    return b"L1b" + number.to_bytes(16, "big")


@contextmanager
def opened(
    path: Path, bytes_max: int = BYTES_MIN, records_max: int = sys.maxsize
) -> Iterator[SsdLog]:
    log = SsdLog.open(str(path), bytes_max, records_max)
    try:
        yield log
    finally:
        log.close()


def append(log: SsdLog, key: bytes, value: bytes, *, codec: int = 0, version: int = 1) -> bool:
    return log.append(key, memoryview(value), codec, version=version, generation=log.generation)


def value_of(log: SsdLog, key: bytes) -> bytes | None:
    entry = log.find(key)
    value = log.read(key, entry, bytearray()) if entry is not None else None
    return bytes(value) if value is not None else None


def test_what_was_appended_is_read_also_by_the_next_one_who_opens_it(tmp_path: Path) -> None:
    sizes = [0, 1, 63, 64, 65, 4096, 30_000]
    with opened(tmp_path / "log") as log:
        for number, size in enumerate(sizes):
            assert append(log, key_of(number), block(number, size), codec=number)
        assert [value_of(log, key_of(i)) for i in range(7)] == [
            block(i, size) for i, size in enumerate(sizes)
        ]
        live_bytes = log.live_bytes
    with opened(tmp_path / "log") as log:
        assert len(log) == 7
        assert log.damaged == 0
        assert log.live_bytes == live_bytes
        for number, size in enumerate(sizes):
            entry = log.find(key_of(number))
            assert entry is not None
            assert (entry.codec, entry.version) == (number, 0)
            assert value_of(log, key_of(number)) == block(number, size)


def test_the_last_record_of_a_key_counts(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        for number in range(3):
            append(log, b"k", block(number))
        assert value_of(log, b"k") == block(2)
    with opened(tmp_path / "log") as log:
        assert value_of(log, b"k") == block(2)
        assert len(log) == 1


def test_the_oldest_are_written_over_and_what_was_read_stays(tmp_path: Path) -> None:
    size, count = 6_000, 400
    with opened(tmp_path / "log") as log:
        for number in range(count):
            append(log, key_of(number), block(number, size))
            assert value_of(log, key_of(0)) == block(0, size)
        assert log.live_bytes <= log.capacity_bytes
        there = [i for i in range(count) if log.find(key_of(i)) is not None]
        assert there[0] == 0
        assert there[1:] == list(range(count - len(there) + 1, count))
        assert len(there) * size > 0.8 * log.capacity_bytes
        kept = {key: value_of(log, key) for key in log.held()}
        assert kept == {key_of(i): block(i, size) for i in there}
    with opened(tmp_path / "log") as log:
        assert {key: value_of(log, key) for key in log.held()} == kept
        append(log, b"next", b"x")
        assert value_of(log, b"next") == b"x"


def test_what_is_kept_is_found_and_read_while_its_segment_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwritev
    used = [key_of(i) for i in range(3)]
    moves = 0

    with opened(tmp_path / "log") as log:

        def look_then_write(*arguments: Any) -> int:
            nonlocal moves
            moves += bool(log._kept)
            assert [value_of(log, key) for key in used] == [block(i, 4_000) for i in range(3)]
            return write(*arguments)

        for number, key in enumerate(used):
            append(log, key, block(number, 4_000))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", look_then_write)
            for number in range(3, 600):
                assert append(log, key_of(number), block(number, 4_000))
        assert moves >= 4
        assert log.damaged == 0


def test_a_device_that_fails_while_a_segment_is_written_over_makes_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwritev
    failures = 0

    with opened(tmp_path / "log") as log:

        def fail_behind_the_header(*arguments: Any) -> int:
            nonlocal failures
            is_header = len(arguments[1]) == 1
            if key_of(0) not in log._kept or is_header:
                return write(*arguments)
            failures += 1
            raise OSError(errno.EIO, "no")

        append(log, key_of(0), block(0))
        number = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", fail_behind_the_header)
            while not failures:
                assert value_of(log, key_of(0)) == block(0)
                number += 1
                with contextlib.suppress(OSError):
                    append(log, key_of(number), block(number))
        assert log.find(key_of(0)) is None
        assert append(log, key_of(0), block(0))
        assert value_of(log, key_of(0)) == block(0)
        assert {key: value_of(log, key) for key in log.held()} == {
            key_of(i): block(i) for i in range(number + 1) if log.find(key_of(i)) is not None
        }
        assert log.damaged == 0


def test_an_index_that_is_full_drops_the_oldest(tmp_path: Path) -> None:
    with opened(tmp_path / "log", records_max=128) as log:
        for number in range(1000):
            assert append(log, key_of(number), block(number, 100))
            assert len(log) <= 128
        held = [i for i in range(1000) if log.find(key_of(i)) is not None]
        assert held == list(range(1000 - len(held), 1000))
        assert len(held) >= 125
        assert all(value_of(log, key_of(i)) == block(i, 100) for i in held)
        assert log.live_bytes == len(held) * form.record_bytes(19, 100)
    with opened(tmp_path / "log", records_max=64) as log:
        assert 62 <= len(log) <= 64
        assert value_of(log, key_of(999)) == block(999, 100)
    # Nothing is lost but the memory of it.
    with opened(tmp_path / "log") as log:
        assert len(log) == 1000


@pytest.mark.parametrize(("records_max", "at_once_max"), [(32, 1), (1 << 30, 8)])
def test_a_scan_holds_no_more_records_at_once_than_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records_max: int, at_once_max: int
) -> None:
    with opened(tmp_path / "log") as log:
        for number in range(1000):
            append(log, key_of(number), block(number, 500))
    scan, replay = SsdLog._scan_segment, SsdLog._replay_segment
    lock, waiting, most = threading.Lock(), 0, 0

    def count_scan(log: SsdLog, number: int) -> tuple[list[Any], int]:
        nonlocal waiting, most
        with lock:
            waiting += bool(log._sequences[number])
            most = max(most, waiting)
        return scan(log, number)

    def count_replay(log: SsdLog, number: int, found: Sequence[Any], damaged: int) -> None:
        nonlocal waiting
        replay(log, number, found, damaged)
        with lock:
            waiting -= bool(log._sequences[number])

    monkeypatch.setattr(SsdLog, "_scan_segment", count_scan)
    monkeypatch.setattr(SsdLog, "_replay_segment", count_replay)
    with opened(tmp_path / "log", records_max=records_max) as log:
        assert 0 < len(log) <= records_max
        assert value_of(log, key_of(999)) == block(999, 500)
    assert waiting == 0
    assert 1 <= most <= at_once_max


def test_a_segment_is_written_over_also_where_the_index_dropped_records_of_it(
    tmp_path: Path,
) -> None:
    with opened(tmp_path / "log", records_max=32) as log:
        # More than the file holds twice.
        for number in range(400):
            assert append(log, key_of(number), block(number, 6_000))
            if number >= 8:
                assert value_of(log, key_of(number - 8)) == block(number - 8, 6_000)
        assert 30 <= len(log) <= 32
    with opened(tmp_path / "log") as log:
        assert log.damaged == 0
        assert value_of(log, key_of(399)) == block(399, 6_000)


def test_the_forgotten_stay_forgotten(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        for number in range(8):
            append(log, b"ab"[number % 2 : number % 2 + 1] + key_of(number), block(number))
        generation = log.generation
        assert log.forget(b"a") == 4
        assert not log.append(
            b"a" + key_of(0), memoryview(b"late"), 0, version=1, generation=generation
        )
        append(log, b"a" + key_of(8), block(8))
    with opened(tmp_path / "log") as log:
        assert sorted(log.held()) == sorted(
            [b"a" + key_of(8), *(b"b" + key_of(i) for i in (1, 3, 5, 7))]
        )


def test_a_forget_says_what_it_named_and_of_many_the_last(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        log.forget(b"L1ba")
        before = log.generation
        log.forget(b"L1bb")
        assert log.forgotten_since(b"L1bb-1", before)
        assert not log.forgotten_since(b"L1ba-1", before)
        assert not log.append(b"L1bb-1", memoryview(b"v"), 0, version=1, generation=before)
        assert log.append(b"L1ba-1", memoryview(b"v"), 0, version=1, generation=before)
        for _ in range(64):
            log.forget(b"L1bc")
        # Which was the first of them is not known any more.
        assert log.forgotten_since(b"L1ba-1", before)
        assert not log.forgotten_since(b"L1ba-1", before + 1)


def test_a_file_that_was_made_and_never_written_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with opened(path):
        assert path.exists()
    assert not path.exists()
    path.touch()
    with opened(path):
        pass
    assert path.exists()


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        assert not append(log, b"k", bytes(log.segment_bytes))
        assert not append(log, b"", b"x")
        assert not append(log, bytes(1025), b"x")
        assert append(log, b"k", bytes(log.segment_bytes - form.PAGE_BYTES - 128))


def test_a_record_behind_what_is_kept_stays_in_its_segment(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        large = log.segment_bytes - form.PAGE_BYTES - 128
        for number in range(3 * log.capacity_bytes // 6_000):
            append(log, key_of(number), block(number, 6_000))
            value_of(log, key_of(number))
            if number % 50 == 49:
                assert append(log, b"large", block(number, large))
                assert value_of(log, b"large") == block(number, large)
        held = {key: value_of(log, key) for key in log.held()}
        assert None not in held.values()
        capacity_bytes = log.capacity_bytes
    assert os.path.getsize(tmp_path / "log") == capacity_bytes
    with opened(tmp_path / "log") as log:
        assert {key: value_of(log, key) for key in log.held()} == held
        assert log.damaged == 0


def test_a_forget_that_failed_is_done_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "no")

    with opened(tmp_path / "log") as log:
        append(log, b"a", block(1))
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwritev", lambda *_: fail(0))
            with pytest.raises(OSError, match="no"):
                log.forget(b"a")
        assert log.forget(b"a") == 0
    with opened(tmp_path / "log") as log:
        assert log.held() == []


def test_a_forget_does_not_wait_for_ever_behind_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_FORGET_WAIT_S", 0.01)
    with opened(tmp_path / "log") as log:
        append(log, key_of(1), block(1))
        with log._append_lock, pytest.raises(OSError, match="busy with an earlier write"):
            log.forget(b"L1b")
        assert value_of(log, key_of(1)) == block(1)
        assert log.forget(b"L1b") == 1


def test_a_late_reader_does_not_drop_a_record_that_moved_to_its_place(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        append(log, b"hot", block(0))
        old = log.find(b"hot")
        assert old is not None
        number = 0
        while (entry := log.find(b"hot")) is None or entry.sequence == old.sequence:
            value_of(log, b"hot")
            append(log, key_of(number := number + 1), block(number))
        assert log.read(b"hot", old, bytearray()) is None
        assert value_of(log, b"hot") == block(0)
        assert log.damaged == 0


def test_a_segment_that_cannot_be_read_is_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "log") as log:
        for number in range(30):
            append(log, key_of(number), block(number, 6_000))
        first = log.find(key_of(0))
        assert first is not None
        end = first.offset + log.segment_bytes
    pread = os.pread

    def failing(descriptor: int, length: int, offset: int) -> bytes:
        if form.PAGE_BYTES <= offset < end - form.PAGE_BYTES:
            raise OSError(errno.EIO, "bad sector")
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", failing)
    with opened(tmp_path / "log") as log:
        assert log.damaged > 0
        assert 0 < len(log) < 30
        assert value_of(log, key_of(29)) == block(29, 6_000)


def test_a_larger_size_keeps_what_there_is_and_a_smaller_one_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        for number in range(30):
            append(log, key_of(number), block(number, 6_000))
    with opened(tmp_path / "log", 2 * BYTES_MIN) as log:
        assert len(log) == 30
        assert log.capacity_bytes > 1.8 * BYTES_MIN
    with pytest.raises(ConfigurationError, match="cannot be cut"):
        SsdLog.open(str(tmp_path / "log"), BYTES_MIN)


# ---- damage ----


def test_a_flipped_or_cut_record_is_a_miss_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with opened(path) as log:
        entries = []
        for number in range(6):
            append(log, key_of(number), block(number))
            entries.append(log.find(key_of(number)))
    data = bytearray(path.read_bytes())
    first, second, *_, last = [entry.offset for entry in entries if entry is not None]
    data[first + 5_000] ^= 1  # in a value
    data[second + 8] ^= 1  # in a header
    data[last + 9_000 :] = b""
    path.write_bytes(data)
    with opened(path) as log:
        assert log.damaged == 1
        values = [value_of(log, key_of(number)) for number in range(6)]
        assert values == [None, None, block(2), block(3), block(4), None]
        assert log.damaged == 3
        assert len(log) == 3
        append(log, key_of(0), block(0))
        assert value_of(log, key_of(0)) == block(0)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, dict[bytes, set[bytes]]]:
    """A small log that went round, and every value that each key ever had."""
    path = tmp_path_factory.mktemp("image") / "log"
    possible: dict[bytes, set[bytes]] = {}
    with opened(path) as log:
        for number in range(60):
            key, value = key_of(number % 40), block(number, 25_000 - number)
            append(log, key, value)
            possible.setdefault(key, set()).add(value)
        log.forget(key_of(3))
    return path, path.read_bytes(), possible


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_damage_gives_wrong_bytes(
    image: tuple[Path, bytes, dict[bytes, set[bytes]]], data: st.DataObject
) -> None:
    path, whole, possible = image
    damaged = bytearray(whole)
    # Headers are few among the bytes; half of the damage is where they are.
    starts = [0, *(i * (64 << 10) + form.PAGE_BYTES for i in range(15))]
    place = st.one_of(
        st.integers(form.PAGE_BYTES, len(whole) - 1),
        st.builds(lambda a, b: a + b, st.sampled_from(starts[1:]), st.integers(0, 8200)),
    )
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(place)
        junk = data.draw(st.binary(min_size=1, max_size=200))
        damaged[at : at + len(junk)] = junk
    cut = data.draw(st.one_of(st.none(), st.integers(form.PAGE_BYTES, len(whole))))
    path.write_bytes(damaged[:cut])
    with opened(path) as log:
        for key in log.held():
            value = value_of(log, key)
            assert value is None or value in possible[key]
        append(log, b"new", b"value")
        assert value_of(log, b"new") == b"value"


@given(st.binary(max_size=2000))
def test_any_bytes_parse_to_none(data: bytes) -> None:
    assert form.parse_record(data) is None
    assert form.parse_record(form.RECORD_MAGIC + data) is None
    assert form.parse_superblock(data) is None
    assert form.parse_segment(data, 0, 0) is None


def test_a_value_cannot_pass_for_a_record(tmp_path: Path) -> None:
    """Whoever chooses a block's bytes writes headers into them, of another file's id."""
    path = tmp_path / "log"
    with opened(path) as log:
        forged = form.RecordHeader(form.OBJECT, 6, 0, form.crc32c(b"evil"), 4, 12345, 1)
        record = form.pack_record(forged, b"victim") + b"evil"
        append(log, b"aa", bytes(64) * 2)
        entry = log.find(b"aa")
        # The value is aligned as a record, so that only the id is wrong.
        pad = -(form.RECORD_HEADER_BYTES + 2) % form.ALIGNMENT
        append(log, b"bb", bytes(pad) + record)
        append(log, b"cc", b"after")
        there = log.find(b"bb")
    assert entry is not None
    assert there is not None
    data = bytearray(path.read_bytes())
    assert data.find(record) % form.ALIGNMENT == 0
    data[there.offset] ^= 1
    path.write_bytes(data)
    with opened(path) as log:
        assert sorted(log.held()) == [b"aa", b"cc"]
        assert log.damaged == 1


# ---- files that are refused ----


def test_a_file_has_one_node(tmp_path: Path) -> None:
    with opened(tmp_path / "log"), pytest.raises(ConfigurationError, match="another node"):
        SsdLog.open(str(tmp_path / "log"), BYTES_MIN)
    with opened(tmp_path / "log"):
        pass


def test_what_is_no_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    for content in (b"x", bytes(5000), random.Random(1).randbytes(9000)):
        path = tmp_path / "other"
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="something else"):
            SsdLog.open(str(path), BYTES_MIN)
        assert path.read_bytes() == content


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(form, "VERSION", 2)
        with opened(tmp_path / "log") as log:
            assert append(log, b"k", b"v")
    with pytest.raises(ConfigurationError, match="version 2"):
        SsdLog.open(str(tmp_path / "log"), BYTES_MIN)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Is a directory"):
        SsdLog.open(str(tmp_path), BYTES_MIN)
    with pytest.raises(ConfigurationError, match="No such file"):
        SsdLog.open(str(tmp_path / "missing" / "log"), BYTES_MIN)
    with pytest.raises(ConfigurationError, match="no regular file"):
        SsdLog.open("/dev/null", BYTES_MIN)
    with pytest.raises(ConfigurationError, match="below the least"):
        SsdLog.open(str(tmp_path / "log"), BYTES_MIN - 1)


def test_a_full_device_is_refused_at_once_and_gets_its_space_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    free = os.statvfs(tmp_path)
    for is_there in (False, True):
        if is_there:
            path.touch()
        with pytest.raises(ConfigurationError, match="give less --ssd-bytes"):
            SsdLog.open(str(path), 4 * free.f_bavail * free.f_frsize)
        # What somebody else made stays.
        assert path.exists() == is_there
    assert path.stat().st_size == 0
    with opened(path) as log:
        assert append(log, b"k", b"v")


def test_a_failed_write_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    with opened(tmp_path / "log") as log:
        append(log, b"k", b"old")
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", full)
            with pytest.raises(OSError, match="no space"):
                append(log, b"n", b"new")
        assert log.find(b"n") is None
        assert value_of(log, b"k") == b"old"
        assert append(log, b"n", b"new")
        assert value_of(log, b"n") == b"new"
