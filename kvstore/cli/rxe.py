"""`kvstore rxe`: RDMA in software (Soft-RoCE) on a network card of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import click

from kvstore.cli.output import json_option, print_document, print_table, table_of
from kvstore.cli.rdma_ports import FULL_MTU_BYTES, RdmaPort, rdma_ports
from kvstore.cli.settings import EXIT_ABSENT, EXIT_FOUND, Settings
from kvstore.errors import ConfigurationError

NAME_DEFAULT: Final = "rxe0"
_COMMAND_TIMEOUT_S: Final = 30.0
_MODULE: Final = Path("/sys/module/rdma_rxe")

_EPILOG: Final = """\b
Examples:
  sudo kvstore rxe up
  sudo kvstore rxe up --netdev eth1
  kvstore rxe status
  sudo kvstore rxe down
"""

_name_option = click.option("--name", default=NAME_DEFAULT, show_default=True, help="The device.")


@click.group(epilog=_EPILOG)
def rxe() -> None:
    """Soft-RoCE: RDMA without the hardware, for a try and for tests.

    It works in the host's network namespace, with a kernel that has the module rdma_rxe, and is
    slower than tcp: it is there to run the same verbs that hardware runs.
    """


@rxe.command()
@click.option("--netdev", help="The network card.  [default: the one of the default route]")
@_name_option
def up(netdev: str | None, name: str) -> int:
    """Load the module and make a device on a network card. Needs root."""
    for port in rdma_ports():
        if port.device == name:
            print(_line(port))
            return EXIT_FOUND
    card = netdev or _default_card()
    if not _MODULE.exists():
        _run("modprobe", "rdma_rxe")
    _run("rdma", "link", "add", name, "type", "rxe", "netdev", card)
    made = [port for port in rdma_ports() if port.device == name]
    if not made:
        raise ConfigurationError(f"{name} was made but is not there: see `dmesg`")
    print(_line(made[0]))
    if 0 < made[0].payload_bytes < 4096:
        print(
            f"hint: a packet carries {made[0].payload_bytes} bytes; 4096 with:"
            f" sudo ip link set {card} mtu {FULL_MTU_BYTES}"
        )
    return EXIT_FOUND


@rxe.command()
@_name_option
def down(name: str) -> int:
    """Remove the device. Needs root. Exit code 1 if there is none."""
    if not any(port.device == name for port in rdma_ports()):
        print(f"there is no device {name}")
        return EXIT_ABSENT
    _run("rdma", "link", "delete", name)
    return EXIT_FOUND


@rxe.command()
@json_option
@click.pass_obj
def status(settings: Settings, as_json: bool) -> int:
    """List the RDMA ports of this machine. Exit code 1 if none is active."""
    ports = rdma_ports()
    if as_json:
        print_document("rxe status", settings, [_row(port) for port in ports])
    elif ports:
        columns = ("device", "port", "state", "link", "card", "payload", "addresses")
        print_table(table_of(columns, [_cells(port) for port in ports]))
    else:
        print("no RDMA device; for Soft-RoCE: sudo kvstore rxe up")
    return EXIT_FOUND if any(port.is_active for port in ports) else EXIT_ABSENT


def _row(port: RdmaPort) -> dict[str, Any]:
    return {
        "device": port.device,
        "port": port.port,
        "active": port.is_active,
        "link_layer": port.link_layer,
        "netdev": port.netdev,
        "netdev_mtu_bytes": port.netdev_mtu_bytes,
        "payload_bytes": port.payload_bytes,
        "addresses": ",".join(port.addresses),
    }


def _cells(port: RdmaPort) -> tuple[str, ...]:
    return (
        port.device,
        str(port.port),
        "active" if port.is_active else "down",
        port.link_layer,
        port.netdev or "-",
        str(port.payload_bytes or "-"),
        ", ".join(port.addresses) or "-",
    )


def _line(port: RdmaPort) -> str:
    state = "active" if port.is_active else "down"
    return f"{port.device} on {port.netdev}: {state}, {', '.join(port.addresses) or 'no address'}"


def _default_card() -> str:
    routes = json.loads(_run("ip", "-json", "route", "show", "default") or "[]")
    cards = [route["dev"] for route in routes if "dev" in route]
    if not cards:
        raise ConfigurationError("there is no default route: name a card with --netdev (`ip link`)")
    return str(cards[0])


def _run(*command: str) -> str:
    """Runs a command of the system; what it says against it becomes the error."""
    program = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise ConfigurationError(
            f"{command[0]} is not installed: sudo apt-get install kmod iproute2"
        )
    try:
        ended = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigurationError(f"`{' '.join(command)}` did not end") from None
    if ended.returncode != 0:
        reason = " ".join(ended.stderr.split()) or f"exit code {ended.returncode}"
        hint = "" if os.geteuid() == 0 else " (it needs root: run it with sudo)"
        raise ConfigurationError(f"`{' '.join(command)}`: {reason}{hint}")
    return ended.stdout
