"""The metrics of one process: those of its collector, of Python and of the operating system."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector


class ProcessExposition:
    """The metrics that a collector has, and those of the process."""

    def __init__(self, collector: Collector) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(collector)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def build_info(version: str) -> GaugeMetricFamily:
    """Return the metric that names the version."""
    family = GaugeMetricFamily("ingest_build_info", "Always 1.", labels=["version"])
    family.add_metric([version], 1)
    return family
