"""What the native modules show to the dynamic linker, and what the package promises to import."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("_native", "_fast")


def symbols(module: str, *options: str) -> list[str]:
    path = ROOT / "kvstore" / f"{module}.abi3.so"
    assert path.exists(), "run `make build` first"
    output = subprocess.run(
        ["nm", "-D", *options, path], capture_output=True, text=True, check=True
    ).stdout
    return [line.split()[-1].partition("@")[0] for line in output.splitlines()]


needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="binutils are not installed")


@needs_nm
@pytest.mark.parametrize("module", MODULES)
def test_only_the_initialisation_is_exported(module: str) -> None:
    assert symbols(module, "--defined-only") == [f"PyInit_{module}"]


VERBS = ROOT / "kvstore" / "_verbs.so"


@needs_nm
@pytest.mark.skipif(not VERBS.exists(), reason="built without infiniband/verbs.h")
def test_the_verbs_library_has_one_door() -> None:
    command = ["nm", "-D", "--defined-only", VERBS]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in output.splitlines()] == ["kv_verbs_open"]


@needs_nm
@pytest.mark.parametrize("module", MODULES)
def test_nothing_of_the_core_is_left_undefined(module: str) -> None:
    ours = [
        name for name in symbols(module, "--undefined-only") if re.match(r"kv_|_ZN7kvstore", name)
    ]
    assert ours == []


@needs_nm
@pytest.mark.parametrize("module", MODULES)
def test_private_python_functions_are_not_used(module: str) -> None:
    # The stable ABI has these underscore names; another one would break on some Python.
    stable = {
        "_PyObject_CallFunction_SizeT",
        "_PyObject_CallMethod_SizeT",
        "_PyObject_New",
        "_Py_Dealloc",
        "_Py_DecRef",
        "_Py_EllipsisObject",
        "_Py_FalseStruct",
        "_Py_IncRef",
        "_Py_NoneStruct",
        "_Py_NotImplementedStruct",
        "_Py_TrueStruct",
    }
    stable |= {f"_PyArg_Parse{form}_SizeT" for form in ("", "Tuple", "TupleAndKeywords")}
    stable |= {f"_Py_{form}_SizeT" for form in ("BuildValue", "VaBuildValue")}
    private = {name for name in symbols(module, "--undefined-only") if name.startswith("_Py")}
    assert private <= stable


def imported_modules(statement: str) -> set[str]:
    completed = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT.parent,
    )
    return set(completed.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import kvstore",
        "import kvstore\nwith kvstore.connect(capacity_bytes=16 << 20) as s:\n"
        "    s.put(b'k', b'v'); assert s.get(b'k') == b'v'",
    ],
    ids=["import", "embedded"],
)
def test_neither_grpc_nor_numpy_is_loaded(statement: str) -> None:
    loaded = imported_modules(statement)
    assert "kvstore" in loaded
    assert not loaded & {"grpc", "numpy", "google.protobuf", "click", "rich"}


def test_an_unbuilt_checkout_says_what_to_do(tmp_path: Path) -> None:
    # Only the Python sources are copied: this is what `git clone` leaves.
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "kvstore", tmp_path / "kvstore", ignore=ignore)
    completed = subprocess.run(
        [sys.executable, "-c", "import kvstore; kvstore.connect()"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert completed.returncode != 0
    assert "make setup" in completed.stderr
