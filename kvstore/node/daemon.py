"""The life of a daemon: start, serve, drain, end.

The main thread sleeps in the kernel until a signal comes. The first SIGTERM or SIGINT drains: no
new attachment, `NOT_SERVING` to probes, a short grace for clients to leave, then the end. A grace
that a call of the control plane has begun is not begun anew. A second signal exits at once. There
is nothing to clean up after `kill -9`: the region is anonymous memory.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final

from kvstore.cluster.local_tier import local_address
from kvstore.node import metrics
from kvstore.node.config import NodeConfig
from kvstore.node.drain import clients_of_others
from kvstore.node.log import Log
from kvstore.node.memory_node import MemoryNode
from kvstore.node.port_watch import PortWatch
from kvstore.node.service import ControlServer

if TYPE_CHECKING:
    from kvstore.node.ssd.log import SsdLog
    from kvstore.node.ssd.tier import SsdTier

_DONE: Final = b"\0"
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_GRACE_STEP_S: Final = 0.1
_CALLS_GRACE_S: Final = 1.0


class SignalPipe:
    """Turns signals into bytes that can be waited for. One a process, made by the main thread."""

    def __init__(self) -> None:
        """Takes over SIGTERM and SIGINT."""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # The interpreter's own handler, which runs in C, writes the signal's number.
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _ignore)

    def wait(self) -> bytes:
        """Sleeps until something was written, and returns it."""
        select.select([self._reader], [], [])
        return self._reader.recv(64)

    def write_done(self) -> None:
        """Wakes the main thread from another one."""
        self._writer.send(_DONE)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """The byte in the pipe is what counts."""


def run(config: NodeConfig, log: Log) -> int:
    """Serves until told to end; returns the exit code. `ConfigurationError` if it cannot start."""
    began = time.monotonic()
    with _node_and_tier(config, log) as (node, tier):
        server = ControlServer(
            node,
            log,
            token=config.token,
            certificate=config.certificate,
            advertise=config.advertise,
            grace_s=config.grace_s,
            tier=tier,
            local_address=local_address(config.shm_name) if tier and config.shm_name else "",
        )
        ports = PortWatch(node, log)
        signals = SignalPipe()
        port = server.start(config.listen_host, config.listen_port)
        places: dict[str, object] = {
            "listen": _address(config.listen_host, port),
            "data_port": node.describe().data_port,
            "shm": config.shm_name or "",
            "device": node.describe().verbs_device,
            "pid": os.getpid(),
        }
        if config.metrics_port is not None:
            places["metrics_port"] = metrics.serve(
                node,
                lambda: server.token_check.refused,
                config.listen_host,
                config.metrics_port,
                tier.stats if tier is not None else None,
            )
        log.info("started", seconds=round(time.monotonic() - began, 3), **_settings(config))
        log.ready(**places)
        ports.start()
        try:
            return _serve(node, tier, server, signals, log)
        finally:
            ports.end()


@contextmanager
def _node_and_tier(config: NodeConfig, log: Log) -> Iterator[tuple[MemoryNode, SsdTier | None]]:
    """The node and its SSD tier, if there is to be one, which ends before the node does.

    The file is read before the node lets clients in: they would take it for one without a tier.
    """
    blocks = _opened_log(config, log)
    tier: SsdTier | None = None
    try:
        with _memory_node(config) as node:
            if blocks is not None:
                from kvstore.node.ssd.tier import SsdTier

                tier = SsdTier(node, blocks, log)
            try:
                yield node, tier
            finally:
                if tier is not None:
                    tier.close()
    finally:
        if blocks is not None and tier is None:
            blocks.close()


def _memory_node(config: NodeConfig) -> MemoryNode:
    return MemoryNode(
        capacity_bytes=config.capacity_bytes,
        shm_name=config.shm_name,
        tcp_host=config.listen_host if config.verbs_device is None else None,
        tcp_port=config.data_port,
        tcp_threads=config.data_threads,
        eviction=config.eviction,
        consistency=config.consistency,
        hugepages=config.hugepages,
        prefault=config.prefault,
        membership_lease_ms=config.membership_lease_ms,
        fence_after_ms=config.fence_after_ms,
        secret=config.token,
        cluster_id=config.cluster_id,
        members=config.members,
        verbs_device=config.verbs_device,
        verbs_address=config.verbs_address,
    )


def _opened_log(config: NodeConfig, log: Log) -> SsdLog | None:
    if config.ssd_path is None:
        return None
    from kvstore.node.ssd.log import INDEX_BYTES_A_RECORD, SsdLog

    began = time.monotonic()
    blocks = SsdLog.open(
        config.ssd_path, config.ssd_bytes, config.ssd_index_bytes // INDEX_BYTES_A_RECORD
    )
    log.info(
        "ssd opened",
        file=config.ssd_path,
        records=len(blocks),
        bytes=blocks.live_bytes,
        damaged=blocks.damaged,
        seconds=round(time.monotonic() - began, 3),
    )
    return blocks


def _serve(
    node: MemoryNode,
    tier: SsdTier | None,
    server: ControlServer,
    signals: SignalPipe,
    log: Log,
) -> int:
    first = signal.Signals(signals.wait()[0])

    def end() -> None:
        try:
            grace_s = server.drain_to_end()
            log.info("draining", signal=first.name, grace_s=round(grace_s, 3))
            _drain(node, tier, server, log)
        finally:
            signals.write_done()

    # Ends in a thread of its own, so that a second signal is seen whatever the end waits for.
    threading.Thread(target=end, name="drain", daemon=True).start()
    written = signals.wait()
    if written[:1] != _DONE:
        log.warning("ending at once", signal=signal.Signals(written[0]).name)
        os._exit(1)
    log.info("ended")
    if tier is not None and tier.stuck:
        # Its threads wait for the device, and would be waited for.
        os._exit(0)
    return 0


def _drain(node: MemoryNode, tier: SsdTier | None, server: ControlServer, log: Log) -> None:
    if tier is not None:
        tier.close()
    # A call of the control plane may still shorten the grace.
    while (left := clients_of_others(node)) and not server.grace_is_over():
        time.sleep(_GRACE_STEP_S)
    if left:
        log.warning("clients still attached", clients=left)
    server.stop(_CALLS_GRACE_S)
    node.close()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _settings(config: NodeConfig) -> dict[str, object]:
    return {
        "capacity_bytes": config.capacity_bytes,
        "eviction": config.eviction,
        "consistency": config.consistency,
        "hugepages": config.hugepages,
        "prefault": config.prefault,
        "token": config.token is not None,
        "tls": config.certificate is not None,
        "members": list(config.members),
        "ssd": config.ssd_path or "",
    }
