"""`ddm-rt serve`: a bundle over HTTP, on this process's engine or on replicas of it."""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddm_rt.bundle import Bundle
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.http.app import create_app
from ddm_rt.serve.http.balance import Measured
from ddm_rt.serve.http.keys import Keys
from ddm_rt.serve.http.server import Server
from ddm_rt.serve.scheduling.scheduler import Scheduler
from ddm_rt.serve.scheduling.service import Service
from ddm_rt.serve.settings import HttpSettings, RaySettings, ServeSettings

if TYPE_CHECKING:
    from ddm_rt.serve.http.traces import Traces


def serve(
    bundle: str,
    place: socket.socket,
    bounds: ServeSettings,
    http: HttpSettings,
    *,
    replicas: RaySettings | None = None,
    keys: Keys | None = None,
    measured: Measured | None = None,
    traces: "Traces | None" = None,
    ledger: Path | None = None,
    fsync: bool = False,
    backend: str = "auto",
    on_ready: Callable[[Bundle, str], None] = lambda bundle, name: None,
    **loading: Any,
) -> None:
    """Serve `bundle` (a directory, or a shipped name) on the listening socket `place` until SIGTERM or SIGINT.

    It runs on `replicas` by Ray Serve, or in this process on `backend`, with `loading` for `Pipeline.load`. The model's
    name is that of `http`, or of the bundle's directory. The `ledger` keeps the counts of scopes and survives a power
    loss with `fsync`; without one they end with the call. `keys` are those of callers; without any everyone may call.
    `measured` judges what is delivered. `traces` gets spans, and is closed at the end. `on_ready` is called with the
    bundle and the model's name when requests are answered.

    Raises DdmError for a bad bundle or ledger and where no replica can be started, BackendUnavailable for a backend
    that can't run here.
    """
    with ExitStack() as stack:
        if traces is not None:
            stack.callback(traces.close)
        scheduler: Service[Any]
        if replicas is not None:
            from ddm_rt.serve.cluster.deployment import started  # needs Ray, which one process doesn't

            service = started(bundle, bounds, replicas, backend=backend, ledger=ledger, fsync=fsync)
            scheduler = stack.enter_context(service)
        else:
            counts = stack.enter_context(Ledger(ledger, fsync=fsync))
            counts.check()
            pipeline = Pipeline.load(bundle, backend, ledger=counts, **loading)
            scheduler = stack.enter_context(Scheduler(pipeline, bounds))
        opened = scheduler.pipeline.bundle
        named = http.name or opened.path.resolve().name
        http = http.model_copy(update={"name": named})
        application = create_app(scheduler, http, keys=keys, measured=measured, traces=traces)
        Server(application, scheduler, http, lambda: on_ready(opened, named)).run([place])
