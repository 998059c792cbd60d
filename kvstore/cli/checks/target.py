"""Checks of the nodes that were named: each is asked, none is changed."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from kvstore import errors
from kvstore._version import __version__
from kvstore.cli.checks import OK, PROBLEM, WARNING, Check
from kvstore.cli.members import fabric_of
from kvstore.cli.settings import Settings
from kvstore.node.description import ClientRecord, NodeDescription, NodeStats


def check_target(settings: Settings) -> Iterator[Check]:
    """Every node of the target."""
    try:
        addresses = settings.control_addresses()
        token, tls = settings.token, settings.tls
    except errors.KvError as error:
        yield Check("target", PROBLEM, str(error), "kvstore --help")
        return
    from kvstore.cluster.control import ControlClient

    for address in addresses:
        name = f"node {address}"
        try:
            with ControlClient(address, token=token, tls=tls) as control:
                node = control.describe(timeout_s=settings.timeout_s)
                stats = control.stats(timeout_s=settings.timeout_s)
                clients = control.clients(timeout_s=settings.timeout_s)
        except errors.KvError as error:
            yield Check(name, PROBLEM, str(error), _remedy(error, address))
            continue
        yield _reached(settings, name, node, stats)
        yield _membership(name, node, addresses)
        yield _data_path(settings, name, node, stats)
        yield _stalled(name, clients)


def _remedy(error: errors.KvError, address: str) -> str:
    if isinstance(error, errors.AuthenticationFailed):
        return "kvstore --token-file FILE doctor  # the file that the node was started with"
    if "TLS" in str(error):
        return "kvstore --tls-ca FILE doctor"
    host, _, port = address.rpartition(":")
    return f"nc -vz {host} {port}; systemctl status kvstore-node  # on {host}"


def _reached(settings: Settings, name: str, node: NodeDescription, stats: NodeStats) -> Check:
    if stats.get("draining", 0):
        cut = "; its clients have been cut off" if stats["draining"] > 1 else ""
        return Check(
            name,
            WARNING,
            f"draining, and takes no new clients{cut}",
            "systemctl restart kvstore-node  # on its host; it comes back empty",
        )
    detail = f"up, over {fabric_of(settings, node) or 'no fabric'}, kvstore {node.version}"
    if node.version != __version__:
        return Check(name, WARNING, f"{detail}; here is {__version__}", "kvstore-node --version")
    return Check(name, OK, detail)


def _membership(name: str, node: NodeDescription, addresses: tuple[str, ...]) -> Check:
    name = f"{name}, members"
    if not node.members:
        return Check(name, OK, "not fixed yet: the first client does that")
    if node.members == addresses:
        return Check(name, OK, ", ".join(node.members))
    return Check(
        name,
        PROBLEM,
        f"the node belongs to {', '.join(node.members)}, the target names {', '.join(addresses)}",
        f"export KVSTORE_TARGET=kv://{','.join(node.members)}",
    )


def _data_path(settings: Settings, name: str, node: NodeDescription, stats: NodeStats) -> Check:
    name = f"{name}, data port"
    if node.domain == "verbs":
        return _rdma_path(name, node, stats)
    if not node.data_port:
        return Check(name, OK, "none: clients on the node's host only")
    try:
        with socket.create_connection((node.data_host, node.data_port), settings.timeout_s):
            return Check(name, OK, f"{node.data_host}:{node.data_port} answers")
    except OSError as error:
        return Check(
            name,
            PROBLEM,
            f"{node.data_host}:{node.data_port}: {error.strerror or error}",
            "kvstore-node --advertise HOST …  # the name by which clients reach it",
        )


def _rdma_path(name: str, node: NodeDescription, stats: NodeStats) -> Check:
    down, up = stats.get("verbs_ports_down", 0), stats.get("verbs_ports_up", 0)
    failures = stats.get("verbs_port_failures", 0)
    seen = f"; one went down {failures} times" if failures else ""
    if not down:
        return Check(name, OK, f"none: clients use RDMA to {node.verbs_device}{seen}")
    return Check(
        name,
        WARNING if up else PROBLEM,
        f"{down} of the {down + up} RDMA ports {node.verbs_device} down{seen}",
        "kvstore rxe status; ip link show  # on the node's host: is the cable in?",
    )


def _stalled(name: str, clients: list[ClientRecord]) -> Check:
    name = f"{name}, clients"
    stalled = [record for record in clients if record.state == "stalled"]
    if not stalled:
        return Check(name, OK, f"{len(clients)} attached")
    who = ", ".join(f"{record.peer} (process {record.process_id})" for record in stalled)
    pids = " ".join(str(record.process_id) for record in stalled if record.process_id)
    return Check(
        name,
        WARNING,
        f"stopped, and holding memory back from reuse: {who}",
        f"kill -CONT {pids}  # or start the node with --fence-after" if pids else "",
    )
