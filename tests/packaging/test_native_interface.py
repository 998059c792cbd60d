"""The script that turns the C header into the cffi module's declarations and type stub."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import native_interface  # noqa: E402

HEADER = """
#include <stdint.h>
/* cdef begin */
#define KV_NUMBER 7u /* seven */
enum kv_kind { KV_ONE = 1, KV_TWO };
typedef struct kv_thing kv_thing;
const char* kv_name(int status); // a name
int kv_open(const void* key, uint64_t key_bytes, kv_thing** thing);
void kv_close(kv_thing* async);
/* cdef end */
int kv_hidden(void);
"""


@pytest.fixture
def header(tmp_path: Path) -> Path:
    path = tmp_path / "kvstore.h"
    path.write_text(HEADER)
    return path


def test_only_the_marked_region_is_declared(header: Path) -> None:
    declarations = native_interface.extract_declarations(HEADER)
    assert "kv_open" in declarations
    assert "kv_hidden" not in declarations
    assert "seven" not in declarations
    assert "#define KV_NUMBER ..." in declarations


def test_a_header_without_region_is_refused() -> None:
    with pytest.raises(SystemExit, match="cdef begin"):
        native_interface.extract_declarations("int kv_open(void);")


def test_stub(header: Path) -> None:
    stub = native_interface.stub_text(header)
    assert "    KV_NUMBER: Final[int]" in stub
    assert "    KV_TWO: Final[int]" in stub
    assert "def kv_name(self, status: int, /) -> CData: ..." in stub
    assert (
        "def kv_open(self, key: CData | bytes, key_bytes: int, thing: CData, /) -> int: ..." in stub
    )
    # A parameter may have a name that Python reserves.
    assert "def kv_close(self, async_: CData, /) -> None: ..." in stub
    compile(stub, "stub", "exec")


def test_the_committed_stub_is_fresh() -> None:
    stub = ROOT / "kvstore" / "_native.pyi"
    fresh = native_interface.stub_text(ROOT / "native" / "api" / "kvstore.h")
    assert stub.read_text() == fresh, "run `make generate`"
