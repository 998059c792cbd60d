"""The endpoint's metrics, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kvstore.llm.router.routing import Router

_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class _Instances(Collector):
    """What the router knows of each instance, read when it is asked for."""

    def __init__(self, routers: Sequence[Router]) -> None:
        self._routers = routers

    def collect(self) -> Iterable[Metric]:
        prefix = "kvstore_router_instance_"
        up = GaugeMetricFamily(prefix + "up", "1 if it is sent requests.", labels=["instance"])
        running = GaugeMetricFamily(
            prefix + "running", "Requests that have not ended.", labels=["instance"]
        )
        waiting = GaugeMetricFamily(
            prefix + "waiting_tokens",
            "Tokens of prompts that await their first byte (estimate).",
            labels=["instance"],
        )
        for view in (view for router in self._routers for view in router.instances()):
            up.add_metric([view.name], float(view.alive))
            running.add_metric([view.name], view.running)
            waiting.add_metric([view.name], view.waiting_tokens)
        return (up, running, waiting)


class RouterMetrics:
    """Counters of one endpoint, in a registry of their own."""

    def __init__(self, *routers: Router) -> None:
        prefix = "kvstore_router_"
        self._registry = registry = CollectorRegistry()
        registry.register(_Instances(routers))
        self.requests = Counter(
            prefix + "requests",
            "Requests sent to an instance, by why it was chosen.",
            ["instance", "reason"],
            registry=registry,
        )
        self.failures = Counter(
            prefix + "failures",
            "Requests that an instance did not answer or not to the end.",
            ["instance", "kind"],
            registry=registry,
        )
        self.refused = Counter(
            prefix + "refused", "Requests that no instance got.", ["why"], registry=registry
        )
        self.input_tokens = Counter(
            prefix + "input_tokens", "Tokens of prompts (estimate).", registry=registry
        )
        self.matched_tokens = Counter(
            prefix + "matched_tokens",
            "Those that the chosen instance was sent before (estimate).",
            registry=registry,
        )
        self.prefills = Counter(
            prefix + "prefills",
            "Prompts sent to a prefill engine, by what became of them.",
            ["instance", "outcome"],
            registry=registry,
        )
        self.in_flight = Gauge(
            prefix + "in_flight", "Requests that have not ended.", registry=registry
        )
        self.first_byte_s = Histogram(
            prefix + "first_byte_seconds",
            "From a request's arrival to the first byte of its answer.",
            registry=registry,
            buckets=_SECONDS,
        )

    def text(self) -> bytes:
        """Return what Prometheus reads."""
        return generate_latest(self._registry)
