"""`POST /v1/images/generations`: a request is taken in, and answered with its images, at once or one by one."""

import asyncio
import base64
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ddm_rt.sample import provenance
from ddm_rt.sample.generation import Cancelled, Generation
from ddm_rt.sample.manifest import Manifest
from ddm_rt.serve.http import sse
from ddm_rt.serve.http.balance import Measured
from ddm_rt.serve.http.errors import Failure, failed, refused
from ddm_rt.serve.http.image_store import Pictures, picture
from ddm_rt.serve.http.keys import Caller
from ddm_rt.serve.http.metrics import Metrics
from ddm_rt.serve.http.schema import ImageItem, ImageReply, ImageRequest, MeasuredShares, Usage
from ddm_rt.serve.scheduling.service import Service
from ddm_rt.serve.scheduling.stats import Aim
from ddm_rt.serve.scheduling.ticket import Event, Failed, Finished, ImageReady, Preview, Progress, Ticket
from ddm_rt.serve.settings import HttpSettings

T = TypeVar("T")

_USAGE = Usage().model_dump()

_log = logging.getLogger(__name__)

_TAKING = 32  # requests at once
_ENCODE_THREADS = 2
_IDLE_S = 15.0  # between two signs of life in a stream
_GRACE_S = 10.0  # past a request's deadline, for its end to be told

# OpenAI has an event for an image that is complete; the others are ours, named likewise.
STARTED = "image_generation.started"
PROGRESS = "image_generation.progress"
PARTIAL = "image_generation.partial_image"
COMPLETED = "image_generation.completed"
FINISHED = "image_generation.finished"


@dataclass(frozen=True)
class Order:
    """A request that was taken in, and how its images are to be told."""

    ticket: Ticket
    manifest: Manifest
    body: ImageRequest
    base_url: str  # what the URLs of images begin with
    scaled_to: tuple[int, int] | None = None  # width and height of pictures that are made in another size

    @property
    def look(self) -> dict[str, Any]:
        """Fields that all images share."""
        request = self.manifest.request
        width, height = self.scaled_to or (request.width, request.height)
        return {"output_format": self.body.output_format, "size": f"{width}x{height}"}

    @cached_property
    def tree(self) -> dict[str, Any]:
        """The manifest as plain data."""
        return self.manifest.tree()


