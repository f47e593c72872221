"""OpenTelemetry traces, from a request to the ticks that moved its images. Only who asks for them imports this file.

A trace says what a request cost, and nothing of what was asked for: no prompt, key, code, seed or scope.
"""

import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import ddm_rt
from ddm_rt.errors import DdmError
from ddm_rt.serve.http.middleware import GONE, NO_ROUTE, PROBES, method_of, request_id
from ddm_rt.serve.scheduling.observer import Observer
from ddm_rt.serve.scheduling.service import LiveRequest
from ddm_rt.serve.scheduling.ticket import State, Ticket

MOST_LINKS = 16  # of a span that several requests share
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# What the standard's variables may say, where they are set: this is what the exporter does.
_ONLY = {
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
}
_W3C = TraceContextTextMapPropagator()


@dataclass
class _Traced:
    """A request whose trace is recorded."""

    parent: Context  # of the HTTP request
    sampling: Span | None = None  # from its first step on
    ticks: int = 0
    stepped_ns: int = 0  # the end of its latest tick


class Traces(Observer):
    """Sends spans to the collector that the standard's variables name (`OTEL_EXPORTER_OTLP_ENDPOINT` and others).

    Raises DdmError where none of them names one, and where one asks for what this exporter doesn't do.
    """

    def __init__(self) -> None:
        _check(os.environ)
        about = Resource({"service.name": "ddm-rt", "service.version": ddm_rt.__version__})
        # What the environment says comes before what is said here.
        self._provider = TracerProvider(resource=Resource.create().merge(about).merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("ddm_rt", ddm_rt.__version__)
        self._traced: dict[Ticket, _Traced] = {}  # guarded by the service's lock

    def around(self, app: ASGIApp) -> ASGIApp:
        """A span for each request to the application, save for probes and scrapes."""
        return _Around(app, self)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """Around an HTTP request; continues the trace that its `traceparent` names."""
        with self._tracer.start_as_current_span(
            method,
            _W3C.extract(headers),
            SpanKind.SERVER,
            {"http.request.method": method, "ddm.request_id": request_id.get()},
            record_exception=False,  # an error's words may be a client's
            set_status_on_exception=False,
        ) as span:
            yield span

    def taken(self, ticket: Ticket) -> None:
        if trace.get_current_span().is_recording():
            self._traced[ticket] = _Traced(trace.set_span_in_context(trace.get_current_span()))

    def drawn(self, ticket: Ticket, seconds: float) -> None:
        self._spent("ledger.draw", seconds, ticket)

    def settled(self, ticket: Ticket, seconds: float) -> None:
        self._spent("ledger.settle", seconds, ticket)

    def ticked(self, seconds: float, images: int, requests: Collection[LiveRequest]) -> None:
        traced = self._among(requests)
        if not traced:
            return
        now = time.time_ns()
        for ticket, found in traced:
            if found.sampling is None:
                begun = _moment_ns(ticket.begun_s, now)
                waited = self._tracer.start_span("queue", found.parent, start_time=_moment_ns(ticket.taken_s, now))
                waited.end(begun)
                found.sampling = self._tracer.start_span("sampling", found.parent, start_time=begun)
            found.ticks += 1
            found.stepped_ns = now
        self._shared("tick", seconds, images, len(requests), [found.sampling for _, found in traced if found.sampling])

    def decoded(self, seconds: float, images: int, requests: Collection[LiveRequest]) -> None:
        spans = [trace.get_current_span(found.parent) for _, found in self._among(requests)]
        if spans:
            self._shared("decoding", seconds, images, len(requests), spans)

    def forgotten(self, ticket: Ticket) -> None:
        found = self._traced.pop(ticket, None)
        if found is None or found.sampling is None:
            return
        found.sampling.set_attributes({"ddm.images": ticket.n, "ddm.ticks": found.ticks})
        if ticket.state is not None:
            found.sampling.set_attribute("ddm.state", ticket.state.value)
        if ticket.state is State.FAILED:
            found.sampling.set_status(Status(StatusCode.ERROR))
        found.sampling.end(found.stepped_ns)

    def _among(self, requests: Collection[LiveRequest]) -> list[tuple[Ticket, _Traced]]:
        if not self._traced:
            return []
        return [(each.ticket, self._traced[each.ticket]) for each in requests if each.ticket in self._traced]

    def _spent(self, name: str, seconds: float, ticket: Ticket) -> None:
        if (found := self._traced.get(ticket)) is not None:
            now = time.time_ns()
            self._tracer.start_span(name, found.parent, start_time=now - _ns(seconds)).end(now)

    def _shared(self, name: str, seconds: float, images: int, requests: int, spans: list[Span]) -> None:
        """A span below the first of `spans`, linked to the others."""
        now, first, others = time.time_ns(), spans[0], spans[1 : 1 + MOST_LINKS]
        self._tracer.start_span(
            name,
            trace.set_span_in_context(first),
            attributes={"ddm.batch_size": images, "ddm.requests": requests},
            links=[Link(other.get_span_context()) for other in others],
            start_time=now - _ns(seconds),
        ).end(now)


class _Around:
    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self._app, self._traces = app, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        status = GONE

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        method = method_of(scope)
        with self._traces.request(method, Headers(raw=scope["headers"])) as span:
            try:
                await self._app(scope, receive, noting)
            except Exception:
                status = 500
                raise
            finally:
                route = getattr(scope.get("route"), "path", NO_ROUTE)
                span.update_name(f"{method} {route}")
                span.set_attributes({"http.route": route, "http.response.status_code": status})
                if status >= 500:
                    span.set_status(Status(StatusCode.ERROR))


def _check(variables: Mapping[str, str]) -> None:
    name = next((name for name in _ENDPOINTS if variables.get(name)), None)
    if name is None:
        example = f"{_ENDPOINTS[1]}=http://localhost:4318"
        raise DdmError(f"--traces: no collector is named; expected the variable {example}, for example")
    if not variables[name].startswith(("http://", "https://")):
        raise DdmError(f"{name} is {variables[name]!r}; expected an address that begins with http:// or https://")
    for name, only in _ONLY.items():
        if variables.get(name, only) != only:
            raise DdmError(f"{name} is {variables[name]!r}; expected {only}, which is all that --traces can do")


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _moment_ns(monotonic_s: float | None, now_ns: int) -> int:
    """A moment of time.monotonic on the clock of spans; `now_ns` where it is not known."""
    return now_ns if monotonic_s is None else now_ns - _ns(time.monotonic() - monotonic_s)
