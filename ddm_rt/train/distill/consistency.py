"""Consistency distillation (Luo et al. 2023, arXiv 2310.04378): a student that jumps where its teacher walks.

On a grid of timesteps the student's f(x_t, t) is drawn to f(x_s, s), s being the next timestep and x_s where one DDIM
step of the guided teacher leads. So every f on a path becomes the path's end, an image as the teacher would make it
with guidance, and the student needs neither many steps nor a second branch.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from ddm_rt.config import NULL_CODE, PredictionType, RunConfig, SamplerName
from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.schedule import Schedule, jumps, step_table
from ddm_rt.train.device import CPU, HALF
from ddm_rt.train.distill.student import Student
from ddm_rt.train.distributed import ALONE, Processes
from ddm_rt.train.loop import Trainer, TrainingSet
from ddm_rt.train.loss import training_target

GRID = 40  # steps of the teacher's walk


class Distiller(Trainer):
    """A `Trainer` whose target is the student's own average, one step of the teacher further on."""

    subject: Student

    def __init__(
        self,
        config: RunConfig,
        data: TrainingSet,
        subject: Student,
        device: torch.device = CPU,
        processes: Processes = ALONE,
    ) -> None:
        """`config.distill` must be set; its scales are those of the teacher."""
        super().__init__(config, data, device, subject, processes)
        if config.distill is None:
            raise ValueError("the configuration is not a student's")
        self.distill = config.distill
        schedule = Schedule.from_config(config.schedule)
        # Timesteps of the teacher's walk and, among them, those that the student jumps from; -1 is the clean end.
        walk, starts = (step_table(schedule, SamplerName.DDIM, steps).t for steps in (GRID, config.distill.phases))
        walk = walk[walk <= starts[0]]
        following, landings = np.append(walk[1:], -1), np.append(starts, -1)
        ends = np.array([landings[landings < t][0] for t in walk])
        self._t, self._last = torch.from_numpy(walk).long(), torch.from_numpy(following == ends).to(device)
        self._clean = torch.from_numpy(ends == -1).to(device)  # jumps whose end is the image
        self._row = torch.zeros(int(walk[0]) + 1, dtype=torch.int64)  # of a timestep
        self._row[self._t] = torch.arange(len(walk))
        self._step, self._jump = (
            torch.from_numpy(jumps(schedule, walk, to, self.distill.clip)).to(device) for to in (following, ends)
        )

    def weights(self) -> dict[str, Tensor]:
        return self.subject.whole(super().weights())

    def _noised(self, x0: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, x0 and a t of the walk."""
        t = self._t[torch.randint(len(self._t), (len(x0),), generator=generator)]
        x_t, _ = training_target(PredictionType.SAMPLE, x0, noise, self.alphas_cumprod[t])
        return x_t, x0, t

    def _loss(
        self,
        index: Tensor,
        x_t: Tensor,
        target: Tensor,
        t: Tensor,
        y: Tensor,
        code: Tensor,
        no_text: Tensor,
        *,
        known: float,
    ) -> Tensor:
        row = self._row[t]
        x_t, target, row, t, code = (tensor.to(self.device) for tensor in (x_t, target, row, t, code))
        half = HALF.get(self.config.train.precision)
        with torch.autocast(self.device.type, half) if half is not None else nullcontext():
            with torch.no_grad():
                end = self._wanted(target, index, x_t, row, t, code, no_text)
            prediction = self.model(x_t, t.float(), self.subject.condition(index, code, no_text)).float()
        a, b = (self._jump[row, k].view(-1, 1, 1, 1) for k in (0, 1))
        difference = self._within(a * x_t + b * prediction, end, row) - end
        huber = self.distill.huber
        loss: Tensor = (difference.square() + huber**2).sqrt().mean() - huber
        return loss

    def _within(self, x0: Tensor, end: Tensor, row: Tensor) -> Tensor:
        """`x0`, but no further beyond the clip than `end` where it is the image itself: pixels are clipped anyway."""
        if self.distill.clip is None:
            return x0
        low, high = self.distill.clip
        beyond = ((x0 < low) & (end <= low)) | ((x0 > high) & (end >= high))
        return torch.where(beyond & self._clean[row].view(-1, 1, 1, 1), end, x0)

    def _wanted(
        self, target: Tensor, index: Tensor, x_t: Tensor, row: Tensor, t: Tensor, code: Tensor, no_text: Tensor
    ) -> Tensor:
        """The x0 [B,C,H,W] that the jump from x_t is drawn to. The clean latents `target` play no part in it."""
        return self._end(index, x_t, row, t, code, no_text)

    def _end(self, index: Tensor, x_t: Tensor, row: Tensor, t: Tensor, code: Tensor, no_text: Tensor) -> Tensor:
        """Where the path through x_t [B,C,H,W] ends, as the averaged student sees it from one teacher's step on."""
        (x, x0), condition = self._walked(index, x_t, row, t, code, no_text)
        following = (row + 1).clamp(max=len(self._t) - 1)
        t = self._t.to(self.device)[following].float()
        with self.averaged() as student:
            out = student(x, t, condition).float()
        x, _ = guided_step([out], x.new_zeros(len(x), 0), self._jump[following], x, x)
        # At a phase's last row the teacher's step is the jump.
        return torch.where(self._last[row].view(-1, 1, 1, 1), x0, self._x0(x, x_t, row))

    def _walked(
        self, index: Tensor, x_t: Tensor, row: Tensor, t: Tensor, code: Tensor, no_text: Tensor
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """One step of the guided teacher: (x', x0), and the condition of its last branch."""
        conditions, scales = self._branches(index, code, no_text)
        with self.subject.teacher() as teacher:
            outputs = [teacher(x_t, t.float(), cond).float() for cond in conditions]
        weights = torch.tensor(scales, device=self.device).expand(len(x_t), -1)
        return guided_step(outputs, weights, self._step[row], x_t, x_t), conditions[-1]

    def _x0(self, x: Tensor, x_t: Tensor, row: Tensor) -> Tensor:
        """The x0 with which the jump from x_t leads to x."""
        keep, add = (self._jump[row, k].view(-1, 1, 1, 1) for k in (2, 3))
        return (x - keep * x_t) / add

    def _branches(
        self, index: Tensor, code: Tensor, no_text: Tensor
    ) -> tuple[Sequence[dict[str, Tensor]], Sequence[float]]:
        """What the teacher's guidance needs, from the least conditioned on, and the scales in between.

        As `sample.loop.guidance` has it: joint where both scales are equal or there is no text.
        """
        condition, distill = self.subject.condition, self.distill
        null, no_texts = torch.full_like(code, NULL_CODE), torch.ones_like(no_text)
        wanted = condition(index, code, no_text)
        if not self.data.top_of and not self.subject.takes_text:
            return [wanted], []
        nothing = condition(index, null, no_texts)
        if not self.subject.takes_text or distill.guidance_scale == distill.indicator_guidance_scale:
            return [nothing, wanted], [distill.indicator_guidance_scale]
        text = condition(index, null, no_text)
        return [nothing, text, wanted], [distill.guidance_scale, distill.indicator_guidance_scale]
