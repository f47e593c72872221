"""Three nodes of a Ray cluster, of which those with replicas are killed under load: nothing that was asked is lost.

The first node has the command's process, with the HTTP front and the ledger's actor, and no replica. Those can't move:
docs/pages/guides/operate.md tells what their node's death does.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray_processes
from http_server import Running, answering
from patience import settled
from ray.cluster_utils import Cluster
from ray_load import PATIENCE_S, check_balance, check_bytes, load

from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.cluster.deployment import started
from ddm_rt.serve.cluster.front import Front
from ddm_rt.serve.settings import RaySettings, ServeSettings

pytestmark = pytest.mark.slow(reason="starts four nodes of Ray and three replicas, minutes on two cores")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args=node(0))
        try:
            for _ in range(2):
                cluster.add_node(**node(1))
            yield cluster
        finally:
            cluster.shutdown()
    assert settled(lambda: not ray_processes.pids("ray::"), PATIENCE_S)


def node(replicas: int) -> dict[str, Any]:
    """With room for so many."""
    return {"num_cpus": replicas, "object_store_memory": 2**27, "include_dashboard": False}


@pytest.fixture(scope="module")
def server(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    ledger: Path = tmp_path_factory.mktemp("ray") / "counts.ledger"
    settings = ServeSettings(slots=4, queue=64, deadline_s=PATIENCE_S)
    scale = RaySettings(replicas=2, cpus=1, address=cluster.address)
    with (
        started("digits", settings, scale, backend="onnxruntime", ledger=ledger) as front,
        answering(front) as server,
    ):
        assert settled(lambda: front._count_replicas() == 2, PATIENCE_S)
        yield server


def test_a_node_that_is_killed_costs_no_request(
    cluster: Cluster, server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice: where the other node with a replica is left, and where the only one is lost and a new one comes."""
    front = server.scheduler
    assert isinstance(front, Front)
    assert ray.get_runtime_context().get_node_id() == cluster.head_node.node_id  # with the ledger's actor
    alone = Pipeline.load("digits", backend="onnxruntime", threads=1)

    def kill() -> None:
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

    with caplog.at_level(logging.WARNING, "ddm_rt.serve.cluster.front"):
        replies = load(server, "one", 8, kill)
    assert "lost its replica" in caplog.text, "none was under way there: the test shows nothing"
    check_balance(front, "one", replies)
    check_bytes(alone, replies)
    assert settled(lambda: front._count_replicas() == 1, PATIENCE_S)

    def kill_the_last() -> None:
        kill()
        cluster.add_node(wait=False, **node(1))

    caplog.clear()
    with caplog.at_level(logging.WARNING, "ddm_rt.serve.cluster.front"):
        replies = load(server, "last", 8, kill_the_last)
    assert "lost its replica" in caplog.text
    check_balance(front, "last", replies)
    check_bytes(alone, replies[:8])
