"""What Prometheus reads at /metrics: the scheduler's counts, and those of the HTTP interface."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from ddm_rt.config import NULL_CODE
from ddm_rt.raking import shares
from ddm_rt.runtime import CodeTable
from ddm_rt.serve.scheduling.stats import Aim, Stats
from ddm_rt.serve.scheduling.ticket import Ticket

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

Wanted = Callable[[str], Sequence[float] | None]


class Metrics(Collector):
    """A registry of its own: several servers in one process don't meet."""

    def __init__(
        self,
        stats: Callable[[], Stats],
        about: Mapping[str, str] | None = None,
        codes: CodeTable = CodeTable(),  # noqa: B008 (frozen)
        wanted: Wanted = lambda target: None,
    ) -> None:
        """`about` are labels of `ddm_build_info`, "model" among them. `wanted` gives the share of each of `codes` that
        a target asks for; None where it is about groups.
        """
        self._stats, self._about, self._wanted = stats, {"model": "", **(about or {})}, wanted
        self._codes = codes
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "ddm_http_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = self._histogram(
            "ddm_http_request_seconds", "From a request's head to the end of its response.", "route", "status"
        )
        by = ("model", "stream", "status")
        self._whole = self._histogram("ddm_generation_seconds", "From taking a request in to its end.", *by)
        self._first = self._histogram("ddm_first_image_seconds", "From taking a request in to its first image.", *by)
        self._queued = self._histogram("ddm_queue_seconds", "From taking a request in to its first step.", *by)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request of any kind was answered."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route, status).observe(seconds)

    def generated(self, ticket: Ticket, stream: bool) -> None:
        """A request for images has ended."""
        status = "unfinished" if ticket.state is None else ticket.state.value
        labels = (self._about["model"], "true" if stream else "false", status)
        self._whole.labels(*labels).observe(time.monotonic() - ticket.taken_s)
        for histogram, moment in ((self._first, ticket.first_s), (self._queued, ticket.begun_s)):
            if moment is not None:
                histogram.labels(*labels).observe(moment - ticket.taken_s)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The counts of the scheduler, which the registry asks for each time that it is read."""
        stats = self._stats()
        yield InfoMetricFamily("ddm_build", "What is served, by which version.", self._about)
        for name, about, value in (
            ("ddm_requests_under_way", "Requests taken in that have not ended.", stats.requests),
            ("ddm_queue_images", "Images that wait for a slot.", stats.waiting),
            ("ddm_queue_images_max", "Images that may wait.", stats.queue),
            ("ddm_slots_occupied", "Images in flight.", stats.occupied),
            ("ddm_slots", "Images that may be in flight.", stats.slots),
            ("ddm_decoding_images", "Sampled images that are not delivered yet.", stats.decoding),
        ):
            yield GaugeMetricFamily(name, about, value)
        yield SummaryMetricFamily(
            "ddm_step_seconds", "Steps of all slots together.", count_value=stats.ticks, sum_value=stats.tick_seconds
        )
        yield SummaryMetricFamily(
            "ddm_ledger_seconds",
            "Checks of requests and draws of their codes from the ledger.",
            count_value=stats.ledger_calls,
            sum_value=stats.ledger_seconds,
        )
        yield CounterMetricFamily("ddm_ledger_errors", "Uses of the ledger that failed.", stats.ledger_errors)
        yield _histogram("ddm_batch_images", "Images that a step moved.", stats.tick_images, self._about["model"])
        yield CounterMetricFamily("ddm_image_steps", "Steps of each image, added up.", stats.steps)
        yield CounterMetricFamily("ddm_images", "Images of requests that finished.", stats.images)
        ended = {("finished",): stats.finished, ("failed",): stats.failed, ("cancelled",): stats.cancelled}
        yield _counter("ddm_requests", "Requests that ended.", ("state",), ended)
        rejected = {(reason,): count for reason, count in stats.rejected.items()}
        yield _counter("ddm_rejected", "Requests that were not taken in.", ("reason",), rejected)
        labels, tops, values = ("scope", "target"), defaultdict[Any, int](int), defaultdict[Any, int](int)
        for (aim, code), n in stats.assigned.items():
            own = (aim.scope or "", aim.target or "")
            tops[*own, str(NULL_CODE if code == NULL_CODE else self._codes.top_of[code])] += n
            for factor in self._codes.factors if code != NULL_CODE else ():
                values[*own, factor.name, factor.values[factor.value_of[code]]] += n
        yield _counter("ddm_assigned", "Images of requests that finished.", (*labels, "top_code"), tops)
        if self._codes.factors:
            about = "Images of requests that finished, by each factor's values."
            yield _counter("ddm_assigned_values", about, (*labels, "factor", "value"), values)
        yield self._errors(stats)

    def _histogram(self, name: str, about: str, *labels: str) -> Histogram:
        return Histogram(name, about, labels, buckets=_SECONDS, registry=self._registry)

    def _errors(self, stats: Stats) -> Metric:
        about = (
            "Largest distance of a top code's share from its target, or of the share of any factor's value where there "
            "are factors, among images of requests that finished."
        )
        family = GaugeMetricFamily("ddm_share_error", about, labels=("scope", "target"))
        counts: dict[Aim, dict[int, int]] = {}
        for (aim, code), images in stats.assigned.items():
            counts.setdefault(aim, {})[code] = images
        values_of = [factor.value_of for factor in self._codes.factors] or [self._codes.top_of]
        for aim, codes in counts.items():
            wanted = None if aim.target is None else self._wanted(aim.target)
            if wanted is not None:
                total = sum(codes.values())
                off = [codes.get(code, 0) / total - share for code, share in enumerate(wanted)]
                error = max(abs(each) for value_of in values_of for each in shares(value_of, off, max(value_of) + 1))
                family.add_metric((aim.scope or "", aim.target or ""), error)
        return family


def _counter(name: str, about: str, labels: Sequence[str], counts: Mapping[Any, int]) -> Metric:
    """`counts` by the labels' values."""
    family = CounterMetricFamily(name, about, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _histogram(name: str, about: str, counts: Mapping[int, int], model: str) -> Metric:
    """Of values that were counted one by one."""
    buckets = [(str(float(most)), float(sum(n for value, n in counts.items() if value <= most))) for most in _IMAGES]
    total = float(sum(counts.values()))
    family = HistogramMetricFamily(name, about, labels=("model",))
    family.add_metric((model,), [*buckets, ("+Inf", total)], float(sum(value * n for value, n in counts.items())))
    return family
