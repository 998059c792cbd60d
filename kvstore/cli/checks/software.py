"""Checks of the software: the native modules, a store in this process, the control plane."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

from kvstore import errors
from kvstore._version import __version__
from kvstore.cli.checks import OK, PROBLEM, WARNING, Check

_REBUILD = "make setup  # in a checkout; otherwise install the package again"
_TRIAL_BYTES = 16 << 20


def check_software() -> Iterator[Check]:
    """All of them."""
    yield python()
    native = list(native_modules())
    yield from native
    if all(check.status == OK for check in native):
        yield checksum()
        yield trial()
    yield from libraries()


def python() -> Check:
    """Which kvstore, under which Python."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("version", OK, f"kvstore {__version__}, Python {version} ({sys.executable})")


def native_modules() -> Iterator[Check]:
    """Nothing works without them."""
    for name in ("kvstore._native", "kvstore._fast"):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            yield Check(name, PROBLEM, f"cannot be imported: {error}", _REBUILD)
        else:
            yield Check(name, OK, str(module.__file__))


def checksum() -> Check:
    """Each value is checked; the portable code is many times slower than the instructions."""
    from kvstore._native import ffi, lib

    name = ffi.string(lib.kv_crc32c_implementation()).decode()
    if name == "portable":
        return Check("crc32c", WARNING, "portable code: this processor has no instruction for it")
    return Check("crc32c", OK, name)


def trial() -> Check:
    """A node in this process, one value there and back."""
    import kvstore

    try:
        with kvstore.connect("embedded", capacity_bytes=_TRIAL_BYTES) as store:
            store.put(b"doctor", b"healthy")
            if store.get(b"doctor") == b"healthy":
                return Check("embedded store", OK, "a value went there and back")
    except errors.KvError as error:
        return Check("embedded store", PROBLEM, str(error), _REBUILD)
    return Check("embedded store", PROBLEM, "another value came back", _REBUILD)


def libraries() -> Iterator[Check]:
    """What the daemon and the clients of a remote node load."""
    for name, package in (
        ("grpc", "grpcio>=1.74"),
        ("google.protobuf", "protobuf>=6.31.1,<8"),
        ("grpc_health.v1.health", "grpcio-health-checking>=1.74"),
        ("prometheus_client", "prometheus-client"),
        ("kvstore.cluster.control", "grpcio>=1.74' 'protobuf>=6.31.1,<8"),
    ):
        try:
            module = importlib.import_module(name)
        # A generated stub refuses an old library with a RuntimeError.
        except (ImportError, RuntimeError, TypeError) as error:
            remedy = f"{sys.executable} -m pip install '{package}'"
            yield Check(name, PROBLEM, f"cannot be imported: {error}", remedy)
        else:
            yield Check(name, OK, str(getattr(module, "__version__", "loaded")))
