"""`kvstore drain`: takes a node out of service without ending its process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from kvstore import errors
from kvstore.cli.output import json_option, print_document
from kvstore.cli.settings import EXIT_FOUND, Settings
from kvstore.node.options import Seconds

if TYPE_CHECKING:
    from kvstore.cluster.control import ControlClient

_STEP_S: Final = 0.1
#: In time-outs of a call: the node has much to do when it cuts off many clients.
_PATIENCE_CALLS: Final = 3


@click.command(
    epilog="\b\nExamples:\n  kvstore drain mn1:7400\n  kvstore drain mn1:7400 --grace 60\n"
    "  kvstore drain mn1:7400 --no-wait --json"
)
@click.argument("node", metavar="HOST:PORT")
@click.option(
    "--grace",
    "grace_s",
    type=Seconds(min=0, max=4_000_000),
    metavar="SECONDS",
    help="How long clients keep their access.  [default: the node's own --grace]",
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until it is drained.")
@json_option
@click.pass_obj
def drain(settings: Settings, node: str, grace_s: float | None, wait: bool, as_json: bool) -> int:
    """Take a node out of service: no new clients, and none at all after a grace.

    Clients that have not left by then are cut off: their calls on keys of this node raise
    NodeUnreachable. What the node holds can't be reached any more, and there is no way back. Its
    process runs until it is ended. Clients that had its memory mapped over shm keep the mapping,
    and with it the memory, until they attach to a node in its place, or close. Ctrl-C ends the
    wait, not the drain.
    """
    from rich.console import Console

    from kvstore.cluster.control import ControlClient

    notes = Console(stderr=True)
    with ControlClient(node, token=settings.token, tls=settings.tls) as control:
        left_s = control.drain(grace_s, timeout_s=settings.timeout_s)
        if wait:
            with notes.status(f"{node} drains, for {left_s:g} s at most"):
                _wait(control, node, left_s, settings.timeout_s)
    row = {"node": node, "state": "drained" if wait else "draining", "grace_s": left_s}
    if as_json:
        print_document("drain", settings, [row])
    elif wait:
        print(f"{node} is drained: end it with SIGTERM")
    else:
        print(f"{node} drains: its clients are cut off in {left_s:g} s")
    return EXIT_FOUND


def _wait(control: ControlClient, node: str, left_s: float, timeout_s: float) -> None:
    patience_s = _PATIENCE_CALLS * timeout_s
    begun_s = heard_s = time.monotonic()
    while True:
        try:
            if control.stats(timeout_s=timeout_s).get("draining", 0) >= 2:
                return
            heard_s = time.monotonic()
        except (errors.NodeUnreachable, errors.DeadlineExceeded):
            if time.monotonic() - heard_s > patience_s:
                raise
        if time.monotonic() - begun_s > left_s + patience_s:
            raise errors.DeadlineExceeded(f"{node} still drains {patience_s:g} s after its grace")
        time.sleep(_STEP_S)
