"""The file of the SSD tier: a ring of segments, of which the oldest is written over first.

One thread at a time appends; any number read. The index is in memory and is made anew by a scan of
the records' headers when the file is opened. A record is believed only after its header, its key
and the CRC of its value were read back and hold; anything else is a miss, and is forgotten.

The index has room for so many records; whoever has more is told of the newest.

Nothing waits for the device but a segment that is full, and `forget`. What a failure of power
leaves half written fails its checks, and so is a miss. The end of the process alone loses nothing
that was appended.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, Self

from kvstore.errors import ConfigurationError
from kvstore.node.ssd import format as form
from kvstore.node.ssd.file import (
    open_file,
    read_fully,
    read_or_make_superblock,
    take,
    write_fully,
)
from kvstore.node.units import format_bytes

BYTES_MIN: Final = 1 << 20
#: What the index takes of this process's memory for a record, with a key of up to 100 bytes.
INDEX_BYTES_A_RECORD: Final = 512
_SCAN_THREADS: Final = 8
_RESYNC_BYTES: Final = 256 << 10
#: For a write under way, before a `forget` or a `close` fails.
_FORGET_WAIT_S: Final = 10.0
_CLOSE_WAIT_S: Final = 10.0
#: Calls of `forget` of which it is known what they named.
_FORGOTTEN_MAX: Final = 64
#: What is used moves on when its segment is written over, up to this share of a segment.
_KEPT_SHARE: Final = 4
#: A full index drops that share of its records at once, the oldest, for it looks for them from the
#: first place on.
_DROPPED_SHARE: Final = 64


class Entry(NamedTuple):
    """Where a record is, and what it holds."""

    offset: int
    value_bytes: int
    codec: int
    value_crc: int
    #: Of the segment: a record of a segment that was written over since has another one.
    sequence: int
    #: Of the object in this node's memory that has the same bytes; 0: not known.
    version: int


class _Found(NamedTuple):
    """One record of a scan."""

    header: form.RecordHeader
    key: bytes
    offset: int


class SsdLog:
    """A log that is open, and its index. Thread-safe. Made by `open`."""

    def __init__(
        self,
        path: str,
        descriptor: int,
        superblock: form.Superblock,
        segments: int,
        records_max: int,
    ) -> None:
        self.path = path
        #: Records that the index has room for.
        self.records_max = records_max
        self.segment_bytes = superblock.segment_bytes
        #: Records and gaps that did not hold what they should.
        self.damaged = 0
        #: Changes with each `forget`, in one step with the index.
        self.generation = 0
        #: Bytes of the records that can be found.
        self.live_bytes = 0
        #: By `open`; so nobody misses it if it stays empty.
        self._made = False
        #: The latest calls of `forget`: the generation that each began, and its prefix.
        self._forgotten: deque[tuple[int, bytes]] = deque(maxlen=_FORGOTTEN_MAX)
        self._descriptor = descriptor
        self._file_id = superblock.file_id
        self._append_lock = threading.Lock()
        self._lock = threading.Lock()
        #: In the order in which the records were written: those of the oldest segment first.
        self._index: dict[bytes, Entry] = {}
        self._used: set[bytes] = set()
        #: What is kept of the segment that is being written over, until it has its new place.
        self._kept: dict[bytes, tuple[Entry, bytes]] = {}
        #: Of each segment; 0 if it was never written.
        self._sequences = [0] * segments
        self._number = 0
        #: Where the next record goes; as if the segment were full until one has begun.
        self._cursor = self._end_of(0)

    @classmethod
    def open(cls, path: str, bytes_max: int, records_max: int = sys.maxsize) -> Self:
        """Opens or makes the file at `path` and reads its index; it takes `bytes_max` at once.

        Of more than `records_max` records the newest are found.

        `ConfigurationError` with the next step if the file is another one's, of another version,
        in use by another node, or cannot be had.
        """
        if bytes_max < BYTES_MIN:
            raise ConfigurationError(
                f"--ssd-bytes {format_bytes(bytes_max)} is below the least,"
                f" {format_bytes(BYTES_MIN)}"
            )
        descriptor, made = open_file(path)
        is_new = os.fstat(descriptor).st_size == 0
        try:
            superblock = read_or_make_superblock(path, descriptor, bytes_max)
            segments = (bytes_max - form.PAGE_BYTES) // superblock.segment_bytes
            if segments < 2:
                raise ConfigurationError(
                    f"--ssd {path} has segments of {format_bytes(superblock.segment_bytes)}, of"
                    f" which --ssd-bytes {format_bytes(bytes_max)} has no room for two: give more,"
                    " or remove the file"
                )
            take(path, descriptor, int(segments), superblock.segment_bytes)
            log = cls(path, descriptor, superblock, int(segments), records_max)
            log._scan()
        except BaseException:
            if made:
                os.unlink(path)
            elif is_new:
                # Its segments were for a size that was not to be had.
                os.ftruncate(descriptor, 0)
            os.close(descriptor)
            raise
        log._made = made
        return log

    def close(self, timeout_s: float = _CLOSE_WAIT_S) -> bool:
        """Closes the file. The caller has ended all reads; appends fail. May be called again.

        A file that `open` made and that nothing was written to is removed: a node that could not
        start leaves none behind.
        False if a write or a `forget` under way does not end in that time: it stays open.
        """
        if not self._append_lock.acquire(timeout=timeout_s):
            return False
        descriptor, self._descriptor = self._descriptor, -1
        self._append_lock.release()
        if descriptor >= 0:
            if self._made and not any(self._sequences):
                # Ours still, by its lock.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
            os.close(descriptor)
        return True

    # ---- the index ----

    @property
    def capacity_bytes(self) -> int:
        """What the file takes."""
        return form.PAGE_BYTES + len(self._sequences) * self.segment_bytes

    def __len__(self) -> int:
        return len(self._index)

    def find(self, key: bytes) -> Entry | None:
        """The record of a key, not yet believed."""
        return self._index.get(key)

    def held(self) -> list[bytes]:
        """All keys that have a record."""
        with self._lock:
            return list(self._index)

    def adopt(self, key: bytes, entry: Entry, version: int) -> bool:
        """Notes that the object of this version has the record's bytes, if it is still there."""
        with self._lock:
            if self._index.get(key) is not entry:
                return False
            self._index[key] = entry._replace(version=version)
            return True

    def fits(self, key: bytes, value_bytes: int) -> bool:
        """Whether a record can be that large."""
        room = self.segment_bytes - form.PAGE_BYTES
        return form.record_bytes(len(key), value_bytes) <= room

    # ---- reading ----

    def read(self, key: bytes, entry: Entry, buffer: bytearray) -> memoryview | None:
        """The value of a record, in `buffer`, which grows to its size; None: it is a miss.

        OSError if the device says so; the record is forgotten.
        """
        if len(buffer) < entry.value_bytes:
            buffer.extend(bytes(entry.value_bytes - len(buffer)))
        value = memoryview(buffer)[: entry.value_bytes]
        kept = self._kept.get(key)
        if kept is not None and kept[0][:5] == entry[:5]:
            value[:] = kept[1]
            return value
        head = bytearray(form.RECORD_HEADER_BYTES + len(key))
        try:
            read = read_fully(self._descriptor, [head, value], entry.offset)
        except OSError:
            value.release()
            self._drop_damaged(key, entry)
            raise
        parsed = form.parse_record(head) if read == len(head) + len(value) else None
        if (
            parsed is None
            or parsed[1] != key
            or parsed[0].file_id != self._file_id
            or parsed[0].sequence != entry.sequence
            or parsed[0].value_bytes != entry.value_bytes
            or parsed[0].value_crc != form.crc32c(value)
        ):
            value.release()
            self._drop_damaged(key, entry)
            return None
        with self._lock:
            if self._index.get(key) is not None:
                self._used.add(key)
        return value

    def _drop_damaged(self, key: bytes, entry: Entry) -> None:
        """A record that was written over, or forgotten, while it was read is not damaged."""
        with self._lock:
            found = self._index.get(key)
            if found is not None and found[:5] == entry[:5] and key not in self._kept:
                self._remove(key)
                self.damaged += 1

    # ---- writing ----

    def append(
        self, key: bytes, value: memoryview, codec: int, *, version: int, generation: int
    ) -> bool:
        """Writes a record, in place of an earlier one of the key.

        False if it is too large, or if the key was forgotten since `generation`. OSError if the
        device says so; then there is no record.
        """
        if not 0 < len(key) <= form.KEY_BYTES_MAX or not self.fits(key, len(value)):
            return False
        crc = form.crc32c(value)
        with self._append_lock:
            if self.forgotten_since(key, generation):
                return False
            self._write(form.OBJECT, key, value, codec, crc, version)
        return True

    def forget(self, prefix: bytes) -> int:
        """Drops the records whose keys begin with `prefix`, for good; returns how many there were.

        What is being appended meanwhile is refused. OSError if the device says so: they are gone
        then until the node is started again.
        """
        if not 0 < len(prefix) <= form.KEY_BYTES_MAX:
            raise ValueError(f"a prefix has 1 to {form.KEY_BYTES_MAX} bytes, not {len(prefix)}")
        if not self._append_lock.acquire(timeout=_FORGET_WAIT_S):
            raise OSError(errno.ETIMEDOUT, "the device is busy with an earlier write")
        try:
            with self._lock:
                gone = [key for key in self._index if key.startswith(prefix)]
                for key in gone:
                    self._remove(key)
                # Last: whoever sees this generation finds nothing of what is gone.
                self.generation += 1
                self._forgotten.append((self.generation, prefix))
            # Also where nothing is found: an earlier call may have failed behind the index.
            self._write(form.FORGOTTEN, prefix, memoryview(b""), 0, form.crc32c(b""), 0)
            os.fdatasync(self._descriptor)
        finally:
            self._append_lock.release()
        return len(gone)

    def forgotten_since(self, key: bytes, generation: int) -> bool:
        """Whether a `forget` since `generation` named the key, or may have: there were too many."""
        with self._lock:
            if self.generation - generation > len(self._forgotten):
                return True
            return any(
                number > generation and key.startswith(prefix) for number, prefix in self._forgotten
            )

    def _write(
        self, kind: int, key: bytes, value: memoryview, codec: int, crc: int, version: int
    ) -> None:
        size = form.record_bytes(len(key), len(value))
        if self._cursor + size > self._end_of(self._number) or not self._sequences[self._number]:
            self._begin_segment(size)
        sequence, offset = self._sequences[self._number], self._cursor
        assert offset + size <= self._end_of(self._number)
        header = form.RecordHeader(kind, len(key), codec, crc, len(value), self._file_id, sequence)
        write_fully(self._descriptor, [form.pack_record(header, key), value], offset)
        self._cursor += size
        if kind == form.OBJECT:
            self._insert(key, Entry(offset, len(value), codec, crc, sequence, version))

    def _begin_segment(self, size: int) -> None:
        """Goes on in the segment that was written longest ago, with room for a record of `size`.

        What was used of it stays, and is found all the time.
        """
        if self._sequences[self._number]:
            os.fdatasync(self._descriptor)
        number = self._sequences.index(min(self._sequences))
        room = self.segment_bytes - form.PAGE_BYTES - size
        keys = self._oldest_keys(self._sequences[number])
        kept = dict(self._to_keep(keys, min(self.segment_bytes // _KEPT_SHARE, room)))
        with self._lock:
            for key in keys:
                if key not in kept:
                    self._remove(key)
            self._kept = kept
        try:
            self._write_over(number, kept)
        finally:
            with self._lock:
                self._kept = {}
                for key, (entry, _value) in kept.items():
                    found = self._index.get(key)
                    # The device failed before it was moved.
                    if found is not None and found.sequence == entry.sequence:
                        self._remove(key)

    def _write_over(self, number: int, kept: Mapping[bytes, tuple[Entry, bytes]]) -> None:
        sequence = max(self._sequences) + 1
        begin = self._begin_of(number)
        write_fully(self._descriptor, [form.pack_segment(self._file_id, sequence, number)], begin)
        self._sequences[number] = sequence
        self._number, self._cursor = number, begin + form.PAGE_BYTES
        for key, (entry, value) in kept.items():
            self._write(
                form.OBJECT, key, memoryview(value), entry.codec, entry.value_crc, entry.version
            )

    def _oldest_keys(self, sequence: int) -> list[bytes]:
        """The keys of the records of the oldest segment. Appending waits meanwhile."""
        with self._lock:
            oldest = itertools.takewhile(
                lambda item: item[1].sequence == sequence, self._index.items()
            )
            return [key for key, _entry in oldest]

    def _to_keep(
        self, keys: Sequence[bytes], room: int
    ) -> Iterator[tuple[bytes, tuple[Entry, bytes]]]:
        """Records that were read since they were written where they are, up to `room` bytes."""
        buffer = bytearray()
        for key in keys:
            entry = self._index.get(key)
            if key not in self._used or entry is None:
                continue
            size = form.record_bytes(len(key), entry.value_bytes)
            if size > room:
                continue
            try:
                value = self.read(key, entry, buffer)
            except OSError:
                continue
            if value is not None:
                room -= size
                yield key, (entry, bytes(value))
                value.release()

    def _insert(self, key: bytes, entry: Entry) -> None:
        with self._lock:
            self._remove(key)
            self._index[key] = entry
            self.live_bytes += form.record_bytes(len(key), entry.value_bytes)
            if len(self._index) > self.records_max:
                count = min(1 + self.records_max // _DROPPED_SHARE, self.records_max)
                for oldest in list(itertools.islice(self._index, count)):
                    self._remove(oldest)

    def _remove(self, key: bytes) -> None:
        entry = self._index.pop(key, None)
        self._used.discard(key)
        if entry is not None:
            self.live_bytes -= form.record_bytes(len(key), entry.value_bytes)

    # ---- the scan ----

    def _scan(self) -> None:
        """Makes the index from the segments, those written first first.

        So many at a time that they have about as many records as the index has room for, so that
        it needs little more memory than the index.
        """
        numbers = range(len(self._sequences))
        self._sequences = [self._sequence_of(number) for number in numbers]
        order = sorted(numbers, key=self._sequences.__getitem__)
        # Those that were never written come first, and have no records.
        blank = self._sequences.count(0)
        begin, count, most = 0, max(1, blank), 1
        with ThreadPoolExecutor(_SCAN_THREADS, "ssd-scan") as pool:
            while some := order[begin : begin + count]:
                begin += count
                for number, scan in zip(some, pool.map(self._scan_segment, some), strict=True):
                    self._replay_segment(number, *scan)
                    most = max(most, len(scan[0]))
                # No more than before in all, for the next ones may have smaller records.
                count = max(1, min(begin - blank, _SCAN_THREADS, self.records_max // most))

    def _sequence_of(self, number: int) -> int:
        """What the header of a segment says; 0: nothing, or it cannot be read."""
        try:
            page = os.pread(self._descriptor, form.PAGE_BYTES, self._begin_of(number))
        except OSError:
            return 0
        return form.parse_segment(page, self._file_id, number) or 0

    def _replay_segment(self, number: int, found: Sequence[_Found], damaged: int) -> None:
        self.damaged += damaged
        if not self._sequences[number]:
            return
        # The last one that has records is the one to go on with.
        self._number, self._cursor = number, self._begin_of(number) + form.PAGE_BYTES
        for record in found:
            self._cursor = record.offset + record.header.record_bytes
            self._replay(record)

    def _replay(self, record: _Found) -> None:
        header = record.header
        if header.kind == form.FORGOTTEN:
            for key in [key for key in self._index if key.startswith(record.key)]:
                self._remove(key)
            return
        self._insert(
            record.key,
            Entry(
                record.offset,
                header.value_bytes,
                header.codec,
                header.value_crc,
                header.sequence,
                0,
            ),
        )

    def _scan_segment(self, number: int) -> tuple[list[_Found], int]:
        """The records of a segment in order, and how many gaps are between them.

        What the device cannot read ends the segment, as a gap.
        """
        begin, end = self._begin_of(number), self._end_of(number)
        found: list[_Found] = []
        sequence, damaged = self._sequences[number], 0
        try:
            if not sequence:
                return [], int(any(os.pread(self._descriptor, form.PAGE_BYTES, begin)))
            offset = begin + form.PAGE_BYTES
            while offset < end:
                record = self._record_at(offset, sequence, end)
                if record is None:
                    record = self._next_record(offset + form.ALIGNMENT, sequence, end)
                    if record is None:
                        break
                    damaged += 1
                found.append(record)
                offset = record.offset + record.header.record_bytes
        except OSError:
            damaged += 1
        return found, damaged

    def _record_at(self, offset: int, sequence: int, end: int) -> _Found | None:
        head_bytes = form.RECORD_HEADER_BYTES + form.KEY_BYTES_MAX
        parsed = form.parse_record(
            os.pread(self._descriptor, min(head_bytes, end - offset), offset)
        )
        if parsed is None:
            return None
        header, key = parsed
        fits = offset + header.record_bytes <= end
        if header.file_id != self._file_id or header.sequence != sequence or not fits:
            return None
        return _Found(header, key, offset)

    def _next_record(self, offset: int, sequence: int, end: int) -> _Found | None:
        """The first record from `offset` on, behind bytes that are none."""
        while offset < end:
            window = os.pread(self._descriptor, min(_RESYNC_BYTES, end - offset), offset)
            at = window.find(form.RECORD_MAGIC)
            while at >= 0:
                if at % form.ALIGNMENT == 0:
                    record = self._record_at(offset + at, sequence, end)
                    if record is not None:
                        return record
                at = window.find(form.RECORD_MAGIC, at + 1)
            if len(window) < _RESYNC_BYTES:
                return None
            offset += _RESYNC_BYTES
        return None

    # ---- places ----

    def _begin_of(self, number: int) -> int:
        return form.PAGE_BYTES + number * self.segment_bytes

    def _end_of(self, number: int) -> int:
        return self._begin_of(number + 1)
