"""`kvstore top`: what the nodes do, live.

A node sees what its tcp agent executes. Clients on the node's own host read and write its memory
without it, so their operations show in the keys, the memory and the number of clients only. What
copies in clients do, every client tells with its heartbeat, over any fabric.
"""

from __future__ import annotations

import time
from typing import Any

import click

from kvstore.cli.members import MemberView, report_down, view_members
from kvstore.cli.output import json_option, print_document, print_table, table_of
from kvstore.cli.settings import EXIT_FOUND, EXIT_UNREACHABLE, Settings
from kvstore.node.units import format_bytes

_COLUMNS = (
    *("node", "keys", "used", "capacity", "clients", "verbs/s", "batches/s", "in/s", "out/s"),
    *("hits/s", "invalidated/s", "bypassed/s", "ssd", "ssd hits/s", "ssd written/s"),
)


@click.command(epilog="\b\nExamples:\n  kvstore top\n  kvstore top --once --interval 5 --json")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="What rates are taken over.",
)
@click.option("--once", is_flag=True, help="Print one table after one interval, and end.")
@json_option
@click.pass_obj
def top(settings: Settings, interval_s: float, once: bool, as_json: bool) -> int:
    """Show keys, memory, clients and the traffic of each node. Ctrl-C ends it.

    Traffic is that of tcp clients: a node takes no part in what clients on its own host do. Hits
    are reads that copies in clients served, over any fabric; invalidated, copies that writes of
    others took away; bypassed, reads of keys whose copies do not pay. Of an SSD tier: what is in
    it, blocks that it brought back into memory, and bytes written to it.
    """
    before = view_members(settings)
    if not (once or as_json):
        return _live(settings, before, interval_s)
    time.sleep(interval_s)
    after = view_members(settings)
    rows = _rows(before, after, interval_s)
    if as_json:
        print_document("top", settings, rows)
    else:
        print_table(table_of(_COLUMNS, [_cells(row) for row in rows]))
        report_down(after)
    return EXIT_FOUND if all(view.up for view in after) else EXIT_UNREACHABLE


def _live(settings: Settings, before: list[MemberView], interval_s: float) -> int:
    from rich.live import Live

    taken = time.monotonic()
    with Live(auto_refresh=False, screen=False) as live:
        try:
            while True:
                time.sleep(interval_s)
                after, now = view_members(settings), time.monotonic()
                rows = _rows(before, after, now - taken)
                live.update(table_of(_COLUMNS, [_cells(row) for row in rows]), refresh=True)
                before, taken = after, now
        except KeyboardInterrupt:
            return EXIT_FOUND


def _rows(
    before: list[MemberView], after: list[MemberView], elapsed_s: float
) -> list[dict[str, Any]]:
    return [_row(old, new, elapsed_s) for old, new in zip(before, after, strict=True)]


def _row(old: MemberView, new: MemberView, elapsed_s: float) -> dict[str, Any]:
    if new.description is None:
        return {"address": new.address, "state": "down", "error": new.error}
    restarted = (
        old.description is None or old.description.incarnation != new.description.incarnation
    )

    def rate(*names: str) -> float:
        # The counters of a new incarnation began at 0.
        start = 0 if restarted else sum(old.figure(name) for name in names)
        return (sum(new.figure(name) for name in names) - start) / elapsed_s

    return {
        "address": new.address,
        "state": "up",
        "keys": new.figure("keys"),
        "used_bytes": new.description.region_bytes - new.free_bytes,
        "capacity_bytes": new.description.region_bytes,
        "clients": new.figure("clients_live"),
        "tcp_verbs_per_s": rate("tcp_reads", "tcp_writes", "tcp_atomics"),
        "tcp_batches_per_s": rate("tcp_batches"),
        "tcp_in_bytes_per_s": rate("tcp_bytes_in"),
        "tcp_out_bytes_per_s": rate("tcp_bytes_out"),
        "cache_hits_per_s": rate("cache_hits"),
        "cache_invalidated_per_s": rate("cache_invalidated"),
        "cache_bypassed_per_s": rate("cache_bypassed"),
        "ssd_bytes": new.figure("ssd_bytes"),
        "ssd_hits_per_s": rate("ssd_hits"),
        "ssd_demoted_bytes_per_s": rate("ssd_demoted_bytes"),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    if row["state"] == "down":
        return [f"{row['address']} (down)", *["-"] * (len(_COLUMNS) - 1)]
    return [
        row["address"],
        f"{row['keys']:,}",
        format_bytes(row["used_bytes"]),
        format_bytes(row["capacity_bytes"]),
        str(row["clients"]),
        f"{row['tcp_verbs_per_s']:,.0f}",
        f"{row['tcp_batches_per_s']:,.0f}",
        format_bytes(row["tcp_in_bytes_per_s"]),
        format_bytes(row["tcp_out_bytes_per_s"]),
        f"{row['cache_hits_per_s']:,.0f}",
        f"{row['cache_invalidated_per_s']:,.0f}",
        f"{row['cache_bypassed_per_s']:,.0f}",
        format_bytes(row["ssd_bytes"]),
        f"{row['ssd_hits_per_s']:,.0f}",
        format_bytes(row["ssd_demoted_bytes_per_s"]),
    ]
