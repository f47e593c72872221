"""Consistency distillation (Luo et al. 2023, arXiv 2310.04378): a student that jumps where its teacher walks.

On a grid of timesteps the student's f(x_t, t) is drawn to f(x_s, s), s being the next timestep and x_s where one DDIM
step of the guided teacher leads. So every f on a path becomes the path's end, an image as the teacher would make it
with guidance, and the student needs neither many steps nor a second branch.
"""

import numpy as np
import torch
from torch import Tensor

from ddm_rt.config import NULL_CODE, DistillConfig, PredictionType, RunConfig, SamplerName
from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.schedule import Schedule, jumps, step_table
from ddm_rt.train.distributed import ALONE, Processes
from ddm_rt.train.loop import Batch, Trainer
from ddm_rt.train.loss import training_target
from ddm_rt.train.trainee import Material, Student

GRID = 40  # steps of the teacher's walk


class Distiller(Trainer):
    """A `Trainer` of a `Student` whose target is the student's own average, one step of the teacher further on."""

    subject: Student

    def __init__(self, config: RunConfig, material: Material, processes: Processes = ALONE) -> None:
        """`config.distill` must be set; its scales are those of the teacher."""
        super().__init__(config, material, processes)
        if config.distill is None:
            raise ValueError("the configuration is not a student's")
        self.distill = config.distill
        self.walk = Walk(config, self.distill, self.device)

    def weights(self) -> dict[str, Tensor]:
        return self.subject.whole(super().weights())

    def _noised(self, x0: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, x0 and a t of the walk."""
        t = self.walk.t[torch.randint(len(self.walk.t), (len(x0),), generator=generator)]
        x_t, _ = training_target(PredictionType.SAMPLE, x0, noise, self.alphas_cumprod[t])
        return x_t, x0, t

    def _loss(self, batch: Batch, known: float) -> Tensor:
        row, batch = self.walk.row_of[batch.t].to(self.device), batch.to(self.device)
        with self.autocast():
            with torch.no_grad():
                wanted = self.wanted(batch, row)
            prediction = self.passed(batch.x_t, batch.t.float(), self.condition(batch)).float()
        a, b = (self.walk.jump[row, k].view(-1, 1, 1, 1) for k in (0, 1))
        difference = self.within(a * batch.x_t + b * prediction, wanted, row) - wanted
        huber = self.distill.huber
        loss: Tensor = (difference.square() + huber**2).sqrt().mean() - huber
        return loss

    def within(self, x0: Tensor, end: Tensor, row: Tensor) -> Tensor:
        """`x0`, but no further beyond the clip than `end` where it is the image itself: pixels are clipped anyway."""
        if self.distill.clip is None:
            return x0
        low, high = self.distill.clip
        beyond = ((x0 < low) & (end <= low)) | ((x0 > high) & (end >= high))
        return torch.where(beyond & self.walk.clean[row].view(-1, 1, 1, 1), end, x0)

    def wanted(self, batch: Batch, row: Tensor) -> Tensor:
        """The x0 [B,C,H,W] that the student is drawn to, at these rows of the walk.

        It leads to where the path through x_t ends, as the averaged student sees it from one teacher's step on. The
        clean latents `batch.target` play no part in it.
        """
        x, x0, condition = self.teacher_step(batch, self.walk.step[row])
        following = (row + 1).clamp(max=len(self.walk.t) - 1)
        t = self.walk.t.to(self.device)[following].float()
        with self.averaged() as student:
            out = student(x, t, condition).float()
        x, _ = guided_step([out], x.new_zeros(len(x), 0), self.walk.jump[following], x, x)
        # At a phase's last row the teacher's step is the jump.
        last = self.walk.last[row].view(-1, 1, 1, 1)
        return torch.where(last, x0, self.walk.x0_of_jump(x, batch.x_t, row))

    def teacher_step(self, batch: Batch, step: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One step [B,7] of the guided teacher: x', x0, and the condition of its last branch.

        Its branches are as `sample.loop.guidance` has them: joint where both scales are equal or there is no text.
        """
        takes_text, (text_scale, code_scale) = self.subject.takes_text, self.distill.scales
        scales = [code_scale]
        uncoded = batch._replace(code=torch.full_like(batch.code, NULL_CODE))
        nothing = uncoded._replace(no_text=torch.ones_like(batch.no_text))
        branches = [nothing, batch]  # from the least conditioned on
        if not self.material.classes.top_of and not takes_text:
            branches, scales = [batch], []
        elif takes_text and text_scale != code_scale:
            branches, scales = [nothing, uncoded, batch], [text_scale, code_scale]
        conditions = [self.condition(branch) for branch in branches]
        with self.subject.teacher() as teacher:
            outputs = [teacher(batch.x_t, batch.t.float(), condition).float() for condition in conditions]
        weights = torch.tensor(scales, device=self.device).expand(len(batch.x_t), -1)
        return *guided_step(outputs, weights, step, batch.x_t, batch.x_t), conditions[-1]


class Walk:
    """Tables with a row for each step of the teacher: where it leads, and where the student jumps to from its start."""

    def __init__(self, config: RunConfig, distill: DistillConfig, device: torch.device) -> None:
        schedule = Schedule.from_config(config.schedule)
        # Timesteps of the walk and, among them, those that the student jumps from; -1 is the clean end.
        walk, starts = (step_table(schedule, SamplerName.DDIM, steps).t for steps in (GRID, distill.phases))
        walk = walk[walk <= starts[0]]
        following, landings = np.append(walk[1:], -1), np.append(starts, -1)
        ends = np.array([landings[landings < t][0] for t in walk])
        last = following == ends
        self.t = torch.from_numpy(walk).long()  # [R], on the CPU
        self.starts = torch.from_numpy(np.flatnonzero(np.append(True, last[:-1])))  # the first row of each phase
        self.last = torch.from_numpy(last).to(device)  # [R], of the phase
        self.clean = torch.from_numpy(ends == -1).to(device)  # [R], whether the phase's end is the image
        self.row_of = torch.zeros(int(walk[0]) + 1, dtype=torch.int64)  # of a timestep
        self.row_of[self.t] = torch.arange(len(walk))
        self.step, self.jump = (  # [R, 7], rows of a step table
            torch.from_numpy(jumps(schedule, walk, to, distill.clip)).to(device) for to in (following, ends)
        )

    def x0_of_jump(self, x: Tensor, x_t: Tensor, row: Tensor) -> Tensor:
        """The x0 with which the jump from x_t [B,C,H,W] leads to x."""
        keep, add = (self.jump[row, k].view(-1, 1, 1, 1) for k in (2, 3))
        return (x - keep * x_t) / add
