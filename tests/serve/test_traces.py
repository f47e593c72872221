"""Traces go from a request to the ticks that moved its images, to a collector that reads OpenTelemetry's own schema."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from collector import Collector, attributes, collecting
from gated_engine import FailingEngine, GatedEngine
from http_server import GENERATIONS, client_of, fake_pipeline
from patience import PATIENCE_S
from schedulers import stopped_at
from served import serving

from ddm_rt.errors import DdmError
from ddm_rt.sample.request import Request
from ddm_rt.serve.http.traces import MOST_LINKS, Traces

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture(autouse=True)
def _of_this_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as found:
        monkeypatch.setenv(ENDPOINT, found.url)
        yield found


def test_one_request_from_its_head_to_its_ticks(collector: Collector) -> None:
    traces = Traces()
    with client_of(fake_pipeline(), traces=traces) as client:
        headers = {"traceparent": TRACEPARENT, "x-request-id": "mine-1"}
        body = {"n": 2, "steps": 3, "scope": "secret scope", "seed": 424242}
        assert client.post(GENERATIONS, json=body, headers=headers).status_code == 200
        assert client.get("/healthz").status_code == client.get("/metrics").status_code == 200
    traces.close()

    [root] = collector.named(f"POST {GENERATIONS}")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert root.kind == root.SPAN_KIND_SERVER
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.route": GENERATIONS,
        "http.response.status_code": 200,
        "ddm.request_id": "mine-1",
    }
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    [queue], [sampling], ticks = (collector.named(name) for name in ("queue", "sampling", "tick"))
    for name in ("ledger.draw", "queue", "sampling", "decoding", "ledger.settle"):
        assert [span.parent_span_id for span in collector.named(name)] == [root.span_id]
    assert attributes(sampling) == {"ddm.images": 2, "ddm.ticks": 3, "ddm.state": "finished"}
    assert [attributes(tick) for tick in ticks] == [{"ddm.batch_size": 2, "ddm.requests": 1}] * 3
    assert {tick.parent_span_id for tick in ticks} == {sampling.span_id}
    assert queue.end_time_unix_nano == sampling.start_time_unix_nano
    assert root.start_time_unix_nano <= queue.start_time_unix_nano <= queue.end_time_unix_nano
    assert sampling.end_time_unix_nano <= root.end_time_unix_nano
    assert len(collector.spans) == 6 + 3
    assert collector.about["service.name"] == "ddm-rt"
    assert set(collector.asked) == {"/v1/traces"}
    assert b"secret scope" not in collector.raw
    assert b"424242" not in collector.raw


def test_a_tick_of_several_requests_is_linked_to_all_of_them(collector: Collector, engine: GatedEngine) -> None:
    traces, count = Traces(), MOST_LINKS + 3
    with stopped_at(engine, 0, slots=32) as scheduler:
        scheduler.observe(traces)
        tickets = []
        for _ in range(count):
            with traces.request("POST", {}):
                tickets.append(scheduler.submit(Request(num_steps=2)))
        engine.go.set()  # all are queued and none has done a step, so the second tick has all of them
        for ticket in tickets:
            ticket.result(PATIENCE_S)
    traces.close()
    known = {span.span_id for span in collector.named("sampling")}
    assert len(known) == count
    for tick in collector.named("tick"):
        of = [tick.parent_span_id, *(link.span_id for link in tick.links)]
        assert len(set(of)) == len(of) == min(attributes(tick)["ddm.requests"], 1 + MOST_LINKS)
        assert known.issuperset(of)
    assert max(attributes(tick)["ddm.requests"] for tick in collector.named("tick")) == count


def test_what_is_refused_or_fails_is_marked_without_its_words(collector: Collector) -> None:
    engine, traces = FailingEngine("decoder", 0), Traces()
    pipeline = fake_pipeline(engine)
    with client_of(pipeline, traces=traces) as client:
        assert client.post(GENERATIONS, json={"n": 2, "size": "words of a client"}).status_code == 400
        assert client.request("BREW", "/words/of/a/client").status_code == 415
        engine.armed = bool(pipeline.buckets)
        assert client.post(GENERATIONS, json={"n": 16, "steps": 1}).status_code == 500
    traces.close()
    refused, failed = collector.named(f"POST {GENERATIONS}")
    [unknown], [sampling] = collector.named("(other) (none)"), collector.named("sampling")
    statuses = [attributes(span)["http.response.status_code"] for span in (refused, unknown, failed)]
    assert statuses == [400, 415, 500]
    assert attributes(sampling)["ddm.state"] == "failed"
    assert [span.status.code for span in (refused, unknown, failed, sampling)] == [0, 0, 2, 2]
    assert not any(span.events or span.status.message for span in collector.spans)
    assert b"client" not in collector.raw
    assert b"non-finite" not in collector.raw


def test_a_trace_that_its_caller_does_not_record(collector: Collector) -> None:
    traces = Traces()
    with client_of(fake_pipeline(), traces=traces) as client:
        assert client.post(GENERATIONS, json={}, headers={"traceparent": TRACEPARENT[:-1] + "0"}).status_code == 200
    traces.close()
    assert collector.spans == []


def test_what_the_environment_says_of_the_server(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,deployment.environment=test")
    traces = Traces()
    with client_of(fake_pipeline(), traces=traces) as client:
        assert client.post(GENERATIONS, json={}).status_code == 200
    traces.close()
    assert (collector.about["service.name"], collector.about["deployment.environment"]) == ("mine", "test")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (None, None, f"no collector is named; expected the variable {ENDPOINT}"),
        (ENDPOINT, "collector:4317", f"{ENDPOINT} is 'collector:4317'; expected an address that begins with http"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; expected http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER is 'zipkin'; expected otlp"),
    ],
)
def test_what_traces_cannot_do(
    name: str | None, value: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name is not None and value is not None:
        monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
        monkeypatch.setenv(name, value)
    with pytest.raises(DdmError) as caught:
        Traces()
    assert message in str(caught.value)


# FastAPI itself imports the interface where it is there, which sends nothing.
def test_without_the_option_what_sends_is_not_imported(collector: Collector) -> None:
    code = (
        "import sys\n"
        "from ddm_rt.cli import main\n"
        "from ddm_rt.serve.http import server\n"
        "server.Server.run = lambda self, sockets: print('opentelemetry.sdk' in sys.modules)\n"
        "sys.argv = ['ddm-rt', 'serve', 'digits', '--port', '0', '--backend', 'onnxruntime']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr
    assert collector.asked == []


@pytest.mark.parametrize("missing", [False, True])
def test_the_command_says_what_it_wants(missing: bool, tmp_path: Path) -> None:
    code = "import sys\n" + ("sys.modules['opentelemetry'] = None\n" if missing else "")
    code += "from ddm_rt.cli import main\nsys.argv = ['ddm-rt', 'serve', 'digits', '--port', '0', '--traces']\nmain()\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert ("ddm-rt[otel]" if missing else ENDPOINT) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow(reason="starts a server; the tests above show the spans")
def test_a_server_of_its_own_sends_what_is_left_when_it_ends(collector: Collector) -> None:
    with serving("digits", "--traces", "--backend", "onnxruntime") as url:
        answer = httpx2.post(f"{url}{GENERATIONS}", json={"n": 3, "steps": 4}, timeout=PATIENCE_S, trust_env=False)
        assert answer.status_code == 200
    [root] = collector.named(f"POST {GENERATIONS}")
    assert attributes(root)["ddm.request_id"] == answer.headers["x-request-id"]
    assert [attributes(tick)["ddm.batch_size"] for tick in collector.named("tick")] == [3] * 4
