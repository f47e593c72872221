"""Starts replicas of a bundle and their ledger with Ray Serve, on one machine or a cluster, and ends them again.

The HTTP interface stays in the process that starts them, the same one as over a single scheduler, with its limits, keys
and graceful end; Ray Serve's own proxies are not started. What is between the processes is Ray's.
"""

import logging
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray import serve
from ray._private import auto_init_hook
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, LoggingConfig, ReplicaState

from ddm_rt.bundle import Bundle
from ddm_rt.config import Backend
from ddm_rt.engine import backends
from ddm_rt.engine.contract import Engine
from ddm_rt.engine.devices import CPU, CUDA
from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve import gpus
from ddm_rt.serve.cluster.front import Front
from ddm_rt.serve.cluster.ledger import SharedLedger, start_keeper
from ddm_rt.serve.cluster.replica import Replica
from ddm_rt.serve.settings import RaySettings, ServeSettings

_NAMESPACE = "ddm-rt"
_DEPLOYMENT = "engine"
_POLL_S = 0.2
_START_S = 600.0  # for the first replica to be there
_LEDGER_S = 30.0  # for the ledger's actor to answer, or to come back
_OBJECT_STORE = 2**27  # bytes, of a cluster on this machine; images pass through it


@dataclass(frozen=True)
class Described:
    """The attributes of the replicas' engines, which are all that preparing a request asks of an engine."""

    backend: str
    precision: str
    threads: int
    versions: dict[str, str]
    machine: None = None
    max_batch: None = None
    batch_sizes: None = None
    cond: None = None
    projects: bool = True
    max_pixels: None = None


@contextmanager
def started(
    bundle: str,
    settings: ServeSettings,
    scale: RaySettings,
    *,
    backend: str = "auto",
    ledger: str | Path | None = None,
    fsync: bool = False,
) -> Iterator[Front]:
    """A started service over replicas of `bundle`, which every machine of the cluster has under this name.

    `ledger` is a file on this machine; without one the counts end with the service. Raises DdmError for a bad bundle or
    ledger, where the cluster isn't there or too small, and where no replica can be started.
    """
    opened = Bundle.load(bundle)
    with ExitStack() as stack:
        if ledger is None:
            ledger = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ddm-rt-"))) / "counts.ledger"
        with Ledger(ledger) as counts:
            counts.check()
            counts.check_bundle(opened)
        check_backend(backend, scale)
        scale = stack.enter_context(_cluster(scale))
        name = f"{_NAMESPACE}-{opened.config.name}"
        keeper = start_keeper(Path(ledger), fsync, name)
        stack.callback(_end_keeper, keeper)
        where = opened.path.absolute() if Path(bundle).exists() else bundle
        deployment = serve.deployment(Replica, name=_DEPLOYMENT).options(**deployment_options(settings, scale))
        application = deployment.bind(str(where), opened.bundle_id, backend, scale.threads, settings, keeper)
        stack.callback(_delete, name)
        target = serve.RunTarget(application, name=name, route_prefix=None)
        [handle] = serve.run_many([target], wait_for_applications_running=False)
        stack.callback(handle.shutdown)
        _wait(name)
        shared = SharedLedger(keeper, _LEDGER_S)
        engine = cast(Engine, Described(**shared.ask("made_by")))
        front = Front(Pipeline(opened, engine, shared), handle, settings, scale.most, lambda: _running(name))
        yield stack.enter_context(front)


def check_backend(backend: str, scale: RaySettings) -> None:
    """Raises DdmError where the backend takes a GPU and replicas reserve none, or the other way round: each computes on
    what Ray gave it.
    """
    if backend not in (Backend.AUTO, *backends.names()):
        choices = ", ".join((Backend.AUTO, *backends.names()))
        raise DdmError(f"backend {backend!r} is unknown; backends: {choices}")
    kinds = {row.device for row in backends.TABLE if row.backend == backend}
    reserved = scale.gpus is not None or scale.gpus_per_replica > 0
    if kinds == {CUDA} and not reserved:
        raise DdmError(
            f"backend {backend} takes a GPU, and the replicas reserve none; give --gpus or --gpus-per-replica"
        )
    if kinds == {CPU} and reserved:
        raise DdmError(
            f"backend {backend} takes no GPU, and the replicas reserve some; leave out --gpus and --gpus-per-replica"
        )


