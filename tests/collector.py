"""A collector of traces: it takes what OpenTelemetry exports over HTTP, and reads it by the published schema."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from patience import settled


@dataclass
class Collector:
    url: str = ""
    spans: list[Any] = field(default_factory=list)  # opentelemetry.proto.trace.v1.Span
    about: dict[str, str] = field(default_factory=dict)  # attributes of the resource
    asked: list[str] = field(default_factory=list)  # paths
    raw: bytes = b""

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    def wait_for(self, name: str, count: int = 1) -> list[Any]:
        assert settled(lambda: len(self.named(name)) >= count), (name, sorted(span.name for span in self.spans))
        return self.named(name)


def attributes(holder: Any) -> dict[str, Any]:
    """Of a span or a resource."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free loopback port."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
    )

    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            found.asked.append(self.path)
            found.raw += body
            for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
                found.about |= attributes(sent.resource)
                for scope in sent.scope_spans:
                    found.spans.extend(scope.spans)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
