"""Prometheus metrics of a node, read from the core when they are scraped.

`METRICS` is the list: one row a figure of `kv_node_stats`. A test holds it against the C header,
so that a new figure cannot be forgotten here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kvstore import errors
from kvstore.node.description import NodeDescription, NodeStats
from kvstore.node.memory_node import MemoryNode

_PREFIX: Final = "kvstore_node_"


@dataclass(frozen=True, slots=True)
class Row:
    """How one figure becomes a sample."""

    field: str
    name: str
    kind: str
    help: str
    #: What the figure is multiplied by to be in base units.
    scale: float = 1.0
    labels: tuple[tuple[str, str], ...] = ()


def _verbs(kind: str) -> Row:
    return Row(
        f"tcp_{kind}s",
        "tcp_verbs_total",
        "counter",
        "One-sided operations that the tcp agent executed.",
        labels=(("verb", kind),),
    )


def _refused(field: str, fabric: str, reason: str) -> Row:
    return Row(
        field,
        "refused_total",
        "counter",
        "Requests that were refused, and their connection closed.",
        labels=(("fabric", fabric), ("reason", reason)),
    )


def _ports(state: str) -> Row:
    return Row(
        f"verbs_ports_{state}",
        "rdma_ports",
        "gauge",
        "RDMA ports of the node by state.",
        labels=(("state", state),),
    )


METRICS: Final = (
    Row("capacity_bytes", "capacity_bytes", "gauge", "Size of the region."),
    Row("segment_bytes", "segment_bytes", "gauge", "Size of one segment."),
    Row("segments_total", "segments", "gauge", "Segments in the region."),
    Row("segments_free", "segments_free", "gauge", "Segments that nobody owns."),
    Row("index_bytes", "index_bytes", "gauge", "Subtables and their eviction metadata."),
    Row("object_bytes", "object_bytes", "gauge", "Segments that hold objects."),
    Row("subtables", "index_subtables", "gauge", "Subtables of the index."),
    Row("global_depth", "index_global_depth", "gauge", "Bits that the directory is indexed by."),
    Row("keys", "keys", "gauge", "Live keys."),
    Row("clients_live", "clients", "gauge", "Attachments by state.", labels=(("state", "live"),)),
    Row(
        "clients_stalled",
        "clients",
        "gauge",
        "Attachments by state.",
        labels=(("state", "stalled"),),
    ),
    Row("clients_total", "clients_attached_total", "counter", "Attachments since the start."),
    Row("clients_fenced", "clients_fenced_total", "counter", "Clients that died or were cut off."),
    Row("global_epoch", "epoch", "gauge", "The epoch of reclamation."),
    Row("safe_epoch", "epoch_safe", "gauge", "The epoch that every live client has passed."),
    Row("blocks_swept", "blocks_swept_total", "counter", "Blocks returned from dead clients."),
    Row("uptime_ms", "uptime_seconds", "gauge", "Time since the start.", scale=1e-3),
    Row("cache_hits", "cache_hits_total", "counter", "Reads that copies in clients served."),
    Row(
        "cache_invalidated",
        "cache_invalidated_total",
        "counter",
        "Copies in clients that writes of others took away.",
    ),
    Row(
        "cache_bypassed",
        "cache_bypassed_total",
        "counter",
        "Reads of keys whose copies do not pay.",
    ),
    Row("tcp_connections_open", "tcp_connections", "gauge", "Open data connections."),
    Row("tcp_batches", "tcp_batches_total", "counter", "Batches that the tcp agent executed."),
    _verbs("read"),
    _verbs("write"),
    _verbs("atomic"),
    Row("tcp_bytes_in", "tcp_received_bytes_total", "counter", "Bytes received by the agent."),
    Row("tcp_bytes_out", "tcp_sent_bytes_total", "counter", "Bytes sent by the agent."),
    _refused("tcp_refused_frames", "tcp", "frame"),
    _refused("tcp_refused_bounds", "tcp", "bounds"),
    _refused("tcp_refused_tokens", "tcp", "token"),
    _refused("shm_refused", "shm", "attachment"),
    Row("draining", "draining", "gauge", "1: no new clients; 2: the clients have been cut off."),
    _ports("up"),
    _ports("down"),
    Row("verbs_port_failures", "rdma_port_failures_total", "counter", "Times that one went down."),
)


#: The figures of `SsdTier.stats`.
TIER_METRICS: Final = (
    Row("ssd_capacity_bytes", "ssd_capacity_bytes", "gauge", "Size of the SSD tier's file."),
    Row("ssd_bytes", "ssd_bytes", "gauge", "Records in it that can be found."),
    Row("ssd_records", "ssd_records", "gauge", "Blocks that are on the SSD."),
    Row("ssd_records_max", "ssd_records_max", "gauge", "Blocks that its index has room for."),
    Row("ssd_waiting", "ssd_waiting", "gauge", "Blocks in memory that are not there yet."),
    Row("ssd_demoted", "ssd_demoted_total", "counter", "Blocks written to the SSD."),
    Row("ssd_demoted_bytes", "ssd_demoted_bytes_total", "counter", "Their bytes."),
    Row("ssd_hits", "ssd_hits_total", "counter", "Blocks brought back into memory."),
    Row("ssd_hit_bytes", "ssd_hit_bytes_total", "counter", "Their bytes."),
    Row("ssd_misses", "ssd_misses_total", "counter", "Blocks asked for that are not there."),
    Row("ssd_failed", "ssd_failed_total", "counter", "Blocks for which memory had no room."),
    Row(
        "ssd_expired", "ssd_expired_total", "counter", "Blocks whose turn came after the deadline."
    ),
    Row("ssd_damaged", "ssd_damaged_total", "counter", "Records that failed their checks."),
    Row("ssd_errors", "ssd_errors_total", "counter", "Reads and writes that the device failed."),
)


class NodeCollector(Collector):
    """Reads the node once a scrape. Of a closed node it has nothing to say."""

    def __init__(
        self,
        describe: Callable[[], NodeDescription],
        read_stats: Callable[[], NodeStats],
        read_refused_tokens: Callable[[], int],
        read_tier: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        """The sources; each is called once a scrape. Without a tier there is none of it."""
        self._read_tier = read_tier
        self._describe = describe
        self._read_stats = read_stats
        self._read_refused_tokens = read_refused_tokens

    def collect(self) -> Iterable[Metric]:
        """Part of Prometheus's collector interface."""
        try:
            stats, node = self._read_stats(), self._describe()
        except errors.StoreClosed:
            return
        yield from _families(METRICS, stats)
        if self._read_tier is not None:
            yield from _families(TIER_METRICS, self._read_tier())
        refused = CounterMetricFamily(
            f"{_PREFIX}control_refused_total", "Control calls with a missing or wrong token."
        )
        refused.add_metric([], self._read_refused_tokens())
        yield refused
        info = InfoMetricFamily("kvstore_node", "What the node is.")
        info.add_metric(
            [],
            {
                "version": node.version,
                "incarnation": f"{node.incarnation:016x}",
                "layout_version": str(node.layout_version),
                "domain": node.domain,
                "eviction": node.eviction,
                "consistency": node.consistency,
            },
        )
        yield info


def _families(rows: Iterable[Row], stats: Mapping[str, int]) -> Iterable[Metric]:
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for row in rows:
        family = families.get(row.name)
        if family is None:
            make = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            labels = [label for label, _ in row.labels]
            family = families[row.name] = make(_PREFIX + row.name, row.help, labels=labels)
        family.add_metric([value for _, value in row.labels], stats[row.field] * row.scale)
    return families.values()


def serve(
    node: MemoryNode,
    read_refused_tokens: Callable[[], int],
    host: str,
    port: int,
    read_tier: Callable[[], Mapping[str, int]] | None = None,
) -> int:
    """Serves the metrics from a thread; returns the port. `ConfigurationError` if it cannot."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(node.describe, node.stats, read_refused_tokens, read_tier))
    ProcessCollector(registry=registry)
    try:
        server, _thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise errors.ConfigurationError(
            f"cannot serve metrics on {host}:{port}: {error.strerror}"
        ) from error
    return int(server.server_port)
