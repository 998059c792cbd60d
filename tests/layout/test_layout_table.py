"""Holds the layout numbers that Python sees against the written table.

The native test of the same folder holds the headers against the same file, so both sides of the
C interface and the table agree.
"""

from __future__ import annotations

from pathlib import Path

from kvstore._native import ffi, lib

TABLE = Path(__file__).with_name("layout_table.txt")


def written_numbers() -> dict[str, int]:
    """Return the plain `name value` lines of the table."""
    numbers = {}
    for line in TABLE.read_text().splitlines():
        words = line.partition("#")[0].split()
        if len(words) == 2:
            numbers[words[0]] = int(words[1], 0)
    return numbers


def native_numbers() -> dict[str, int]:
    """Return what the native core says."""
    name = ffi.new("const char **")
    value = ffi.new("uint64_t *")
    numbers = {}
    index = 0
    while lib.kv_layout_number(index, name, value):
        text = ffi.string(name[0])
        assert isinstance(text, bytes)
        numbers[text.decode()] = int(value[0])
        index += 1
    return numbers


def test_every_number_stands_in_the_table() -> None:
    native = native_numbers()
    assert len(native) > 30
    written = written_numbers()
    assert {name: written.get(name) for name in native} == native


def test_the_derived_numbers_fit_together() -> None:
    numbers = native_numbers()
    assert numbers["combined_bytes"] == 2 * numbers["bucket_bytes"]
    assert numbers["bucket_bytes"] == 8 * (1 + numbers["slots_per_bucket"])
    assert (
        numbers["groups_per_subtable"] == numbers["subtable_bucket_bytes"] // numbers["group_bytes"]
    )
    assert numbers["slot_fingerprint_shift"] == (
        numbers["slot_version_shift"] + numbers["slot_version_bits"]
    )
