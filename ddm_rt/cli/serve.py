"""`ddm-rt serve`: a bundle over HTTP."""

import ipaddress
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from typer import Argument, Option

from ddm_rt.cli import options
from ddm_rt.cli.app import say, serves
from ddm_rt.config import Frozen, parse
from ddm_rt.errors import DdmError
from ddm_rt.sample.request import told_fields
from ddm_rt.serve.settings import RaySettings, ServeSettings

if TYPE_CHECKING:
    from ddm_rt.bundle import Bundle
    from ddm_rt.serve.http.balance import Measured
    from ddm_rt.serve.http.traces import Traces
_log = logging.getLogger(__name__)
S = TypeVar("S", bound=Frozen)
_BOUNDS, _SCALE, _TOLD = ServeSettings(), RaySettings(), told_fields()


@serves(
    Limits="queue max_images max_steps per_key deadline_s drain_s",
    Access="keys strict_prompt ignore_prompt name model_aliases resize origins public_url allowed_hosts",
    Files="provenance provenance_code",
    Judge="judge groups classes",
    Replicas="gpus replicas max_replicas target_ongoing max_ongoing cpus gpus_per_replica address dashboard",
    Log="log_level log_prompts traces",
)
def serve(
    bundle: Annotated[str, Argument(help="A bundle directory, or digits, which comes with ddm-rt.")],
    host: Annotated[str, Option(help="Address to listen at. 0.0.0.0 means all of this machine.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen at. 0 takes a free one.")] = 8000,
    slots: Annotated[int, Option(min=1, help="Number of images that are made at once, in one batch.")] = _BOUNDS.slots,
    sizes: Annotated[list[str] | None, Option("--size", help="Another size that is allowed: WIDTHxHEIGHT.")] = None,
    queue: Annotated[
        int, Option(min=1, help="Images that may wait for a slot. Further requests get status 429.")
    ] = _BOUNDS.queue,
    max_images: Annotated[int, Option(min=1, help="Largest number of images in a request.")] = _BOUNDS.max_images,
    max_steps: Annotated[int, Option(min=1, help="Largest number of sampling steps of an image.")] = _BOUNDS.max_steps,
    per_key: Annotated[
        int, Option(min=1, help="Number of requests that an API key may have at once.")
    ] = _BOUNDS.per_key,
    deadline_s: Annotated[
        float, Option("--deadline", help="Seconds for a request that names no deadline.")
    ] = _BOUNDS.deadline_s,
    drain_s: Annotated[float, Option("--drain", help="Seconds to finish requests when stopped.")] = _BOUNDS.drain_s,
    scope: Annotated[str | None, Option(help="Scope of requests that name none.")] = "default",
    ledger: options.Ledger = None,
    fsync: options.Fsync = False,
    keys: Annotated[
        Path | None, Option(help="File of API keys, with a line NAME KEY [PRIORITY] for each. KEY may be sha256:HEX.")
    ] = None,
    judge: Annotated[str | None, Option(help="Classifier of each image, for the page: digits or an ONNX file.")] = None,
    groups: Annotated[str | None, Option(help="Classes of the judge to report, with commas. By default all.")] = None,
    classes: options.Classes = None,
    strict_prompt: Annotated[
        bool, Option(help="Refuse prompts that the bundle can't use, and don't drop them.")
    ] = False,
    ignore_prompt: Annotated[
        bool, Option(help="Has no effect any more: such prompts are dropped.", hidden=True)
    ] = False,
    name: Annotated[str | None, Option(help="Name of the model. By default that of the bundle's directory.")] = None,
    model_aliases: Annotated[
        list[str] | None, Option("--model-alias", help="Another name of the model, such as gpt-image-1.")
    ] = None,
    provenance: Annotated[bool, Option(help=_TOLD["provenance"].told.help)] = True,
    provenance_code: Annotated[bool, Option(help=_TOLD["provenance_code"].told.help)] = False,
    resize: Annotated[bool, Option(help="Scale pictures to any size that is asked for.")] = False,
    origins: Annotated[list[str] | None, Option("--origin", help="Site https://HOST that may call (CORS).")] = None,
    public_url: Annotated[str | None, Option(help="Address that image URLs begin with, behind a proxy.")] = None,
    allowed_hosts: Annotated[
        list[str] | None, Option("--allowed-host", help="Name by which clients may call this server. * means any.")
    ] = None,
    backend: options.BackendName = "auto",
    device: options.DeviceName = None,
    precision: options.PrecisionName = None,
    mode: options.ModeName = "throughput",
    threads: options.Threads = None,
    gpus: Annotated[
        str | None, Option(metavar="all|N", help="A replica on each GPU, or on N of them, by Ray Serve.")
    ] = None,
    replicas: Annotated[int | None, Option(min=1, help="Processes that make images, by Ray Serve.")] = None,
    max_replicas: Annotated[int | None, Option(min=1, help="Largest number of replicas, under load.")] = None,
    target_ongoing: Annotated[
        float | None,
        Option(help=f"Requests in a replica above which one more is started. By default {_SCALE.target_ongoing:g}."),
    ] = None,
    max_ongoing: Annotated[
        int | None,
        Option(min=1, help=f"Largest number of requests in a replica. Others wait. By default {_SCALE.max_ongoing}."),
    ] = None,
    cpus: Annotated[float | None, Option(help=f"CPUs for each replica. By default {_SCALE.cpus:g}.")] = None,
    gpus_per_replica: Annotated[
        float | None, Option(help="GPUs for each of --replicas, such as .5. Without any, they stay on the CPU.")
    ] = None,
    address: Annotated[str | None, Option("--ray-address", help="Ray cluster, or auto. By default a new one.")] = None,
    dashboard: Annotated[bool, Option("--ray-dashboard", help="Serve Ray's own page on port 8265.")] = False,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Option(help="Least severe messages to log, as JSON on stderr.")
    ] = "info",
    log_prompts: Annotated[bool, Option(help="Log prompts, too.")] = False,
    traces: Annotated[
        bool, Option("--traces", help="Send OpenTelemetry traces to OTEL_EXPORTER_OTLP_ENDPOINT.")
    ] = False,
) -> None:
    """Serve a bundle over HTTP. The server has OpenAI's image API, a page to look at, and metrics.

    Ctrl+C and SIGTERM stop it. It finishes the requests that are under way.

    Examples:

        ddm-rt serve digits
        ddm-rt serve digits --judge digits --groups 3,8 --ledger digits.ledger
        ddm-rt serve bundles/sd --host 0.0.0.0 --keys keys.txt --slots 8 --size 768x512
        ddm-rt serve digits --resize --model-alias gpt-image-1 --model-alias dall-e-2
        ddm-rt serve bundles/sd --gpus all
        ddm-rt serve digits --replicas 2 --max-replicas 8 --threads 4 --ray-address auto

    Then:

        curl localhost:8000/v1/images/generations -H 'Content-Type: application/json' -d '{"n": 4}'
    """
    if strict_prompt:
        options.refuse({"--ignore-prompt": ignore_prompt}, "can't go with --strict-prompt")
    allowed_hosts = [*(allowed_hosts or ()), host]
    given = locals()  # the options by name: those of the three settings are named as their fields

    from ddm_rt.serve.http.keys import Keys
    from ddm_rt.serve.http.server import listen, log_to
    from ddm_rt.serve.settings import HttpSettings
    from ddm_rt.workflows.serve import serve as run

    if ledger is None:
        options.refuse({"--fsync": fsync}, "is about the file of --ledger, which is not given")
    if replicas is not None or gpus is not None:
        own = {"--device": device, "--precision": precision, "--mode": mode != "throughput"}
        options.refuse(own, "this option can't go with replicas; each takes what Ray gives it and the bundle says")
    bounds = _settings(ServeSettings, given)
    http = _settings(HttpSettings, given).model_copy(update={"scope": scope or None})
    scale = _scale(given)
    callers = None if keys is None else Keys.load(keys)
    measured = _measured(judge, groups, classes)
    spans = _traces() if traces else None
    with listen(host, port) as place:
        log_to(sys.stderr, log_level)
        where = _url(host, place.getsockname()[1])

        def tell(opened: "Bundle", named: str) -> None:
            say(f"{named} is served\nlook at: {where}/\nclients: {where}/v1")
            if ledger is None and opened.codes.num_codes:
                say("balance: the counts end with this command; --ledger keeps them")
            if callers is None and not _is_local(host):
                _log.warning("anyone who reaches %s may use this server; --keys asks for API keys", where)
            if callers is None and "*" in http.origins:
                _log.warning("--origin *: any web page may use %s through its reader's browser; name the sites", where)

        run(
            bundle,
            place,
            bounds,
            http,
            replicas=scale,
            keys=callers,
            measured=measured,
            traces=spans,
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


def _scale(given: Mapping[str, Any]) -> RaySettings | None:
    """None where no replicas are asked for. Raises DdmError where only they could be meant."""
    if (gpus := given["gpus"]) is not None:
        if gpus != "all" and not re.fullmatch("[1-9][0-9]{0,4}", gpus):
            raise DdmError(f"--gpus is {gpus!r}; expected all, or a number of GPUs")
        names = ("replicas", "max_replicas", "gpus_per_replica")
        own = {f"--{name.replace('_', '-')}": given[name] for name in names}
        options.refuse(own, "this option can't go with --gpus, which is a replica for each")
    if gpus is not None or given["replicas"] is not None:
        return _settings(RaySettings, given)
    own = {f"--{name.replace('_', '-')}": given[name] for name in ("max_replicas", "gpus_per_replica")}
    options.refuse(own, "this option needs --replicas")
    about = {f"--{name.replace('_', '-')}": given[name] for name in ("target_ongoing", "max_ongoing", "cpus")}
    about |= {"--ray-address": given["address"], "--ray-dashboard": given["dashboard"]}
    options.refuse(about, "this option needs --replicas or --gpus")
    return None


def _measured(judge: str | None, groups: str | None, classes: str | None) -> "Measured | None":
    if judge is None:
        options.refuse({"--groups": groups, "--classes": classes}, "this option needs --judge")
        return None
    from ddm_rt.evaluate.judge import Judge
    from ddm_rt.serve.http.balance import Measured

    return Measured(Judge.load(judge, classes=options.names(classes)), options.names(groups))


def _traces() -> "Traces":
    from ddm_rt.serve.http.traces import Traces

    return Traces()


def _url(host: str, port: int) -> str:
    name = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
