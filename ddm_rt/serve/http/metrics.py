"""What Prometheus reads at /metrics: the scheduler's counts, and those of the HTTP interface."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from ddm_rt.serve.scheduling.stats import Stats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics(Collector):
    """A registry of its own: several servers in one process don't meet."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._requests = Counter(
            "ddm_http_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "ddm_http_request_seconds",
            "From a request's head to the end of its response.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The counts of the scheduler, which the registry asks for each time that it is read."""
        stats = self._stats()
        for name, about, value in (
            ("ddm_requests_under_way", "Requests taken in that have not ended.", stats.requests),
            ("ddm_queue_images", "Images that wait for a slot.", stats.waiting),
            ("ddm_queue_images_max", "Images that may wait.", stats.queue),
            ("ddm_slots_occupied", "Images in flight.", stats.occupied),
            ("ddm_slots", "Images that may be in flight.", stats.slots),
            ("ddm_decoding_images", "Sampled images that are not delivered yet.", stats.decoding),
            ("ddm_step_seconds_p50", "Median of the latest steps.", stats.tick_p50_s),
            ("ddm_step_seconds_p95", "95th percentile of the latest steps.", stats.tick_p95_s),
        ):
            yield GaugeMetricFamily(name, about, value)
        yield SummaryMetricFamily(
            "ddm_step_seconds", "Steps of all slots together.", count_value=stats.ticks, sum_value=stats.tick_seconds
        )
        yield CounterMetricFamily("ddm_image_steps", "Steps of each image, added up.", stats.steps)
        yield CounterMetricFamily("ddm_images", "Images of requests that finished.", stats.images)
        ended = {("finished",): stats.finished, ("failed",): stats.failed, ("cancelled",): stats.cancelled}
        yield _counter("ddm_requests", "Requests that ended.", ("state",), ended)
        rejected = {(reason,): count for reason, count in stats.rejected.items()}
        yield _counter("ddm_rejected", "Requests that were not taken in.", ("reason",), rejected)
        assigned = {(aim.scope or "", aim.target or "", str(top)): n for (aim, top), n in stats.assigned.items()}
        yield _counter("ddm_assigned", "Images of requests that finished.", ("scope", "target", "top_code"), assigned)


def _counter(name: str, about: str, labels: Sequence[str], counts: Mapping[Any, int]) -> Metric:
    """`counts` by the labels' values."""
    family = CounterMetricFamily(name, about, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family