class Images:
    """What `POST /v1/images/generations` does."""

    def __init__(
        self, scheduler: Service[Any], http: HttpSettings, measured: Measured | None, metrics: Metrics
    ) -> None:
        self._scheduler, self._http, self._measured, self._metrics = scheduler, http, measured, metrics
        self.pictures = Pictures()
        self._encoding = ThreadPoolExecutor(_ENCODE_THREADS, "encoding")
        # Taking in waits: for a ledger that other processes use, or for a replica.
        self._taking = ThreadPoolExecutor(_TAKING, "taking")

    async def take(self, body: ImageRequest, caller: Caller, base_url: str) -> Order:
        """Raises Failure where the request isn't taken in."""
        bundle = self._scheduler.pipeline.bundle
        take, request = self._scheduler.submit, body.asked(bundle, self._http)

        def submit() -> Ticket:
            how: dict[str, Any] = {"key": caller.name, "priority": caller.priority, "deadline_s": body.deadline_s}
            return take(request, **how, previews=body.previews)

        try:
            ticket = await asyncio.get_running_loop().run_in_executor(self._taking, copy_context().run, submit)
        except Exception as error:
            raise _logged(refused(error), error) from error
        assert ticket.manifest is not None
        ticket.subscribe(lambda event: self._ended(ticket, event, bool(body.stream)), without=(Progress, Preview))
        return Order(ticket, ticket.manifest, body, base_url, body.scaled_to(bundle, self._http))

    def _ended(self, ticket: Ticket, event: Event, stream: bool) -> None:
        if isinstance(event, Finished | Failed):
            self._metrics.generated(ticket, stream)

    async def whole(self, order: Order, gone: Callable[[], bool] = lambda: False) -> bytes:
        """All images and the manifest, as JSON. Raises Failure, also where `gone` says that the client has left."""
        events = sse.follow(order.ticket, idle_s=math.inf, grace_s=_GRACE_S, progress=False)
        end = [event async for event in events][-1]
        if isinstance(end, Failed):
            raise _logged(failed(end.error), end.error)
        generation, items = order.ticket.result(), list[ImageItem]()

        def made(part: Sequence[int]) -> list[ImageItem]:
            if gone():
                raise failed(Cancelled("the client has left"))
            return self._items(order, part, list(generation.images[part]))

        numbers = list(range(order.ticket.n))
        # Scaled pictures take long: one after the other, so that those of others come between, and a client may leave.
        *parts, last = [[number] for number in numbers] if order.scaled_to else [numbers]
        for part in parts:
            items += await self._in_pool(lambda: made(part))  # noqa: B023 (awaited)
        return await self._in_pool(lambda: self._reply(order, generation, items + made(last)))

    def _reply(self, order: Order, generation: Generation, items: list[ImageItem]) -> bytes:
        reply = ImageReply(
            created=int(time.time()),
            data=items,
            manifest=generation.manifest,
            measured=self._measure(order, items),
            **order.look,
        )
        return reply.model_dump_json(exclude={"data": {"__all__": _unused(order)}}).encode()

    async def stream(self, order: Order) -> AsyncIterator[bytes]:
        """Server-sent events; the last one is an image, or with `extra_events` that the request is finished; or an
        error.
        """
        look, items, extra = order.look, [], bool(order.body.extra_events)
        partial: Counter[int] = Counter()  # previews of each image
        if extra:
            yield sse.encode(STARTED, _start(order) | look)
        async for event in sse.follow(order.ticket, idle_s=_IDLE_S, grace_s=_GRACE_S, progress=extra):
            if event is None:
                yield sse.KEEP_ALIVE
            elif isinstance(event, Progress):
                assert extra, "nobody asked for progress"
                yield sse.encode(PROGRESS, {"steps_done": event.steps_done, "steps_total": event.steps_total})
            elif isinstance(event, Preview):
                content = await self._in_pool(lambda: self._picture(order, event.index, event.image))  # noqa: B023
                told = {"b64_json": base64.b64encode(content).decode(), "partial_image_index": partial[event.index]}
                partial[event.index] += 1
                yield sse.encode(PARTIAL, {"index": event.index, **_fixed(), **look, **told})
            elif isinstance(event, ImageReady):
                index, image = event.index, event.image
                [item] = await self._in_pool(lambda: self._items(order, [index], [image]))  # noqa: B023 (awaited)
                items.append(item)
                told = item.model_dump(exclude=_unused(order))
                yield sse.encode(COMPLETED, {"index": index, **_fixed(), "usage": _USAGE, **look, **told})
            elif isinstance(event, Finished):
                measured = await self._in_pool(lambda: self._measure(order, items))
                told = {"measured": None if measured is None else measured.model_dump()}
                if extra:
                    yield sse.encode(FINISHED, {"manifest": event.manifest, **told})
            else:
                yield sse.encode_error(_logged(failed(event.error), event.error).tree())

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._encoding, work)

    def _picture(self, order: Order, number: int, image: NDArray[np.uint8]) -> bytes:
        """The file of an image, finished or foreseen."""
        body, own = order.body, provenance.told(order.tree, order.tree["images"][number])
        return picture(image, body.output_format, body.output_compression, order.scaled_to, own)

    def _items(self, order: Order, numbers: Sequence[int], images: Sequence[NDArray[np.uint8]]) -> list[ImageItem]:
        groups: Sequence[str | None] = [None] * len(images)
        if self._measured is not None:
            groups = self._measured.judge(np.stack(images))
        items = []
        for number, image, group in zip(numbers, images, groups, strict=True):
            record, body = order.manifest.images[number], order.body
            content = self._picture(order, number, image)
            place: dict[str, str]
            if body.answers_with == "url":
                name = self.pictures.keep(content, body.output_format)
                place = {"url": f"{order.base_url}/images/{name}"}
            else:
                place = {"b64_json": base64.b64encode(content).decode()}
            items.append(ImageItem(seed=record.seed, code=record.code, top_code=record.top_code, group=group, **place))
        return items

    def _measure(self, order: Order, items: Sequence[ImageItem]) -> MeasuredShares | None:
        """Counts the images of a request that finished."""
        if self._measured is None:
            return None
        groups = [item.group for item in items if item.group is not None]
        aim = Aim(order.manifest.request.scope, order.ticket.target)
        return self._measured.add(aim, [item.code for item in items], groups)


def _start(order: Order) -> dict[str, Any]:
    """What is settled about a request's images before the first is made."""
    manifest = order.manifest
    return {
        "created_at": int(time.time()),
        "n": order.ticket.n,
        "seed": manifest.request.seed,
        "num_steps": manifest.num_steps,
        "steps_total": order.ticket.steps_total,
        "scope": manifest.request.scope,
        "target": manifest.target,
        "calibration_id": manifest.calibration_id,
        "images": [
            {"index": i, "seed": image.seed, "code": image.code, "top_code": image.top_code}
            for i, image in enumerate(manifest.images)
        ],
    }


def _fixed() -> dict[str, Any]:
    """What OpenAI's events say of a picture besides, and ours always say alike."""
    return {"created_at": int(time.time()), "background": "opaque", "quality": "auto"}


def _unused(order: Order) -> set[str]:
    """Of an image's fields."""
    return {"b64_json" if order.body.answers_with == "url" else "url"}


def _logged(failure: Failure, error: Exception) -> Failure:
    if failure.status >= 500 and failure.code is None:
        _log.error("a request failed", exc_info=error)
    return failure
