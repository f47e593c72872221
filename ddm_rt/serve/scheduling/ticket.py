"""The ticket of a request, for whoever submitted it: its events, its images, and a way to cancel. It is thread-safe."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.sample.generation import Cancelled, Generation
from ddm_rt.sample.manifest import Manifest

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Steps of all of the request's images together."""

    steps_done: int
    steps_total: int


@dataclass(frozen=True, eq=False)
class Preview:
    """What an image of the request is going to look like, as far as that is known on the way."""

    index: int  # of the image, in the request
    image: NDArray[np.uint8]  # [H, W, 3]


@dataclass(frozen=True, eq=False)
class ImageReady:
    """One image of the request."""

    index: int  # in the request
    image: NDArray[np.uint8]  # [H, W, 3]


@dataclass(frozen=True, eq=False)
class Finished:
    """Every image is ready, and the draws of a scope are done."""

    manifest: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Failed:
    """The request came to nothing; the draws of a scope are given back."""

    error: Exception


Event = Progress | Preview | ImageReady | Finished | Failed


class State(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


def preview_steps(steps: int, previews: int) -> frozenset[int]:
    """After how many of an image's steps there is a preview: evenly spread, none after the last."""
    return frozenset(k * steps // (previews + 1) for k in range(1, previews + 1)) - {0}


_Subscriber = tuple[Callable[[Event], None], tuple[type, ...]]  # whom to call, and not with what


class Ticket:
    """A request that was taken in. It ends once: whoever claims it first says how."""

    def __init__(
        self, n: int, steps_total: int, deadline: float, on_cancel: Callable[["Ticket"], None] = lambda ticket: None
    ) -> None:
        self.n, self.steps_total = n, steps_total
        self.manifest: Manifest | None = None  # from when the request is taken in: what each image is going to be
        self.target: str | None = None  # from then on, as the ledger writes it
        self.deadline = deadline  # of time.monotonic
        self.state: State | None = None  # None while the request has not ended
        self.previews: frozenset[int] = frozenset()  # steps of an image after which there is one
        self.taken_s = time.monotonic()  # when it was taken in
        self.begun_s: float | None = None  # when its first image got a slot, where that is known
        self.first_s: float | None = None  # when its first image was delivered
        self._on_cancel = on_cancel
        self._order = threading.RLock()  # events reach every subscriber in one order; a callback may subscribe
        self._claim = threading.Lock()  # never released
        self._subscribers: list[_Subscriber] = []
        self._images: NDArray[np.uint8] | None = None  # [n, H, W, 3]
        self.ready: list[int] = []  # images that were delivered
        self._previews: Counter[int] = Counter()  # that there were of each image
        self._unheard: list[Preview] | None = []  # kept until somebody listens to them
        self._steps_done = 0
        self._end: Finished | Failed | None = None
        self._ended = threading.Event()

    def count_steps(self, steps: int) -> None:
        """An image has so many steps, no more than was said before."""
        self.steps_total, self.previews = self.n * steps, preview_steps(steps, len(self.previews))

    @property
    def claimed(self) -> bool:
        """Whether it is settled how the request ends, though its last event may not be out yet."""
        return self._claim.locked()

    @property
    def wants_progress(self) -> bool:
        return any(Progress not in without for _, without in self._subscribers)

    def subscribe(self, callback: Callable[[Event], None], *, without: tuple[type, ...] = ()) -> None:
        """Calls `callback` with the events so far, then with each one that comes, from the server's threads.

        It must not block. One that raises is called no more. It gets no events of the classes `without`. Of the
        Progress events before now it gets the last one alone; previews before now only go to the first who wants any.
        """
        subscriber = callback, without
        with self._order:
            past: list[Event] = []
            if self._steps_done:
                past.append(Progress(self._steps_done, self.steps_total))
            if Preview not in without:
                past += self._unheard or ()
                self._unheard = None
            if self._images is not None:
                past += [ImageReady(index, self._images[index]) for index in self.ready]
            if self._end is not None:
                past.append(self._end)
            if all(self._tell(subscriber, event) for event in past) and self._end is None:
                self._subscribers.append(subscriber)

    def cancel(self) -> bool:
        """Cancels the request, unless it has ended: then False. Its images leave their slots between two steps."""
        if not self.claim():
            return False
        self._on_cancel(self)
        return True

    def result(self, timeout: float | None = None) -> Generation:
        """Waits for the end. Raises the request's error, and TimeoutError after `timeout` seconds."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the request has not ended within {timeout} s")
        if isinstance(self._end, Failed):
            raise self._end.error
        assert self._end is not None
        assert self._images is not None
        manifest = self._end.manifest
        return Generation(self._images, tuple(image["code"] for image in manifest["images"]), manifest)

    def claim(self) -> bool:
        """For whoever is to end the request: true for the first alone."""
        return self._claim.acquire(blocking=False)

    def begin(self) -> None:
        """An image has got a slot."""
        if self.begun_s is None:
            self.begun_s = time.monotonic()

    def advance(self, steps_done: int) -> None:
        """So many steps of all images together are done."""
        with self._order:
            if self._end is None and steps_done > self._steps_done:
                self._steps_done = steps_done
                self._publish(Progress(steps_done, self.steps_total))

    def preview(self, index: int, image: NDArray[np.uint8]) -> None:
        """What an image that is under way is going to look like, uint8 [H, W, 3]."""
        with self._order:
            # A replica that takes over from one that died makes those anew that there were.
            if self._end is None and index not in self.ready and self._previews[index] < len(self.previews):
                self._previews[index] += 1
                if self._unheard is not None:
                    self._unheard.append(Preview(index, image))
                self._publish(Preview(index, image))

    def deliver(self, index: int, image: NDArray[np.uint8]) -> bool:
        """An image is ready, uint8 [H, W, 3]. Returns whether all are."""
        with self._order:
            if self._images is None:
                self._images = np.empty((self.n, *image.shape), np.uint8)
                self.first_s = time.monotonic()
            self._images[index] = image
            self.ready.append(index)
            if self._end is None:
                self._publish(ImageReady(index, self._images[index]))
            return len(self.ready) == self.n

    def end(self, event: Finished | Failed) -> None:
        """Tells the last event, for whoever claimed the request."""
        with self._order:
            self._end = event
            if isinstance(event, Finished):
                self.state = State.FINISHED
            else:
                self.state = State.CANCELLED if isinstance(event.error, Cancelled) else State.FAILED
            self._publish(event)
            self._subscribers.clear()
            self._ended.set()

    def _publish(self, event: Event) -> None:
        for subscriber in tuple(self._subscribers):  # a callback may add one
            if not self._tell(subscriber, event):
                self._subscribers.remove(subscriber)

    def _tell(self, subscriber: _Subscriber, event: Event) -> bool:
        """False where the subscriber raised."""
        callback, without = subscriber
        if isinstance(event, without):
            return True
        try:
            callback(event)
        except Exception:  # noqa: BLE001 (who listens must not stop who works)
            _log.exception("a subscriber failed; it is told no more")
            return False
        return True
