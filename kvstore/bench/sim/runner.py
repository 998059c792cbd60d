"""Runs seeds in processes of the simulator, one process a core.

A seed that ends its process (a broken assertion of the store) or that does not end at all is a
violation of that seed, and another process goes on behind it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import kvstore
from kvstore.bench.sim.errors import SimulationError
from kvstore.bench.sim.scenario import Parameter, Settings

Row = dict[str, Any]

_CHUNK_SEEDS_MAX: Final = 64
_JOB_REFUSED: Final = 2
_SIGNAL_S: Final = 0.5


def find_simulator() -> Path:
    """The simulator's program.

    Raises:
        SimulationError: It has not been built here; it is not part of a wheel.
    """
    chosen = os.environ.get("KVSTORE_SIMULATE")
    checkout = Path(kvstore.__file__).resolve().parent.parent
    program = Path(chosen) if chosen else checkout / "build" / "editable" / "kvstore_simulate"
    if not os.access(program, os.X_OK):
        raise SimulationError(
            "the simulator is not part of an installed package: get the sources, run `make setup` "
            f"there, and use that checkout's .venv/bin/kvstore-bench (looked for {program})"
        )
    return program


def read_switches(program: Path) -> list[dict[str, str]]:
    """All switches of the simulator's build: `kind` is variant or rare, `name`, `description`."""
    listed = subprocess.run([program, "--switches"], capture_output=True, check=True, timeout=60)
    return [json.loads(line) for line in listed.stdout.splitlines()]


def read_parameters(program: Path) -> list[Parameter]:
    """All parameters of a world, with their ranges and defaults."""
    listed = subprocess.run([program, "--parameters"], capture_output=True, check=True, timeout=60)
    return [Parameter(**entry) for entry in json.loads(listed.stdout)]


class _Process:
    """One process with one job; a context manager that ends it."""

    def __init__(self, program: Path, job: Mapping[str, int | str], line_timeout_s: float) -> None:
        self._line_timeout_s: Final = line_timeout_s
        self._errors: Final = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self._process: Final = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C reaches us alone, and we end it
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("".join(f"{name}={value}\n" for name, value in job.items()))
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it says why on standard error

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def kill(self) -> None:
        self._process.kill()

    def lines(self) -> Iterator[str]:
        """The output until its end; a line that takes too long is the end."""
        assert self._process.stdout is not None
        while True:
            timer = threading.Timer(self._line_timeout_s, self.kill)
            timer.daemon = True
            timer.start()
            try:
                line = self._process.stdout.readline()
            finally:
                timer.cancel()
            if not line.endswith("\n"):
                return
            yield line

    def status(self) -> int:
        """The exit status, once `lines` has come to its end."""
        return self._process.wait()

    def complaint(self) -> str:
        """The end of what it wrote on standard error, in one line."""
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return " | ".join(lines[-5:])


class Runner:
    """Runs worlds; a context manager, whose end ends every process."""

    def __init__(self, program: Path, *, jobs: int, seed_timeout_s: float) -> None:
        self._program: Final = program
        self._jobs: Final = jobs
        self._seed_timeout_s: Final = seed_timeout_s
        self._running: Final[set[_Process]] = set()
        self._lock: Final = threading.Lock()
        self._stopped = False

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.kill()
        for process in running:
            process.status()  # a killed process may run on until the system comes to it

    def rows(self, scenario: str, settings: Settings, seeds: range) -> Iterator[Row]:
        """One row for each seed, in the order in which they end.

        A caller may leave the loop early: what is under way then ends by itself.
        """
        jobs = min(self._jobs, len(seeds))
        chunk = max(1, min(_CHUNK_SEEDS_MAX, len(seeds) // (4 * jobs)))
        chunks: queue.SimpleQueue[range] = queue.SimpleQueue()
        for first in range(seeds.start, seeds.stop, chunk):
            chunks.put(range(first, min(first + chunk, seeds.stop)))
        finished: queue.SimpleQueue[Row | BaseException] = queue.SimpleQueue()
        over = threading.Event()

        def work() -> None:
            try:
                while not over.is_set():
                    for row in self._chunk(scenario, settings, chunks.get_nowait()):
                        finished.put(row)
                        if over.is_set():
                            return
            except queue.Empty:
                pass
            except BaseException as error:  # the reader must not wait for ever
                finished.put(error)

        for _ in range(jobs):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in seeds:
                row = _next(finished)
                if isinstance(row, BaseException):
                    raise row
                yield row
        finally:
            over.set()

    def trace(self, scenario: str, settings: Settings, seed: int, key: str) -> Iterator[str]:
        """The lines that tell what happened to a key, or to `all`; then one about the end."""
        job = self._job(scenario, settings, range(seed, seed + 1)) | {"trace": key}
        with self._start(job) as process:
            for line in process.lines():
                if not line.startswith("{"):
                    yield line.rstrip("\n")
                    continue
                row = json.loads(line)
                yield "no violation" if row["ok"] else f"VIOLATION {row['violation']}"
            if process.status() != 0:
                yield f"VIOLATION {_how_it_ended(process)}"

    def _job(self, scenario: str, settings: Settings, seeds: range) -> dict[str, int | str]:
        job = {"scenario": scenario, "seeds": f"{seeds.start}-{seeds.stop - 1}", **settings}
        # A world that is late names what is stuck, unless it is too late even for that.
        job.setdefault("wall_limit_s", max(1, int(self._seed_timeout_s * 0.7)))
        return job

    def _start(self, job: Mapping[str, int | str]) -> _Process:
        with self._lock:
            if self._stopped:
                raise SimulationError("interrupted")
            process = _Process(self._program, job, self._seed_timeout_s)
            self._running.add(process)
            return process

    def _chunk(self, scenario: str, settings: Settings, seeds: range) -> Iterator[Row]:
        at = seeds.start
        while at < seeds.stop:
            process = self._start(self._job(scenario, settings, range(at, seeds.stop)))
            with process:
                try:
                    for line in process.lines():
                        yield json.loads(line)
                        at += 1
                    if at < seeds.stop:
                        if process.status() == _JOB_REFUSED:
                            raise SimulationError(process.complaint())
                        yield _lost_row(scenario, at, process)
                        at += 1
                finally:
                    with self._lock:
                        self._running.discard(process)


def _next(finished: queue.SimpleQueue[Row | BaseException]) -> Row | BaseException:
    """What ends next. A signal that comes just before a wait is heeded when the wait is over."""
    while True:
        try:
            return finished.get(timeout=_SIGNAL_S)
        except queue.Empty:
            continue


def _lost_row(scenario: str, seed: int, process: _Process) -> Row:
    violation = _how_it_ended(process)
    return {"scenario": scenario, "seed": seed, "ok": False, "violation": violation}


def _how_it_ended(process: _Process) -> str:
    status = process.status()
    if status == -signal.SIGKILL:
        return "hung: no result within the time allowed for a seed"
    return f"aborted: {process.complaint() or f'the simulator ended with {status}'}"
