"""Structured values: what `put_object` stores and `get_object` accepts.

They are msgpack, which is data and nothing else: reading one never runs code. The codec number is
stored beside the value, so that one kind is never taken for the other.
"""

from __future__ import annotations

from typing import Any, Final

from kvstore.errors import CodecMismatch, ValueInvalid

#: The numbers in the object header (`kv_call.codec`).
CODEC_BYTES: Final = 0
CODEC_MSGPACK: Final = 1


def pack(value: object) -> bytes:
    """Return the stored form of None, bool, int, float, str, bytes, list, tuple or dict."""
    import msgpack  # type: ignore[import-untyped]

    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueInvalid(
            f"put_object cannot store this {type(value).__name__}: {error}. It takes None, bool,"
            " int of 64 bits, float, str, bytes, and lists and dicts of them"
        ) from None
    return packed


def unpack(data: bytes, codec: int) -> Any:
    """Return the value that `pack` was given; tuples come back as lists."""
    if codec == CODEC_BYTES:
        raise CodecMismatch("the value was stored by put, as plain bytes: read it with get")
    if codec != CODEC_MSGPACK:
        raise CodecMismatch(
            f"the value was stored with codec {codec}, which this version does not know:"
            " use a newer kvstore"
        )
    import msgpack

    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise CodecMismatch(f"the value says that it is msgpack but is not: {error}") from None
