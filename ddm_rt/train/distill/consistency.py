"""Consistency distillation (Luo et al. 2023, arXiv 2310.04378): a student that jumps where its teacher walks.

On a grid of timesteps the student's f(x_t, t) is drawn to f(x_s, s), s being the next timestep and x_s where one DDIM
step of the guided teacher leads. So every f on a path becomes the path's end, an image as the teacher would make it
with guidance, and the student needs neither many steps nor a second branch.
"""

import torch
from torch import Tensor

from ddm_rt.config import NULL_CODE, PredictionType, RunConfig
from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.train.device import CPU
from ddm_rt.train.distill.student import Student
from ddm_rt.train.distill.walk import Walk
from ddm_rt.train.distributed import ALONE, Processes
from ddm_rt.train.loop import Batch, Trainer
from ddm_rt.train.loss import training_target
from ddm_rt.train.trainee import Material


class Distiller(Trainer):
    """A `Trainer` of a `Student` whose target is the student's own average, one step of the teacher further on."""

    subject: Student

    def __init__(
        self, config: RunConfig, material: Material, device: torch.device = CPU, processes: Processes = ALONE
    ) -> None:
        """`config.distill` must be set; its scales are those of the teacher."""
        super().__init__(config, material, device, processes)
        if config.distill is None:
            raise ValueError("the configuration is not a student's")
        self.distill = config.distill
        self.walk = Walk(config, self.distill, device)

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
            prediction = self.model(batch.x_t, batch.t.float(), self.condition(batch)).float()
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
