"""`kvstore doctor`: what would stop or slow the store here, and the command that mends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import click

from kvstore.cli.checks import NOTE, OK, PROBLEM, WARNING, Check
from kvstore.cli.output import json_option, print_document
from kvstore.cli.settings import EXIT_FOUND, Settings

EXIT_PROBLEM: Final = 1
_PORTS: Final = ((7400, "control plane"), (7401, "tcp agent"))
_COLORS: Final = {OK: "green", NOTE: "cyan", WARNING: "yellow", PROBLEM: "red"}


@click.command(
    epilog="\b\nExamples:\n  kvstore doctor\n  kvstore --target kv://mn1:7400,mn2:7400 doctor\n"
    "  kvstore doctor --json"
)
@json_option
@click.pass_obj
def doctor(settings: Settings, as_json: bool) -> int:
    """Look at memory, limits, ports, the native modules, RDMA, and the nodes of --target.

    For each problem, prints the command that mends it. Exit code 1 if something would stop the
    store from working; notes and warnings do not.
    """
    found = []
    for check in _checks(settings):
        found.append(check)
        if not as_json:
            _print(check)
    if as_json:
        rows = [
            {"check": c.name, "status": c.status, "detail": c.detail, "remedy": c.remedy}
            for c in found
        ]
        print_document("doctor", settings, rows)
    problems = sum(check.status == PROBLEM for check in found)
    if not as_json:
        warnings = sum(check.status == WARNING for check in found)
        print(f"\n{len(found)} checks: {problems} problems, {warnings} warnings")
    return EXIT_PROBLEM if problems else EXIT_FOUND


def _checks(settings: Settings) -> Iterator[Check]:
    from kvstore.cli.checks import machine, rdma, software, target

    yield from software.check_software()
    yield from machine.check_machine()
    for number, use in _PORTS:
        yield machine.port(number, use)
    yield from rdma.check_rdma()
    if not settings.target_is_default:
        yield from target.check_target(settings)


def _print(check: Check) -> None:
    status = click.style(f"{check.status:8}", fg=_COLORS[check.status])
    click.echo(f"{status}{check.name}: {check.detail}")
    if check.remedy:
        click.echo(f"{'':8}  mend: {check.remedy}")
