"""Values that are no plain buffers: where their memory is, without copying it.

The extension module asks here only for what the buffer protocol refused: objects with
`__array_interface__`, torch tensors (recognised without importing torch), and everything that has
to be refused with a clear error.
"""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any

from kvstore.errors import ValueInvalid


def export_buffer(value: object, writable: bool) -> Any:
    """Return an object with the buffer protocol over the memory of `value`, or raise ValueInvalid.

    The returned object keeps `value` alive.
    """
    if isinstance(value, str):
        raise ValueInvalid("a value is bytes, not text: give text.encode(), or use put_object")
    if callable(getattr(value, "data_ptr", None)) and hasattr(value, "element_size"):
        return _export_tensor(value)
    interface = getattr(value, "__array_interface__", None)
    if isinstance(interface, dict):
        return _export_interface(value, interface, writable)
    name = type(value).__name__
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except (TypeError, BufferError, ValueError):
        raise ValueInvalid(
            f"an object of type {name} is no buffer: give bytes, bytearray, memoryview, a numpy"
            " array or a torch tensor, or use put_object"
        ) from None
    if not view.c_contiguous:
        raise ValueInvalid(
            f"the memory of this {name} is not contiguous: copy it first (for numpy,"
            " numpy.ascontiguousarray)"
        )
    raise ValueInvalid(f"this {name} is read-only: give a writable buffer, such as a bytearray")


def _export_tensor(tensor: Any) -> Any:
    """The memory of a torch tensor; neither numpy nor buffers know bfloat16 and the like."""
    if tensor.device.type != "cpu":
        raise ValueInvalid(
            f"the tensor is on {tensor.device}: move it to the CPU first (tensor.cpu())"
        )
    if not tensor.is_contiguous():
        raise ValueInvalid("the tensor is not contiguous: give tensor.contiguous()")
    return _export_memory(tensor, int(tensor.data_ptr()), tensor.numel() * tensor.element_size())


def _export_interface(value: object, interface: dict[str, Any], writable: bool) -> Any:
    name = type(value).__name__
    data = interface.get("data")
    if not isinstance(data, tuple):
        raise ValueInvalid(f"the __array_interface__ of this {name} names no address")
    address, read_only = data
    if writable and read_only:
        raise ValueInvalid(f"this {name} is read-only: give a writable array")
    shape = tuple(interface["shape"])
    item_bytes = int(interface["typestr"][2:])
    strides = interface.get("strides")
    if strides is not None and not _is_contiguous(shape, tuple(strides), item_bytes):
        raise ValueInvalid(
            f"the memory of this {name} is not contiguous: give numpy.ascontiguousarray(value)"
        )
    if interface["typestr"][1] == "O":
        raise ValueInvalid("an array of Python objects has no bytes of its own: use put_object")
    return _export_memory(value, int(address), item_bytes * prod(shape))


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], item_bytes: int) -> bool:
    if 0 in shape:
        return True
    expected = item_bytes
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _export_memory(owner: object, address: int, size: int) -> Any:
    if size == 0:
        return bytearray()
    memory: Any = (ctypes.c_ubyte * size).from_address(address)
    memory.owner = owner
    return memory
