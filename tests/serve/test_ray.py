"""Two replicas and a ledger's actor over HTTP: killed under load, they cost no request, no byte and no balance."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import ray_processes
from http_server import GENERATIONS, Running, answering
from patience import settled
from ray_load import PATIENCE_S, check_balance, check_bytes, load

from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.ledger import Ledger, Stream
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.serve.cluster.deployment import started
from ddm_rt.serve.cluster.front import Front
from ddm_rt.serve.settings import RaySettings, ServeSettings

# Starting Ray and two replicas takes most of a minute where other tests share the cores.
pytestmark = pytest.mark.slow

REPLICA = "ray::ServeReplica:"
KEEPER = "ray::LedgerKeeper"


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray") / "counts.ledger"


@pytest.fixture(scope="module")
def server(ledger: Path) -> Iterator[Running]:
    settings = ServeSettings(slots=4, queue=64, deadline_s=PATIENCE_S)
    # Ready to scale, so that Ray Serve counts and tells as it does then, and with no reason to.
    scale = RaySettings(replicas=2, max_replicas=3, target_ongoing=1000, cpus=0.5)
    with (
        started("digits", settings, scale, backend="onnxruntime", ledger=ledger) as front,
        answering(front) as server,
    ):
        assert settled(lambda: front._count_replicas() == 2, PATIENCE_S)
        yield server
    assert settled(lambda: not ray_processes.pids("ray::"), PATIENCE_S)
    time.sleep(5)  # for threads of Ray Serve's that call once more: they must not start another Ray
    assert not ray.is_initialized()
    assert not ray_processes.pids("ray::")


@pytest.fixture(scope="module")
def alone() -> Pipeline:
    return Pipeline.load("digits", backend="onnxruntime", threads=1)


def test_a_replica_that_is_killed_costs_no_request(
    server: Running, alone: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    front = server.scheduler
    assert isinstance(front, Front)
    before = ray_processes.pids(REPLICA)
    assert len(before) == 2
    with caplog.at_level(logging.WARNING, "ddm_rt.serve.cluster.front"):
        replies = load(server, "replica", 8, lambda: ray_processes.kill(before[0]))
    assert "lost its replica" in caplog.text, "none was under way there: the test shows nothing"
    check_balance(front, "replica", replies)
    check_bytes(alone, replies)
    assert settled(lambda: len(set(ray_processes.pids(REPLICA)) - {before[0]}) == 2, PATIENCE_S)
    assert settled(lambda: front._count_replicas() == 2, PATIENCE_S)


def test_a_ledger_that_is_killed_goes_on_where_it_stopped(server: Running, alone: Pipeline) -> None:
    front = server.scheduler
    assert isinstance(front, Front)
    [before] = ray_processes.pids(KEEPER)
    replies = load(server, "ledger", 8, lambda: ray_processes.kill(before))
    check_balance(front, "ledger", replies)
    check_bytes(alone, replies[:4])
    [after] = ray_processes.pids(KEEPER)
    assert after != before


def test_a_client_that_leaves_gives_its_codes_back(server: Running) -> None:
    front = server.scheduler
    assert isinstance(front, Front)
    ticket = front.submit(Request(n=4, num_steps=200, scope="left"))
    assert ticket.cancel()
    with pytest.raises(Exception, match="cancelled"):
        ticket.result(PATIENCE_S)
    stream = Stream(front.pipeline.bundle.bundle_id, "left", "uniform")
    assert front.pipeline.ledger.counts(stream).pooled.total() == 4
    assert settled(lambda: front.stats().occupied == 0, PATIENCE_S)
    assert front.stats().cancelled == 1


def test_what_http_says_is_of_all_replicas(server: Running) -> None:
    with server.client() as client:
        assert settled(lambda: client.get("/readyz").status_code == 200, PATIENCE_S)
        done = client.post(GENERATIONS, json={"n": 2, "steps": 4, "seed": 3, "scope": "told"}).json()
        assert done["manifest"]["backend"] == "onnxruntime"
        with client.stream(
            "POST", GENERATIONS, json={"n": 2, "steps": 100, "stream": True, "extra_events": True, "scope": None}
        ) as stream:
            events = [line for line in stream.iter_lines() if line.startswith("event: ")]
        assert events[0] == "event: image_generation.started"
        assert events.count("event: image_generation.completed") == 2
        assert events[-1] == "event: image_generation.finished"
        metrics = client.get("/metrics").text
        assert "ddm_slots 8.0" in metrics
        assert 'ddm_assigned_total{scope="told",target="uniform",top_code="0"} 1.0' in metrics
        [balance] = client.get("/v1/balance", params={"scope": "told"}).json()["data"]
        assert balance["assigned"] == {"issued": 2, "done": 2, "in_progress": 0, "pooled": 0}
        for body, field in (({"n": 65}, "n"), ({"steps": 201}, "steps"), ({"target": "code:9=1"}, "target")):
            refused = client.post(GENERATIONS, json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
        busy = client.post(GENERATIONS, json={"steps": 200, "n": 64, "deadline_s": 0.05})
        assert busy.status_code in (400, 504)
        with (
            pytest.raises(DdmError, match="Ray runs in this process"),
            started("digits", ServeSettings(), RaySettings()),
        ):
            pass


def test_one_ray_in_a_process(server: Running) -> None:
    with pytest.raises(DdmError, match="already"), started("digits", ServeSettings(), RaySettings()):
        pass


def test_the_file_has_what_was_drawn(server: Running, ledger: Path) -> None:
    with server.client() as client:
        reply = client.post(GENERATIONS, json={"n": 3, "steps": 2, "scope": "file"}).json()
    front = server.scheduler
    assert isinstance(front, Front)
    with Ledger(ledger) as counts:
        found = counts.counts(Stream(front.pipeline.bundle.bundle_id, "file", "uniform"))
    assert found.done == Counter(image["code"] for image in reply["data"])
