"""The Prometheus end point of a real node, and its list of metrics."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from kvstore.cluster.control import ControlClient
from kvstore.node.metrics import METRICS
from tests.support.nodes import NodeProcess, start_node


def _scrape(node: NodeProcess) -> dict[str, float]:
    url = f"http://127.0.0.1:{node.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        text = answer.read().decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}"] = sample.value
    return samples


def test_scrape_shows_what_the_node_says_of_itself() -> None:
    with start_node("16MiB", "--metrics-port=0") as node:
        with ControlClient(node.address) as control:
            before = _scrape(node)
            control.attach(cluster_id="", members=[node.address], peer="test", timeout_s=5)
            stats = control.stats()
        after = _scrape(node)
    assert after["kvstore_node_capacity_bytes{}"] == stats["capacity_bytes"] > 0
    assert after["kvstore_node_segments{}"] == stats["segments_total"]
    assert before["kvstore_node_clients_attached_total{}"] == 0
    assert after["kvstore_node_clients_attached_total{}"] == 1
    assert 0 < after["kvstore_node_uptime_seconds{}"] < 60
    assert "kvstore_node_tcp_verbs_total{verb=read}" in after
    assert after["process_resident_memory_bytes{}"] > 0
    assert any(name.startswith("kvstore_node_info{") for name in after)


def test_every_figure_of_the_core_has_one_metric() -> None:
    from kvstore._native import ffi

    figures = sorted(name for name, _ in ffi.typeof("kv_node_stats").fields)
    assert sorted(row.field for row in METRICS) == figures


def test_names_have_base_units() -> None:
    for row in METRICS:
        assert (row.kind == "counter") == row.name.endswith("_total"), row.name
        assert not row.name.endswith(("_ms", "_us", "_ns", "_kib")), row.name
