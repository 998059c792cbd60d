"""`kvstore locks`: who holds and who awaits which lock."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from kvstore import errors
from kvstore.cli.output import json_option, print_document, print_table, table_of
from kvstore.cli.settings import Settings


@click.command(epilog="\b\nExamples:\n  kvstore locks\n  kvstore locks --json")
@json_option
@click.pass_obj
def locks(settings: Settings, as_json: bool) -> int:
    """Show the locks in use: holders, waiters, for how long, and clients that do not answer.

    A lock is named by its node and its number in the node's table, since the node knows no names.
    What changes meanwhile may be shown or not.
    """
    rows: list[dict[str, Any]] = []
    cut = []
    with settings.connect() as store:
        for member in range(len(store.members())):
            address = store.members()[member].address
            peers = _peers(settings, address)
            seen, more = store._client.survey_locks(member, settings.timeout_s)
            if more:
                cut.append(address)
            rows += [{"node": address, **row, **_who(row, peers)} for row in seen]
    if as_json:
        print_document("locks", settings, rows)
    else:
        _print(rows)
    for address in cut:
        print(f"kvstore: {address} has more locks in use than are shown", file=sys.stderr)
    return 0


def _peers(settings: Settings, address: str) -> dict[int, tuple[str, int]]:
    """Host and process of each client that the node knows; empty where it can't be asked."""
    from kvstore.cluster.control import ControlClient

    try:
        with ControlClient(address, token=settings.token, tls=settings.tls) as control:
            return {
                record.registration: (record.peer, record.process_id)
                for record in control.clients(timeout_s=settings.timeout_s)
            }
    except (errors.KvError, ValueError):
        return {}


def _who(row: Mapping[str, Any], peers: Mapping[int, tuple[str, int]]) -> dict[str, Any]:
    peer, process_id = peers.get(row["client"], ("", 0))
    return {"peer": peer, "process_id": process_id}


def _print(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print("no lock is in use")
        return
    columns = ("node", "lock", "what", "mode", "client", "process", "threads", "index", "for")
    print_table(table_of(columns, [_cells(row) for row in rows]))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    of_lock = row["client"] == 0
    what = f"{row['state']}, {row['requests']} in its queue" if of_lock else str(row["state"])
    age = "-" if row["age_s"] is None else f"{row['age_s']:.3f} s"
    return (
        str(row["node"]),
        "-" if row["lock"] is None else str(row["lock"]),
        what,
        str(row["mode"] or "-"),
        "-" if of_lock else str(row["client"]),
        f"{row['process_id'] or '?'} {row['peer']}".strip() if not of_lock else "-",
        "-" if row["threads"] is None else str(row["threads"]),
        "-" if row["index"] is None else str(row["index"]),
        age,
    )
