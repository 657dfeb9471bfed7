"""Prometheus families, read from the rooms at each scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hedgerow_control.registry.watcher import Watcher
from hedgerow_control.rollout.loop import Rollout


class ControlCollector(Collector):
    """Holds nothing of its own."""

    def __init__(self, rollout: Rollout, watcher: Watcher) -> None:
        self._rollout = rollout
        self._watcher = watcher

    def collect(self) -> Iterator[Metric]:
        """All families, with the values of now."""
        polls, preparer, hub = self._watcher.state, self._rollout.preparer, self._rollout.hub
        counters = (
            ("registry_polls", "Polls of the registry, failed ones included.", polls.polls),
            ("registry_poll_failures", "Polls that failed.", polls.failures),
            ("registry_calls", "Requests to the registry.", self._watcher.calls),
            ("registry_call_seconds", "Time spent in requests to the registry.", self._watcher.call_seconds),
            (
                "fetches",
                "Versions fetched from the artifact store, failed attempts included.",
                preparer.fetches,
            ),
            ("fetch_seconds", "Time spent fetching versions.", preparer.fetch_seconds),
            ("nacks", "Snapshots refused by servers.", hub.nacks),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(f"hedgerow_control_{name}", text, value=value)
        yield GaugeMetricFamily(
            "hedgerow_control_snapshot_version", "The published snapshot.", value=hub.snapshot.version
        )
        nodes = GaugeMetricFamily("hedgerow_control_nodes", "Servers by state.", labels=["state"])
        known = list(hub.nodes.values())
        nodes.add_metric(["connected"], sum(node.connected for node in known))
        nodes.add_metric(["left_behind"], sum(node.connected and node.left_behind for node in known))
        yield nodes
        versions = GaugeMetricFamily("hedgerow_control_versions", "Versions by stage.", labels=["stage"])
        stages = [state.stage for state in preparer.states.values()]
        for stage in ("registered", "fetched", "verified", "failed"):
            versions.add_metric([stage], stages.count(stage))
        yield versions


def build(rollout: Rollout, watcher: Watcher) -> CollectorRegistry:
    """A registry of its own, so that nothing else in the process shows up."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ControlCollector(rollout, watcher))
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """The text format."""
    return generate_latest(registry)
