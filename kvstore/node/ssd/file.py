"""The file under a log: whose it is, how large it is, and reads and writes that are whole."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Sequence
from typing import Final, TypeAlias

from kvstore.errors import ConfigurationError
from kvstore.node.ssd import format as form
from kvstore.node.units import format_bytes

_SEGMENT_BYTES_MIN: Final = 64 << 10
_SEGMENT_BYTES_MAX: Final = 64 << 20
_SEGMENTS_WANTED: Final = 16
_Writable: TypeAlias = bytearray | memoryview
_Readable: TypeAlias = bytes | bytearray | memoryview


def open_file(path: str) -> tuple[int, bool]:
    """Opens or makes a file that nobody else has; returns its descriptor, and whether it is new."""
    flags = os.O_RDWR | os.O_CLOEXEC
    made = True
    try:
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            made = False
            descriptor = os.open(path, flags)
    except OSError as error:
        raise ConfigurationError(
            f"--ssd {path}: {error.strerror}: give a file in a directory that this user can write"
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigurationError(f"--ssd {path} is no regular file: give one on a file system")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigurationError(
            f"--ssd {path} is in use by another node: give each node a file of its own"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, made


def read_or_make_superblock(path: str, descriptor: int, bytes_max: int) -> form.Superblock:
    """The first page. A new file gets one, with segments that suit its size."""
    try:
        page = os.pread(descriptor, form.PAGE_BYTES, 0)
        if not page:
            segment_bytes = _SEGMENT_BYTES_MIN
            while 2 * segment_bytes * _SEGMENTS_WANTED <= bytes_max:
                segment_bytes *= 2
            segment_bytes = min(segment_bytes, _SEGMENT_BYTES_MAX)
            page = form.pack_superblock(segment_bytes, secrets.randbits(64))
            write_fully(descriptor, [page], 0)
            os.fsync(descriptor)
    except OSError as error:
        raise ConfigurationError(
            f"--ssd {path}: {error.strerror}: give a file on another device"
        ) from error
    superblock = form.parse_superblock(page)
    if superblock is None:
        raise ConfigurationError(
            f"--ssd {path} holds something else, or its first page is damaged: give another path,"
            " or remove the file if nobody needs it"
        )
    if superblock.version != form.VERSION:
        raise ConfigurationError(
            f"--ssd {path} is of version {superblock.version}, this node knows {form.VERSION}:"
            " give another path, or remove the file"
        )
    bounds = _SEGMENT_BYTES_MIN <= superblock.segment_bytes <= _SEGMENT_BYTES_MAX
    if not bounds or superblock.segment_bytes % form.PAGE_BYTES:
        raise ConfigurationError(
            f"--ssd {path} has segments of {superblock.segment_bytes} bytes, which no node makes:"
            " remove the file"
        )
    return superblock


def take(path: str, descriptor: int, segments: int, segment_bytes: int) -> None:
    """Gives the file its size, so that a full device is found at the start."""
    size = form.PAGE_BYTES + segments * segment_bytes
    present = os.fstat(descriptor)
    if present.st_size >= size + segment_bytes:
        # What is cut off may hold the end of what is left: that blocks were forgotten, or replaced.
        raise ConfigurationError(
            f"--ssd {path} is of {format_bytes(present.st_size)}, and a log cannot be cut: give"
            " --ssd-bytes of at least that, or remove the file"
        )
    system = os.fstatvfs(descriptor)
    free = system.f_bavail * system.f_frsize
    wanted = size - 512 * present.st_blocks
    try:
        # Asked first: to take what there is and fail then would starve others meanwhile.
        if wanted > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if present.st_size > size:
            os.ftruncate(descriptor, size)  # less than a segment: no record is there
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            os.ftruncate(descriptor, size)
            return
        os.ftruncate(descriptor, min(present.st_size, size))
        raise ConfigurationError(
            f"--ssd {path}: {error.strerror}: {format_bytes(wanted)} are wanted,"
            f" {format_bytes(free)} are free: give less --ssd-bytes"
        ) from error


def read_fully(descriptor: int, buffers: Sequence[_Writable], offset: int) -> int:
    """Reads until the buffers are full or the file ends; returns how many bytes."""
    total = sum(len(buffer) for buffer in buffers)
    done = more = os.preadv(descriptor, buffers, offset)
    while more and done < total:
        more = os.preadv(descriptor, _rest(buffers, done), offset + done)
        done += more
    return done


def write_fully(descriptor: int, buffers: Sequence[_Readable], offset: int) -> None:
    """Writes all of the buffers, one behind the other."""
    total = sum(len(buffer) for buffer in buffers)
    done = os.pwritev(descriptor, buffers, offset)
    while done < total:
        done += os.pwritev(descriptor, _rest(buffers, done), offset + done)


def _rest(buffers: Sequence[_Readable], done: int) -> list[memoryview]:
    """What is left of buffers after their first `done` bytes."""
    views = []
    for buffer in buffers:
        skipped = min(done, len(buffer))
        done -= skipped
        if skipped < len(buffer):
            views.append(memoryview(buffer)[skipped:])
    return views