def on_gpus(scale: RaySettings, there: int) -> RaySettings:
    """`scale` with `gpus` as replicas that reserve one each, of those that are `there`. Raises DdmError where it asks
    for more.
    """
    if scale.gpus is None:
        return scale
    if there < (1 if scale.gpus == "all" else scale.gpus):
        has = "no free GPU" if there == 0 else f"{there} free GPU{'s' * (there > 1)}"
        raise DdmError(f"gpus is {scale.gpus}; Ray finds {has}; nvidia-smi and CUDA_VISIBLE_DEVICES say what it sees")
    replicas = there if scale.gpus == "all" else scale.gpus
    return scale.model_copy(update={"gpus": None, "replicas": replicas, "gpus_per_replica": 1.0})


def deployment_options(settings: ServeSettings, scale: RaySettings) -> dict[str, Any]:
    """What Ray Serve is told of replicas: how many, of what, and how much each takes at once."""
    options: dict[str, Any] = {
        "max_ongoing_requests": scale.max_ongoing,
        "max_queued_requests": -1,  # the front bounds what is under way
        "health_check_period_s": 2.0,
        "graceful_shutdown_timeout_s": settings.drain_s,
        "ray_actor_options": {"num_cpus": scale.cpus, "num_gpus": scale.gpus_per_replica},
    }
    if scale.most == scale.replicas:
        return options | {"num_replicas": scale.replicas}
    return options | {
        "autoscaling_config": {
            "min_replicas": scale.replicas,
            "max_replicas": scale.most,
            "target_ongoing_requests": scale.target_ongoing,
            "upscale_delay_s": 10.0,  # for which the load must have been higher
            "downscale_delay_s": 300.0,  # or lower
        }
    }


@contextmanager
def _cluster(scale: RaySettings) -> Iterator[RaySettings]:
    """Ray and Ray Serve: those at the address, or of this machine alone until the block ends. Gives `scale` with its
    replicas counted.
    """
    if ray.is_initialized():
        raise DdmError("Ray runs in this process already; expected none, or ray.shutdown() first")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to anyone
    # Or else a thread of Ray Serve's that calls once more after the end would start another cluster.
    auto_init_hook.enable_auto_connect = False
    quiet: dict[str, Any] = {"configure_logging": False, "log_to_driver": False, "namespace": _NAMESPACE}
    _log_like_us()
    if scale.address is None:
        # Ray's ports are open on every interface: who doesn't know this is not let in. Ray reads it once in a process.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray.init("local", include_dashboard=scale.dashboard, object_store_memory=_OBJECT_STORE, **quiet)
    else:
        try:
            ray.init(scale.address, **quiet)
        except ConnectionError as error:
            raise DdmError(f"address {scale.address}: {error}; expected that of a Ray cluster") from error
    try:
        scale = on_gpus(scale, gpus.count())
        if scale.address is None:
            _check_size(scale)
        serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING"))
        yield scale
    finally:
        ray.shutdown()


def _log_like_us() -> None:
    """Ray Serve writes to stderr in a form of its own; what matters of it goes where our lines go."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it praises itself at each start
    logger = logging.getLogger("ray.serve")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)


def _check_size(scale: RaySettings) -> None:
    for field, resource, each in (("cpus", "CPU", scale.cpus), ("gpus_per_replica", "GPU", scale.gpus_per_replica)):
        has = ray.cluster_resources().get(resource, 0)
        if scale.most * each > has:
            raise DdmError(f"{field} is {each:g} for each of {scale.most} replicas; this machine has {has:g} in all")


def _wait(name: str) -> None:
    """Until a replica is there. Raises DdmError with the reason where none can be."""
    end = time.monotonic() + _START_S
    while not _running(name):
        application = serve.status().applications[name]
        if application.status is ApplicationStatus.DEPLOY_FAILED:
            reasons = [application.message, *(each.message for each in application.deployments.values())]
            raise DdmError(f"no replica can be started: {' '.join(reasons)}")
        if time.monotonic() > end:
            raise DdmError(f"no replica is there after {_START_S:g} s")
        time.sleep(_POLL_S)


def _running(name: str) -> int:
    application = serve.status().applications.get(name)
    if application is None or _DEPLOYMENT not in application.deployments:
        return 0
    running: int = application.deployments[_DEPLOYMENT].replica_states.get(ReplicaState.RUNNING, 0)
    return running


def _delete(name: str) -> None:
    with suppress(RayError, RayServeException):
        serve.delete(name)


def _end_keeper(keeper: Any) -> None:
    """Where it can't be asked, what is open in its file is given back when that is used next."""
    with suppress(RayError):
        ray.get(keeper.close.remote(), timeout=5)
    ray.kill(keeper)
