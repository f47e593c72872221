"""`ddm-rt serve`: a bundle over HTTP."""

import ipaddress
import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from ddm_rt.cli.app import BackendName, DeviceName, ModeName, PrecisionName, Threads, app, say
from ddm_rt.errors import DdmError

if TYPE_CHECKING:
    from ddm_rt.serve.http.balance import Measured
    from ddm_rt.serve.settings import RaySettings

_log = logging.getLogger(__name__)


@app.command()
def serve(
    bundle: Annotated[str, typer.Argument(help="A bundle directory, or the shipped one: digits.")],
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    slots: Annotated[int, typer.Option(min=1, help="Images in flight, which share one batch.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Images that may wait for a slot; then requests get 429.")] = 256,
    max_images: Annotated[int, typer.Option(min=1, help="Of one request.")] = 64,
    max_steps: Annotated[int, typer.Option(min=1, help="Of one image.")] = 200,
    per_key: Annotated[int, typer.Option(min=1, help="Requests of one API key at once.")] = 8,
    deadline: Annotated[float, typer.Option(help="Seconds that a request has, where it doesn't say.")] = 60.0,
    drain: Annotated[
        float, typer.Option(help="Seconds for requests under way when the server is told to stop.")
    ] = 30.0,
    size: Annotated[
        list[str] | None, typer.Option(help="WIDTHxHEIGHT that may be asked for, besides the bundle's.")
    ] = None,
    scope: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Requests that name no scope are balanced together under this name."),
    ] = "default",
    ledger: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File that keeps the counts of scopes; made where there is none."),
    ] = None,
    fsync: Annotated[bool, typer.Option("--fsync", help="The ledger also survives a power loss; slower.")] = False,
    keys: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File with a line NAME KEY [PRIORITY] for each API key; KEY may be sha256:HEX."),
    ] = None,
    judge: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="digits, or an ONNX classifier: looks at each image, for the shares on the page."),
    ] = None,
    groups: Annotated[str | None, typer.Option(help="The judge's classes to report, by comma; by default all.")] = None,
    classes: Annotated[str | None, typer.Option(help="The judge's classes, where its file doesn't name them.")] = None,
    ignore_prompt: Annotated[
        bool, typer.Option("--ignore-prompt", help="A bundle that takes no prompts drops them, instead of an error.")
    ] = False,
    origin: Annotated[
        list[str] | None, typer.Option(help="A web page elsewhere, https://HOST, that may call (CORS).")
    ] = None,
    public_url: Annotated[str | None, typer.Option(help="What the URLs of images begin with, behind a proxy.")] = None,
    backend: BackendName = "auto",
    device: DeviceName = None,
    precision: PrecisionName = None,
    mode: ModeName = "throughput",
    threads: Threads = None,
    replicas: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Engines in processes of their own, by Ray Serve; one takes over where another dies."),
    ] = None,
    max_replicas: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="As many at the most, where there is more to do than --replicas do."),
    ] = None,
    target_ongoing: Annotated[
        float, typer.Option(help="Requests under way in a replica, above which there are to be more of them.")
    ] = 8.0,
    max_ongoing: Annotated[int, typer.Option(min=1, help="Requests of one replica; others wait for room.")] = 256,
    cpus: Annotated[float, typer.Option(help="That each replica reserves in Ray.")] = 1.0,
    gpus: Annotated[
        float, typer.Option(help="That each replica reserves in Ray. With 0, --backend auto stays on the CPU.")
    ] = 0.0,
    ray_address: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of a Ray cluster, or auto; otherwise one is started on this machine."),
    ] = None,
    ray_dashboard: Annotated[bool, typer.Option("--ray-dashboard", help="Ray's own page, on port 8265.")] = False,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="JSON lines on stderr.")
    ] = "info",
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Prompts stand in the log too.")] = False,
) -> None:
    """Serve a bundle: OpenAI's image API, a page to look at, metrics. SIGTERM and Ctrl+C finish what is under way.

    Examples:

        ddm-rt serve digits

        ddm-rt serve digits --judge digits --groups 3,8 --ledger digits.ledger

        ddm-rt serve bundles/sd --host 0.0.0.0 --keys keys.txt --slots 8 --size 768x512

        ddm-rt serve digits --replicas 2 --max-replicas 8 --threads 4 --ray-address auto

    Then:

        curl localhost:8000/v1/images/generations -H 'Content-Type: application/json' -d '{"n": 4}'
    """
    from ddm_rt.config import parse
    from ddm_rt.sample.balance.ledger import Ledger
    from ddm_rt.sample.pipeline import Pipeline
    from ddm_rt.serve.http.app import create_app
    from ddm_rt.serve.http.keys import Keys
    from ddm_rt.serve.http.server import Server, listen, log_to
    from ddm_rt.serve.scheduling.scheduler import Scheduler
    from ddm_rt.serve.scheduling.service import Service
    from ddm_rt.serve.settings import HttpSettings, ServeSettings

    if fsync and ledger is None:
        raise DdmError("--fsync: is about the file of --ledger, which is not given")
    for option, value in (("--device", device), ("--precision", precision), ("--mode", mode)):
        if value not in (None, "throughput") and replicas is not None:
            raise DdmError(f"{option}: not with --replicas; each takes what Ray gives it and the bundle says")
    settings = {"slots": slots, "queue": queue, "max_images": max_images, "max_steps": max_steps, "per_key": per_key}
    bounds = parse(ServeSettings, settings | {"deadline_s": deadline, "drain_s": drain}, "serve")
    http = parse(
        HttpSettings,
        {
            "ignore_prompt": ignore_prompt,
            "scope": scope or None,
            "sizes": tuple(size or ()),
            "public_url": public_url,
            "origins": tuple(origin or ()),
            "log_prompts": log_prompts,
        },
        "serve",
    )
    scale = _scale(
        {
            "replicas": replicas,
            "max_replicas": max_replicas,
            "target_ongoing": target_ongoing,
            "max_ongoing": max_ongoing,
            "threads": 1 if threads is None else threads,
            "cpus": cpus,
            "gpus": gpus,
            "address": ray_address,
            "dashboard": ray_dashboard,
        }
    )
    callers = None if keys is None else Keys.load(keys)
    measured = _measured(judge, groups, classes)
    with listen(host, port) as place, ExitStack() as stack:
        log_to(sys.stderr, log_level)
        scheduler: Service[Any]
        if scale is not None:
            from ddm_rt.serve.cluster.deployment import started

            scheduler = stack.enter_context(started(bundle, bounds, scale, backend=backend, ledger=ledger, fsync=fsync))
        else:
            counts = stack.enter_context(Ledger(ledger, fsync=fsync))
            loading: dict[str, Any] = {"backend": backend, "threads": threads, "device": device}
            loading |= {"precision": precision, "mode": mode}
            pipeline = Pipeline.load(bundle, ledger=counts, **loading)
            scheduler = stack.enter_context(Scheduler(pipeline, bounds))
        bundled = scheduler.pipeline.bundle
        application = create_app(scheduler, http, keys=callers, measured=measured)
        where = _url(host, place.getsockname()[1])

        def tell() -> None:
            say(f"{bundled.config.name} is served\nlook at: {where}/\nclients: {where}/v1")
            if ledger is None and bundled.codes.num_codes:
                say("balance: the counts end with this command; --ledger keeps them")
            if callers is None and not _is_local(host):
                _log.warning("anyone who reaches %s may use this server; --keys asks for API keys", where)

        Server(application, scheduler, http, tell).run([place])


def _scale(given: dict[str, object]) -> "RaySettings | None":
    """None where no replicas are asked for. Raises DdmError where only they could be meant."""
    from ddm_rt.config import parse
    from ddm_rt.serve.settings import RaySettings

    if given["replicas"] is not None:
        return parse(RaySettings, given, "serve")
    for name in ("max_replicas", "address", "dashboard"):
        if given[name]:
            option = {"address": "ray-address", "dashboard": "ray-dashboard"}.get(name, "max-replicas")
            raise DdmError(f"--{option}: is about the replicas of --replicas, which is not given")
    return None


def _measured(judge: str | None, groups: str | None, classes: str | None) -> "Measured | None":
    if judge is None:
        for option, value in (("--groups", groups), ("--classes", classes)):
            if value is not None:
                raise DdmError(f"{option}: is about the judge of --judge, which is not given")
        return None
    from ddm_rt.evaluate.judge import Judge
    from ddm_rt.serve.http.balance import Measured

    opened = Judge.load(judge, classes=classes.split(",") if classes else None)
    return Measured(opened, groups.split(",") if groups else None)


def _url(host: str, port: int) -> str:
    name = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
