"""The commands on the whole store: stat and nodes."""

from __future__ import annotations

import sys
from typing import Any

import click

from kvstore.cli.keys import hex_option, key_fields, key_of, key_text
from kvstore.cli.members import MemberView, node_row, report_down, view_members
from kvstore.cli.output import json_option, print_document, print_table, table_of
from kvstore.cli.settings import EXIT_ABSENT, EXIT_FOUND, EXIT_UNREACHABLE, Settings
from kvstore.node.units import format_bytes

_SUMMED = (
    "keys",
    "clients_live",
    "clients_stalled",
    "clients_fenced",
    "index_bytes",
    "object_bytes",
    "blocks_swept",
    "tcp_connections_open",
    "tcp_batches",
    "tcp_reads",
    "tcp_writes",
    "tcp_atomics",
    "tcp_bytes_in",
    "tcp_bytes_out",
)


@click.command(
    epilog="\b\nExamples:\n  kvstore stat\n  kvstore stat greeting\n  kvstore stat --json"
)
@click.argument("key", required=False)
@hex_option
@json_option
@click.pass_obj
def stat(settings: Settings, key: str | None, is_hex: bool, as_json: bool) -> int:
    """Show the totals of the store, or one KEY: its size, version and node.

    Exit code 1 if there is no such key, 3 if a node is down.
    """
    if key is not None:
        return _stat_key(settings, key_of(key, is_hex), as_json)
    views = view_members(settings)
    row = _totals(views)
    if as_json:
        print_document("stat", settings, [row])
    else:
        cells = [[name, _shown(name, value)] for name, value in row.items()]
        print_table(table_of(("figure", "value"), cells))
        report_down(views)
    return EXIT_FOUND if all(view.up for view in views) else EXIT_UNREACHABLE


def _stat_key(settings: Settings, key: bytes, as_json: bool) -> int:
    with settings.connect() as store:
        found = store.get_versioned(key)
        address = store.members()[store._client.member_of(key)].address
    if found is None:
        print(f"kvstore: there is no key {key_text(key)!r}", file=sys.stderr)
        if as_json:
            print_document("stat", settings, [])
        return EXIT_ABSENT
    value, version = found
    row = {**key_fields(key), "value_bytes": len(value), "version": version, "node": address}
    if as_json:
        print_document("stat", settings, [row])
    else:
        print_table(
            table_of(("figure", "value"), [[name, str(value)] for name, value in row.items()])
        )
    return EXIT_FOUND


def _totals(views: list[MemberView]) -> dict[str, Any]:
    capacity = sum(v.description.region_bytes for v in views if v.description is not None)
    return {
        "nodes": len(views),
        "nodes_up": sum(view.up for view in views),
        "capacity_bytes": capacity,
        "free_bytes": sum(view.free_bytes for view in views),
        **{name: sum(view.figure(name) for view in views) for name in _SUMMED},
    }


def _shown(name: str, value: Any) -> str:
    if name.endswith("_bytes") or "_bytes_" in name:
        return format_bytes(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


@click.command(epilog="\b\nExample:\n  kvstore --target kv://mn1:7400,mn2:7400 nodes")
@json_option
@click.pass_obj
def nodes(settings: Settings, as_json: bool) -> int:
    """Show each node: up or down, fabric, incarnation, memory, clients.

    Exit code 3 if one is down.
    """
    views = view_members(settings)
    rows = [node_row(settings, view) for view in views]
    if as_json:
        print_document("nodes", settings, rows)
    else:
        columns = (
            *("node", "state", "fabric", "incarnation", "capacity", "free", "keys", "clients"),
            "up for",
        )
        print_table(table_of(columns, [_node_cells(row) for row in rows]))
        report_down(views)
    return EXIT_FOUND if all(view.up for view in views) else EXIT_UNREACHABLE


def _node_cells(row: dict[str, Any]) -> list[str]:
    if row["state"] == "down":
        return [row["address"], "down", *["-"] * 7]
    clients = f"{row['clients']}"
    if row["clients_stalled"]:
        clients += f" (+{row['clients_stalled']} stalled)"
    return [
        row["address"],
        row["state"] + (", RDMA port down" if row["rdma_ports_down"] else ""),
        row["fabric"],
        row["incarnation"],
        format_bytes(row["capacity_bytes"]),
        format_bytes(row["free_bytes"]),
        f"{row['keys']:,}",
        clients,
        f"{row['uptime_s']:.0f} s",
    ]
