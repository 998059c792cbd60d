"""Asks every node of a target at once, over the control plane.

Asking makes nobody a client: no membership is fixed and nothing on the data path is touched.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore import errors
from kvstore.cli.settings import Settings
from kvstore.node.description import NodeDescription, NodeStats


@dataclass(frozen=True, slots=True)
class MemberView:
    """What one node said, or why it said nothing."""

    address: str
    description: NodeDescription | None
    stats: NodeStats | None
    error: str

    @property
    def up(self) -> bool:
        """Whether the node answered."""
        return self.description is not None

    def figure(self, name: str) -> int:
        """A figure of the node; 0 of one that is down or too old to have it."""
        return self.stats.get(name, 0) if self.stats is not None else 0

    @property
    def free_bytes(self) -> int:
        """Memory in segments that nobody owns."""
        return self.figure("segments_free") * self.figure("segment_bytes")


def view_members(settings: Settings) -> list[MemberView]:
    """Asks all nodes at once. What no waiting mends, such as a wrong token, is raised."""
    addresses = settings.control_addresses()
    token, tls = settings.token, settings.tls

    def view(address: str) -> MemberView:
        from kvstore.cluster.control import ControlClient

        try:
            with ControlClient(address, token=token, tls=tls) as control:
                description = control.describe(timeout_s=settings.timeout_s)
                return MemberView(
                    address, description, control.stats(timeout_s=settings.timeout_s), ""
                )
        except errors.NodeUnreachable as error:
            return MemberView(address, None, None, str(error))

    answers: list[Future[MemberView]] = [Future() for _ in addresses]

    def answer(future: Future[MemberView], address: str) -> None:
        try:
            future.set_result(view(address))
        except BaseException as error:
            future.set_exception(error)

    # Daemons, not a pool: Ctrl-C must not wait for a node that does not answer.
    for future, address in zip(answers, addresses, strict=True):
        threading.Thread(target=answer, args=(future, address), daemon=True).start()
    return [future.result() for future in answers]


def fabric_of(settings: Settings, node: NodeDescription) -> str:
    """What a client on this host would use. A socket's name tells whether shm is in reach."""
    if node.domain == "verbs":
        return "verbs"
    if settings.target.scheme == "kv" and node.shm_name and _listens_here(node.shm_name):
        return "shm"
    return "tcp" if node.data_port else ""


def _listens_here(shm_name: str) -> bool:
    name = shm_name if "/" in shm_name else f"@kvstore/{shm_name}"
    try:
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.endswith(f" {name}") for line in lines)


def report_down(views: Iterable[MemberView]) -> None:
    """Says on stderr why each node that is down said nothing."""
    for view in views:
        if not view.up:
            print(f"kvstore: {view.error}", file=sys.stderr)


def _state(view: MemberView) -> str:
    if not view.up:
        return "down"
    return ("up", "draining", "drained")[min(view.figure("draining"), 2)]


def node_row(settings: Settings, view: MemberView) -> dict[str, Any]:
    """One node as a row of a document."""
    row: dict[str, Any] = {"address": view.address, "state": _state(view)}
    if view.description is None:
        return {**row, "error": view.error}
    node = view.description
    return {
        **row,
        "fabric": fabric_of(settings, node),
        "incarnation": f"{node.incarnation:016x}",
        "version": node.version,
        "capacity_bytes": node.region_bytes,
        "free_bytes": view.free_bytes,
        "index_bytes": view.figure("index_bytes"),
        "keys": view.figure("keys"),
        "clients": view.figure("clients_live"),
        "clients_stalled": view.figure("clients_stalled"),
        "rdma_ports_down": view.figure("verbs_ports_down"),
        "uptime_s": view.figure("uptime_ms") / 1000,
        "eviction": node.eviction,
        "consistency": node.consistency,
        "cluster_id": node.cluster_id,
        "members": ",".join(node.members),
    }
