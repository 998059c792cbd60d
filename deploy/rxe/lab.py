"""Runs commands on one or two machines with Soft-RoCE: `python deploy/rxe/lab.py --help`."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import click
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from deploy.rxe.machine import Job, LabError, machines


@click.command(epilog="The exit code is that of the first command that fails.")
@click.argument("commands", nargs=-1, required=True)
@click.option("--machines", "count", type=click.IntRange(1, 2), default=1, show_default=True)
@click.option(
    "--timeout", "timeout_s", type=float, default=300.0, show_default=True, help="Seconds."
)
def main(commands: tuple[str, ...], count: int, timeout_s: float) -> None:
    """Boots machines with an RDMA device each, and runs shell commands there.

    One machine runs all commands at the same time. Of two machines the first runs the first
    command, the second the others. Commands run in the folder of this checkout, which they see as
    it is; what they write is gone with the machine.

    \b
    Examples:
      .venv/bin/python deploy/rxe/lab.py 'ibv_devinfo -d rxe0'
      .venv/bin/python deploy/rxe/lab.py --machines 2 \\
          'ib_read_lat -d rxe0' 'sleep 2; ib_read_lat -d rxe0 10.77.0.1'
    """  # noqa: D301
    # A kill of this process ends the machines as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    notes = Console(stderr=True)
    began = time.monotonic()
    try:
        with notes.status("booting"), machines(count) as booted:
            slow = ", ".join(f"{machine.time_scale}" for machine in booted)
            took = f"{time.monotonic() - began:.1f} s"
            notes.print(f"booted in {took}; time scale {slow}", style="dim")
            jobs = [
                booted[min(index, count - 1)].begin(command)
                for index, command in enumerate(commands)
            ]
            codes = [follow(job, began + timeout_s - time.monotonic()) for job in jobs]
    except LabError as error:
        raise click.ClickException(str(error)) from error
    notes.print(f"done after {time.monotonic() - began:.1f} s", style="dim")
    sys.exit(next((code for code in codes if code != 0), 0))


def follow(job: Job, timeout_s: float) -> int:
    """Print the output as it comes; return the exit code."""

    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    return job.wait(max(timeout_s, 1.0), show).exit_code


if __name__ == "__main__":
    main()
