"""How long work takes on this machine: measured as it goes, to refuse what can't be done in time."""

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from ddm_rt.sample.jobs import Shape
from ddm_rt.serve.scheduling.request import Work

_WEIGHT = 0.1  # of the newest tick in the running means


class Pace:
    """Seconds of ticks, by latent shape and images in them. Nothing is known before the first tick."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._seconds: dict[Shape, dict[int, float]] = {}

    def saw(self, shape: Shape, images: int, seconds: float) -> None:
        known = self._seconds.setdefault(shape, {})
        known[images] = known[images] + _WEIGHT * (seconds - known[images]) if images in known else seconds

    def step_s(self, shape: Shape) -> float:
        """Seconds that one step of one image takes of a full server's time; 0 where nothing is known."""
        if shape in self._seconds:
            images = max(self._seconds[shape])
            return self._seconds[shape][images] / images
        # Of another shape, in proportion to its numbers.
        return max((self.step_s(other) * _numbers(shape) / _numbers(other) for other in self._seconds), default=0.0)

    def least_s(self, work: Work) -> float:
        """Seconds below which the whole of `work` can't be done even alone."""
        fastest = min(self._seconds.get(work.shape, {}).values(), default=0.0)
        return max(work.steps * fastest, work.n * work.steps * self.step_s(work.shape))

    def backlog_s(self, steps: Mapping[Shape, int]) -> float:
        """Seconds for so many steps of images of each shape."""
        return sum(count * self.step_s(shape) for shape, count in steps.items())

    def longest_s(self, shapes: Iterable[Shape], steps: int) -> float:
        """Seconds that an image with so many steps is in its slot on a full server, of the slowest shape."""
        return max((self._slots * steps * self.step_s(shape) for shape in shapes), default=0.0)

    def late(self, works: Collection[Work], now: float, headroom: float) -> dict[Work, float]:
        """Those that need more than the part `headroom` of the time they have, served by urgency; and the seconds
        that they are over it.
        """
        late: dict[Work, float] = {}
        # Images stay in their slots to their end, so that even the most urgent one waits for the next to leave.
        before_s = max((work.steps * self._tick_s(work) for work in works if work.next and work.steps_left), default=0)
        for work in sorted(works, key=lambda work: work.urgency):
            last = min(work.steps, work.steps_left)  # steps of its last image
            own_s = (work.steps_left - last) * self.step_s(work.shape)
            needed_s = (before_s + own_s if work.waiting else 0) + last * self._tick_s(work)
            over_s = needed_s - headroom * (work.deadline - now)
            if over_s > 0:
                late[work] = over_s
            before_s += work.steps_left * self.step_s(work.shape)
        return late

    def _tick_s(self, work: Work) -> float:
        """Seconds that a step of one of its images takes among others, in full slots."""
        return self._slots * self.step_s(work.shape)


def _numbers(shape: Shape) -> int:
    return int(np.prod(shape))
