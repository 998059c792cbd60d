"""What importing and using the package loads, and how it ends with the process."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import kvstore
from kvstore import errors


def run_python(source: str, repository: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", source],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


LOADED = """
import sys
heavy = sorted({name.partition(".")[0] for name in sys.modules}
               & {"grpc", "numpy", "torch", "google", "asyncio", "msgpack", "rich", "click"})
assert heavy == HEAVY, heavy
"""


def test_the_import_is_cheap(repository: Path) -> None:
    source = "import kvstore" + LOADED.replace("HEAVY", "[]")
    source += "assert 'kvstore._native' not in sys.modules\n"
    result = run_python(source, repository)
    assert result.returncode == 0, result.stderr


def test_the_embedded_node_loads_little(repository: Path) -> None:
    source = (
        "import kvstore\n"
        "with kvstore.connect('embedded', capacity_bytes=16 << 20) as store:\n"
        "    store.put('k', b'v'); assert store.get_many(['k']) == [b'v']\n"
        "    try: store.put('k', 'text')\n"
        "    except kvstore.ValueInvalid: pass\n"
    ) + LOADED.replace("HEAVY", "[]")
    result = run_python(source, repository)
    assert result.returncode == 0, result.stderr


def test_a_process_may_end_without_close(repository: Path) -> None:
    source = (
        "import kvstore, threading\n"
        "store = kvstore.connect('embedded', capacity_bytes=16 << 20)\n"
        "def work():\n"
        "    while True: store.put('k', b'v')\n"
        "for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
        "store.get('k'); print('end')\n"
    )
    result = run_python(source, repository)
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr


def test_public_names() -> None:
    assert kvstore.__version__
    for name in kvstore.__all__:
        assert getattr(kvstore, name) is not None
        assert name in dir(kvstore)
    with pytest.raises(AttributeError, match="no attribute 'connct'"):
        kvstore.connct  # type: ignore[attr-defined]  # noqa: B018


def test_every_error_has_one_base_and_can_be_pickled() -> None:
    everything = vars(errors).values()
    kinds = [k for k in everything if isinstance(k, type) and k.__module__ == errors.__name__]
    assert len(kinds) > 20
    for kind in kinds:
        assert issubclass(kind, errors.KvError)
        assert kind.__doc__
        error = kind("what was wrong")
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (kind, "what was wrong")
    too_small = pickle.loads(pickle.dumps(errors.BufferTooSmall("m", needed=7)))
    assert too_small.needed == 7
    mismatch = errors.MembershipMismatch("m", ours=["a"], theirs=["b"])
    assert pickle.loads(pickle.dumps(mismatch)).theirs == ("b",)
