"""`ddm-rt serve`: a bundle over HTTP."""

import ipaddress
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from typer import Argument, Option

from ddm_rt.cli import options
from ddm_rt.cli.app import app, say
from ddm_rt.config import Frozen, parse

if TYPE_CHECKING:
    from ddm_rt.bundle import Bundle
    from ddm_rt.serve.http.balance import Measured
    from ddm_rt.serve.settings import RaySettings

_log = logging.getLogger(__name__)
S = TypeVar("S", bound=Frozen)


@app.command()
def serve(
    bundle: Annotated[str, Argument(help="A bundle directory, or the shipped one: digits.")],
    host: Annotated[str, Option(help="Address to listen at; 0.0.0.0 is every one of this machine.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    slots: Annotated[int, Option(min=1, help="Images in flight, which share one batch.")] = 16,
    queue: Annotated[int, Option(min=1, help="Images that may wait for a slot; then requests get 429.")] = 256,
    max_images: Annotated[int, Option(min=1, help="Of one request.")] = 64,
    max_steps: Annotated[int, Option(min=1, help="Of one image.")] = 200,
    per_key: Annotated[int, Option(min=1, help="Requests of one API key at once.")] = 8,
    deadline_s: Annotated[float, Option("--deadline", help="Seconds that a request has, where it doesn't say.")] = 60.0,
    drain_s: Annotated[
        float, Option("--drain", help="Seconds for requests under way when the server is told to stop.")
    ] = 30.0,
    sizes: Annotated[
        list[str] | None, Option("--size", help="WIDTHxHEIGHT that may be asked for, besides the bundle's.")
    ] = None,
    scope: Annotated[
        str | None, Option(help="Requests that name no scope are balanced together under this name.")
    ] = "default",
    ledger: options.Ledger = None,
    fsync: options.Fsync = False,
    keys: Annotated[
        Path | None, Option(help="File with a line NAME KEY [PRIORITY] for each API key; KEY may be sha256:HEX.")
    ] = None,
    judge: Annotated[
        str | None, Option(help="digits, or an ONNX classifier: looks at each image, for the shares on the page.")
    ] = None,
    groups: Annotated[str | None, Option(help="The judge's classes to report, by comma; by default all.")] = None,
    classes: options.Classes = None,
    ignore_prompt: Annotated[
        bool, Option("--ignore-prompt", help="A bundle that takes no prompts drops them, instead of an error.")
    ] = False,
    origins: Annotated[
        list[str] | None, Option("--origin", help="A web page elsewhere, https://HOST, that may call (CORS).")
    ] = None,
    public_url: Annotated[str | None, Option(help="What the URLs of images begin with, behind a proxy.")] = None,
    backend: options.BackendName = "auto",
    device: options.DeviceName = None,
    precision: options.PrecisionName = None,
    mode: options.ModeName = "throughput",
    threads: options.Threads = None,
    replicas: Annotated[
        int | None,
        Option(min=1, help="Engines in processes of their own, by Ray Serve; one takes over where another dies."),
    ] = None,
    max_replicas: Annotated[
        int | None, Option(min=1, help="As many at the most, where there is more to do than --replicas do.")
    ] = None,
    target_ongoing: Annotated[
        float, Option(help="Requests under way in a replica, above which there are to be more of them.")
    ] = 8.0,
    max_ongoing: Annotated[int, Option(min=1, help="Requests of one replica; others wait for room.")] = 256,
    cpus: Annotated[float, Option(help="That each replica reserves in Ray.")] = 1.0,
    gpus: Annotated[
        float, Option(help="That each replica reserves in Ray. With 0, --backend auto stays on the CPU.")
    ] = 0.0,
    address: Annotated[
        str | None, Option("--ray-address", help="Of a Ray cluster, or auto; otherwise one is started on this machine.")
    ] = None,
    dashboard: Annotated[bool, Option("--ray-dashboard", help="Ray's own page, on port 8265.")] = False,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Option(help="JSON lines on stderr.")] = "info",
    log_prompts: Annotated[bool, Option("--log-prompts", help="Prompts stand in the log too.")] = False,
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
    given = locals()  # the options by name: those of the three settings are named as their fields

    from ddm_rt.serve.http.keys import Keys
    from ddm_rt.serve.http.server import listen, log_to
    from ddm_rt.serve.settings import HttpSettings, ServeSettings
    from ddm_rt.workflows.serve import serve as run

    if ledger is None:
        options.refuse({"--fsync": fsync}, "is about the file of --ledger, which is not given")
    if replicas is not None:
        own = {"--device": device, "--precision": precision, "--mode": mode != "throughput"}
        options.refuse(own, "not with --replicas; each takes what Ray gives it and the bundle says")
    bounds = _settings(ServeSettings, given)
    http = _settings(HttpSettings, given).model_copy(update={"scope": scope or None})
    scale = _scale(given)
    callers = None if keys is None else Keys.load(keys)
    measured = _measured(judge, groups, classes)
    with listen(host, port) as place:
        log_to(sys.stderr, log_level)
        where = _url(host, place.getsockname()[1])

        def tell(opened: "Bundle") -> None:
            say(f"{opened.config.name} is served\nlook at: {where}/\nclients: {where}/v1")
            if ledger is None and opened.codes.num_codes:
                say("balance: the counts end with this command; --ledger keeps them")
            if callers is None and not _is_local(host):
                _log.warning("anyone who reaches %s may use this server; --keys asks for API keys", where)

        run(
            bundle,
            place,
            bounds,
            http,
            replicas=scale,
            keys=callers,
            measured=measured,
            ledger=ledger,
            fsync=fsync,
            on_ready=tell,
            backend=backend,
            threads=threads,
            device=device,
            precision=precision,
            mode=mode,
        )


def _settings(model: type[S], given: Mapping[str, Any]) -> S:
    """The settings with those of the options that are their fields; others keep their defaults."""
    return parse(model, options.given({name: given.get(name) for name in model.model_fields}), "serve")


def _scale(given: Mapping[str, Any]) -> "RaySettings | None":
    """None where no replicas are asked for. Raises DdmError where only they could be meant."""
    from ddm_rt.serve.settings import RaySettings

    if given["replicas"] is not None:
        return _settings(RaySettings, given)
    about = {"--max-replicas": given["max_replicas"], "--ray-address": given["address"]}
    about["--ray-dashboard"] = given["dashboard"]
    options.refuse(about, "is about the replicas of --replicas, which is not given")
    return None


def _measured(judge: str | None, groups: str | None, classes: str | None) -> "Measured | None":
    if judge is None:
        options.refuse({"--groups": groups, "--classes": classes}, "is about the judge of --judge, which is not given")
        return None
    from ddm_rt.evaluate.judge import Judge
    from ddm_rt.serve.http.balance import Measured

    return Measured(Judge.load(judge, classes=options.names(classes)), options.names(groups))


def _url(host: str, port: int) -> str:
    name = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
