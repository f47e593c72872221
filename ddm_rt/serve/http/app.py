"""The FastAPI application: OpenAI's image API, the balance, health checks, metrics, and a page to look at."""

import time
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPBearer
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

import ddm_rt
from ddm_rt.bundle import Bundle
from ddm_rt.config import SamplerName
from ddm_rt.errors import DdmError
from ddm_rt.raking import shares
from ddm_rt.runtime import CodeTable
from ddm_rt.sample.balance.assignment import by_names
from ddm_rt.sample.balance.factors import uniform_weights
from ddm_rt.serve.http.balance import Measured, balances
from ddm_rt.serve.http.errors import Failure, failure_of, invalid, unknown_model
from ddm_rt.serve.http.generations import Images
from ddm_rt.serve.http.guard import GENERATIONS, Guard
from ddm_rt.serve.http.keys import Caller, Keys
from ddm_rt.serve.http.metrics import CONTENT_TYPE, Metrics
from ddm_rt.serve.http.middleware import Access, Limits, notes
from ddm_rt.serve.http.schema import (
    BalanceList,
    ErrorReply,
    FactorItem,
    Health,
    ImageReply,
    ImageRequest,
    ModelItem,
    ModelList,
    sizes_of,
)
from ddm_rt.serve.http.sse import cancel_when_gone
from ddm_rt.serve.scheduling.service import Service
from ddm_rt.serve.scheduling.stats import MOST_AIMS
from ddm_rt.serve.settings import HttpSettings

if TYPE_CHECKING:
    from ddm_rt.serve.http.traces import Traces  # OpenTelemetry, which a server without traces doesn't need

_ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorReply, "description": "What went wrong, in OpenAI's form."}
}
WARNING = "x-ddm-warning"  # a header: what a client should know of a request that was answered
_EVENTS = "text/event-stream"
_TEXT = {"type": "string"}
_EVENT = {"type": "object", "properties": {"event": _TEXT, "data": _TEXT}, "required": ["data"]}
_IMAGES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ImageReply,
        "description": "The images, or with stream=true events as they come.",
        "content": {_EVENTS: {"itemSchema": _EVENT}},
    }
}
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The image.", "content": {f"image/{kind}": {} for kind in ("png", "webp", "jpeg")}}
}
# Of the page at /.
_PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # as frame-ancestors, for browsers that don't know that
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_bearer = HTTPBearer(auto_error=False)


def create_app(
    scheduler: Service[Any],
    http: HttpSettings = HttpSettings(),  # noqa: B008 (frozen)
    *,
    keys: Keys | None = None,
    measured: Measured | None = None,
    traces: "Traces | None" = None,
) -> FastAPI:
    """The application over a scheduler, which its owner starts and closes.

    With `keys`, everything below /v1 and /metrics asks for one; the images behind URLs don't, because their names are
    secrets. With `measured`, a judge looks at each image that is delivered. With `traces`, requests leave spans.
    """
    bundle = scheduler.pipeline.bundle
    wanted = lru_cache(MOST_AIMS)(lambda target: _wanted(bundle, target))  # asked for all aims at each reading
    metrics = Metrics(scheduler.stats, _labels(scheduler, http), bundle.codes, wanted)
    images = Images(scheduler, http, measured, metrics)
    about = _about(scheduler, http, measured)
    names = http.names(bundle.config.name)

    app = FastAPI(
        title="ddm-rt",
        version=ddm_rt.__version__,
        summary="Balanced images from a diffusion model.",
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would go wherever the Host header says
        responses=_ERRORS,
        exception_handlers=dict.fromkeys((Failure, RequestValidationError, HTTPException, Exception), _tell_failure),
    )

    async def caller(request: Request, presented: Annotated[Any, Security(_bearer)]) -> Caller:
        """Found by `Guard`, before the body was read; named here for the schema."""
        found: Caller = request.state.caller
        return found

    @app.post(GENERATIONS, response_model=None, responses=_IMAGES)
    async def generate(body: ImageRequest, request: Request, known: Annotated[Caller, Depends(caller)]) -> Response:
        """Images, as many as `n`, whose codes are balanced within the scope."""
        order = await images.take(body, known, (http.public_url or str(request.base_url)).rstrip("/"))
        noted = {"n": order.ticket.n, "num_steps": order.manifest.num_steps, "stream": bool(body.stream)}
        notes(request.scope).update(noted | ({"prompt": body.prompt} if http.log_prompts else {}))
        about_it = {} if (said := body.ignored(scheduler.pipeline.bundle)) is None else {WARNING: said}
        if body.stream:
            # For a client that left before the first event was made; later the stream itself sees to it.
            call_off = BackgroundTask(order.ticket.cancel)
            return StreamingResponse(images.stream(order), headers=about_it, media_type=_EVENTS, background=call_off)
        async with cancel_when_gone(request.receive, order.ticket) as gone:
            return Response(await images.whole(order, gone), headers=about_it, media_type="application/json")

    @app.get("/images/{name}", response_class=Response, responses=_PICTURE)
    async def picture(name: str) -> Response:
        """An image that was asked for with response_format=url."""
        kept = images.pictures.find(name)
        if kept is None:
            raise invalid("no such image; they are kept for minutes", code="not_found", status=404)
        return Response(kept.content, media_type=kept.media_type, headers={"X-Content-Type-Options": "nosniff"})

    @app.get("/v1/models", dependencies=[Depends(caller)])
    async def models() -> ModelList:
        """What this server makes images with: its one bundle, under each of its names, with limits and defaults."""
        return ModelList(data=[about, *(about.model_copy(update={"id": name}) for name in names[1:])])

    @app.get("/v1/models/{name}", dependencies=[Depends(caller)])
    async def model(name: str) -> ModelItem:
        """The same for one of these names."""
        if name not in names:
            raise unknown_model(name, names)
        return about.model_copy(update={"id": name})

    @app.get("/v1/balance", dependencies=[Depends(caller)])
    def balance(scope: Annotated[str | None, Query(max_length=256)] = None) -> BalanceList:
        """Where the ledger's scopes stand, and what the judge measured in each."""
        pipeline = scheduler.pipeline
        return BalanceList(data=balances(pipeline.ledger, pipeline.bundle.codes, scope, measured))

    @app.get("/metrics", dependencies=[Depends(caller)], response_class=Response)
    def prometheus() -> Response:
        """Counters and histograms in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/healthz")
    async def healthy(response: Response) -> Health:
        """Whether the process is of use at all."""
        response.status_code = 200 if scheduler.alive else 503
        return Health(status="ok" if scheduler.alive else "stopped")

    @app.get("/readyz")
    def ready(response: Response) -> Health:
        """Whether it takes in requests. Without its ledger it doesn't."""
        if scheduler.ready:
            return Health(status="ready")
        response.status_code = 503
        return Health(status="ledger_unavailable" if scheduler.alive and not scheduler.draining else "draining")

    for unsupported in ("edits", "variations"):
        app.add_api_route(f"/v1/images/{unsupported}", _unsupported, methods=["POST"], include_in_schema=False)
    page = _add_page(app)
    app.add_middleware(Guard, http=http, keys=keys, page=page)
    if http.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=http.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "x-request-id", "x-should-retry", "openai-processing-ms", WARNING],
        )
    app.add_middleware(Limits, http=http)
    if traces is not None:
        scheduler.observe(traces)
        app.add_middleware(traces.around)
    app.add_middleware(Access, metrics=metrics)
    return app


