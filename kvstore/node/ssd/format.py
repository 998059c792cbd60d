"""The bytes of an SSD log: this is the specification, version 1. Little endian.

    file      superblock page, then segments of one size
    segment   header page, then records, each at a multiple of 64 bytes
    record    header of 64 bytes, key, value

A segment's *sequence* is one higher than that of the segment written before it; its records repeat
it, so that what is left of an earlier round is not taken for theirs. They repeat the file's random
id as well: nobody who chooses the bytes of a value can make them pass for a record. Each header has
a CRC32C, a record's with its key; the value has its own. Parsing gives None for whatever is not
whole, and never raises.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

from kvstore._native import ffi, lib

VERSION: Final = 1
PAGE_BYTES: Final = 4096
ALIGNMENT: Final = 64
KEY_BYTES_MAX: Final = 1024

#: Kinds of records: a block, or "all earlier records whose keys begin with this one are gone".
OBJECT: Final = 1
FORGOTTEN: Final = 2

_FILE_MAGIC: Final = b"KVSSDLOG"
_SEGMENT_MAGIC: Final = b"KVSEGMNT"
RECORD_MAGIC: Final = b"KVRC"
# magic, version, reserved, segment bytes, file id
_SUPERBLOCK: Final = struct.Struct("<8sIIQQ")
# magic, file id, sequence, number of the segment in the file
_SEGMENT: Final = struct.Struct("<8sQQQ")
# magic, kind, key bytes, codec, value CRC, value bytes, file id, sequence, reserved
_RECORD: Final = struct.Struct("<4sHHIIQQQ20x")
_CRC: Final = struct.Struct("<I")
RECORD_HEADER_BYTES: Final = _RECORD.size + _CRC.size


@dataclass(frozen=True, slots=True)
class Superblock:
    """The first page of a file."""

    version: int
    segment_bytes: int
    file_id: int


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """The header of a record, without its key."""

    kind: int
    key_bytes: int
    codec: int
    value_crc: int
    value_bytes: int
    file_id: int
    sequence: int

    @property
    def record_bytes(self) -> int:
        """Header, key and value, up to where the next record may begin."""
        return record_bytes(self.key_bytes, self.value_bytes)


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """CRC32C of a buffer, going on from `crc`. Other threads run meanwhile."""
    return int(lib.kv_crc32c(crc, ffi.from_buffer(data), len(data)))


def record_bytes(key_bytes: int, value_bytes: int) -> int:
    """What a record takes in the file."""
    used = RECORD_HEADER_BYTES + key_bytes + value_bytes
    return -(-used // ALIGNMENT) * ALIGNMENT


def pack_superblock(segment_bytes: int, file_id: int) -> bytes:
    """The first page."""
    return _page(_SUPERBLOCK.pack(_FILE_MAGIC, VERSION, 0, segment_bytes, file_id))


def parse_superblock(page: bytes) -> Superblock | None:
    """The superblock of any version whose checksum holds; None: it is not one."""
    fields = _checked(page, _SUPERBLOCK)
    if fields is None or fields[0] != _FILE_MAGIC:
        return None
    return Superblock(fields[1], fields[3], fields[4])


def pack_segment(file_id: int, sequence: int, number: int) -> bytes:
    """The header page of a segment."""
    return _page(_SEGMENT.pack(_SEGMENT_MAGIC, file_id, sequence, number))


def parse_segment(page: bytes, file_id: int, number: int) -> int | None:
    """The sequence of a segment of this file at this place; None: it was never written."""
    fields = _checked(page, _SEGMENT)
    if fields is None or fields[0] != _SEGMENT_MAGIC or fields[1] != file_id:
        return None
    return int(fields[2]) if fields[3] == number else None


def pack_record(header: RecordHeader, key: bytes) -> bytes:
    """Header and key."""
    fields = _RECORD.pack(
        RECORD_MAGIC,
        header.kind,
        header.key_bytes,
        header.codec,
        header.value_crc,
        header.value_bytes,
        header.file_id,
        header.sequence,
    )
    return fields + _CRC.pack(crc32c(key, crc32c(fields))) + key


def parse_record(data: bytes | bytearray | memoryview) -> tuple[RecordHeader, bytes] | None:
    """The header and the key that `data` begins with; None: it does not begin with a record."""
    if len(data) < RECORD_HEADER_BYTES:
        return None
    magic, *fields = _RECORD.unpack_from(data)
    header = RecordHeader(*fields)
    end = RECORD_HEADER_BYTES + header.key_bytes
    if magic != RECORD_MAGIC or not 0 < header.key_bytes <= KEY_BYTES_MAX or len(data) < end:
        return None
    key = bytes(data[RECORD_HEADER_BYTES:end])
    (crc,) = _CRC.unpack_from(data, _RECORD.size)
    if crc32c(key, crc32c(bytes(data[: _RECORD.size]))) != crc:
        return None
    return (header, key) if header.kind in (OBJECT, FORGOTTEN) else None


def _page(fields: bytes) -> bytes:
    return (fields + _CRC.pack(crc32c(fields))).ljust(PAGE_BYTES, b"\0")


def _checked(page: bytes, form: struct.Struct) -> tuple[Any, ...] | None:
    if len(page) < form.size + _CRC.size:
        return None
    (crc,) = _CRC.unpack_from(page, form.size)
    return form.unpack_from(page) if crc32c(page[: form.size]) == crc else None
