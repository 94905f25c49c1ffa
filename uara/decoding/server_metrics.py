"""A server's counters and durations in Prometheus text form, on loopback alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from uara.decoding.server_front import ServerFront
from uara.errors import UserError

try:
    from prometheus_client import CollectorRegistry, Histogram, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as error:
    raise UserError(
        "metrics need the package prometheus-client, which is not installed; install 'uara[serve]' "
        "or leave --metrics-port out"
    ) from error

BUCKETS_S = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
_HELP = {
    "take": "from a frame's arrival to its being queued",
    "forward": "forward passes",
    "settle": "hand-over to and from the worker thread, and writing of what a forward decided",
    "take_busy": "of `take`, the processor time of the event loop",
    "settle_busy": "of `settle`, the processor time of the event loop",
}


@dataclass(eq=False)
class ServerMetrics:
    """Collects what a server tells of itself.

    Attributes:
        front: of the server.
        registry: of these metrics and no others.
    """

    front: ServerFront
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self._durations = {
            name: Histogram(f"uara_{name}_seconds", text, buckets=BUCKETS_S, registry=self.registry)
            for name, text in _HELP.items()
        }
        self.registry.register(self)

    def observe(self, name: str, seconds: float) -> None:
        """Take a duration."""
        self._durations[name].observe(seconds)

    def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        """Read the counters off the front."""
        sessions = GaugeMetricFamily("uara_sessions", "requests that are open")
        sessions.add_metric([], self.front.num_sessions)
        lines = GaugeMetricFamily("uara_connections", "connections that have greeted")
        lines.add_metric([], self.front.num_greeted)
        events = CounterMetricFamily("uara_events", "what has happened so far", labels=["event"])
        for name, count in self.front.counts.items():
            events.add_metric([name], count)
        return [sessions, lines, events]

    def listen(self, port: int) -> int:
        """Serve `/metrics` on loopback from a thread; return the port.

        Raises:
            UserError: if the port is taken.
        """
        try:
            server, _ = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        except OSError as error:
            raise UserError(f"metrics port {port} cannot be opened ({error.strerror})") from error
        return int(server.server_port)