def _about(scheduler: Service[Any], http: HttpSettings, measured: Measured | None) -> ModelItem:
    bundle, settings = scheduler.pipeline.bundle, scheduler.settings
    config, sizes = bundle.config, sizes_of(bundle, http)
    return ModelItem(
        id=http.names(config.name)[0],
        created=int(time.time()),
        bundle_id=bundle.bundle_id,
        prompt_free=config.prompt_free,
        ignores_prompt=config.prompt_free and not http.strict_prompt,
        size=sizes[0],
        sizes=list(sizes),
        num_codes=config.num_codes,
        num_top_codes=bundle.codes.num_top_codes,
        factors=_factors(bundle.codes),
        num_steps=config.sampling.num_steps,
        max_steps=settings.max_steps,
        max_images=settings.max_images,
        sampler=config.sampling.sampler,
        samplers=list(SamplerName),
        scope=http.scope,
        judge=None if measured is None else measured.about,
    )


def _labels(scheduler: Service[Any], http: HttpSettings) -> dict[str, str]:
    """What is served, for metrics."""
    pipeline = scheduler.pipeline
    made_by = {name: str(pipeline.made_by[name]) for name in ("backend", "precision")}
    bundle = pipeline.bundle
    name, *_ = http.names(bundle.config.name)
    return {"model": name, "bundle_id": bundle.bundle_id, "version": ddm_rt.__version__, **made_by}


def _factors(codes: CodeTable) -> list[FactorItem]:
    weights = uniform_weights(codes)
    return [
        FactorItem(
            name=factor.name,
            values=list(factor.values),
            value_of=list(factor.value_of),
            shares=shares(factor.value_of, weights, len(factor.values)),
        )
        for factor in codes.factors
    ]


def _wanted(bundle: Bundle, target: str) -> Sequence[float] | None:
    """The share of each code that a target asks for; None where it is about groups."""
    try:
        named = by_names(bundle, target)
    except DdmError:  # a calibration's attribute has the name of a factor: the ledger spells its targets with it
        return None
    return None if named is None else named.code_shares


async def _tell_failure(request: Request, error: Exception) -> Response:
    return failure_of(error).response()


async def _unsupported() -> Response:
    raise invalid("this server generates images, and neither edits nor varies them", code="unsupported", status=404)


def _add_page(app: FastAPI) -> list[str]:
    """Routes for the page's files, which are read once; index.html is at / too. Returns their paths."""
    added = []
    for file in sorted((resources.files("ddm_rt.serve.http") / "web").iterdir(), key=lambda file: file.name):
        if media_type := _PAGE_TYPES.get(file.name[file.name.rfind(".") :]):
            for path in (f"/{file.name}", *(["/"] if file.name == "index.html" else [])):
                _add_file(app, path, file.read_bytes(), media_type)
                added.append(path)
    return added


def _add_file(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    async def file() -> Response:
        return Response(content, media_type=media_type, headers=_PAGE_HEADERS)

    app.add_api_route(path, file, include_in_schema=False)
