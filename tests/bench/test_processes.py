"""Children of benchmarks: their words, their death, and that none outlives its parent."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvstore.bench.processes import Child, ProcessError, start_node


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_lines_that_are_no_messages_are_skipped() -> None:
    child = Child("talker", python("print('noise'); print('[1]'); print('{\"event\": \"ready\"}')"))
    try:
        assert child.receive(10) == {"event": "ready"}
    finally:
        child.stop()


def test_a_death_is_told_with_the_last_words() -> None:
    child = Child("mortal", python("import sys; sys.exit('no room left')"))
    with pytest.raises(ProcessError, match=r"mortal ended with status 1: no room left"):
        child.receive(10)
    child.stop()


def test_silence_has_a_deadline() -> None:
    child = Child("sleeper", python("import time; time.sleep(60)"))
    with pytest.raises(ProcessError, match="said nothing within"):
        child.receive(0.2)
    child.stop()
    assert not child.is_alive


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(ProcessError, match="no-such-program could not be started"):
        Child("no-such-program", ["/no-such-program"])


def test_a_child_dies_with_its_parent() -> None:
    text = (
        "import sys, time\n"
        "from kvstore.bench.processes import Child\n"
        "child = Child('c', [sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(python(text), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processor_time() -> None:
    text = "import time\nend = time.process_time() + .3\nwhile time.process_time() < end: pass\n"
    child = Child("worker", python(text + "print('{}', flush=True); time.sleep(60)"))
    child.receive(20)
    assert 0.2 <= child.processor_seconds() < 2
    child.stop()


def test_a_node_that_cannot_start_says_why() -> None:
    with pytest.raises(ProcessError, match="kvstore-node ended with status"):
        start_node(1)
