"""A student that learns which images its teacher makes, not which image it makes of which noise.

Where a guided walk ends is decided early, so a jump from noise that is held to one walk's end lands in between. Here
the student may send noise wherever it likes, as long as a discriminator can't tell its images of a code from the
teacher's of that code: latent adversarial diffusion distillation (Sauer et al. 2024, arXiv 2403.12015), with the code
as condition. The discriminator is some small heads on features that the teacher itself has of noised images; the loss
compares the teacher's with the student's (Jolicoeur-Martineau 2018, arXiv 1807.00734). A head sees each image beside
another one of the same code, so that images that are too much alike give the student away (Salimans et al. 2016, arXiv
1606.03498, section 3.2; in pairs as in Lin et al. 2018, arXiv 1712.04086). No label, judge or training image has a part
in it.

The student's steps are those of consistency models: an image at once, noised afresh for the next step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from ddm_rt.config import NULL_CODE, PredictionType, RunConfig, SamplerName
from ddm_rt.model.unet import IndicatorUNet
from ddm_rt.progress import OnFigures
from ddm_rt.schedule import Schedule, step_table
from ddm_rt.train.distill.paths import PathDistiller
from ddm_rt.train.distributed import ALONE, Processes
from ddm_rt.train.loop import Batch, step_seed
from ddm_rt.train.loss import training_target
from ddm_rt.train.trainee import Material

BETAS = (0.0, 0.99)  # of both optimizers, as is usual where two networks chase each other
_HEADS_FIRST = 60  # steps in which the discriminator alone learns: the student is to be led by one that knows something
_NOISIEST = 0.5  # part of the timesteps up to which the discriminator sees images noised
_WIDTH, _NORM_GROUPS = 64, 8  # channels of a head
_SEEDS = 2**41  # of what a discriminator's step draws: beyond those of steps and of paths


class AdversarialDistiller(PathDistiller):
    """A `PathDistiller` of whose paths the ends alone count, and whose loss is a discriminator."""

    TOGETHER = 2  # a head compares neighbours

    def __init__(self, config: RunConfig, material: Material, processes: Processes = ALONE) -> None:
        super().__init__(config, material, processes)
        self._heads_first = min(_HEADS_FIRST, config.train.steps // 2)
        schedule, clip = Schedule.from_config(config.schedule), self.distill.clip
        walk = step_table(schedule, SamplerName.DDIM, self.distill.walk_steps, clip=clip)
        rows = torch.from_numpy(walk.rows()).to(self.device)
        times = [int(t) for t in walk.t]
        self._steps = [(row, t, k == len(times) - 1) for k, (row, t) in enumerate(zip(rows, times, strict=True))]
        student = step_table(schedule, SamplerName.LCM, self.distill.phases, clip=clip)
        self._starts = torch.from_numpy(student.t).long()  # [phases], the timesteps that it jumps from
        # x0 = a·x + b·out: a and b by timestep, of those that it jumps from.
        self._x0 = torch.zeros(len(schedule.alphas_cumprod), 2, device=self.device)
        self._x0[self._starts] = torch.from_numpy(np.stack([student.a, student.b], 1)).float().to(self.device)
        self._paths_of: dict[int, Tensor] = {}  # places of a code's paths
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            widths = [feature.shape[1] for feature in self._example()]
            self.discriminator = Discriminator(widths, material.classes.number).to(self.device)
        self._of_discriminator = list(self.discriminator.parameters())
        train = config.train
        self.optimizer = AdamW(self.parameters, train.learning_rate, BETAS, weight_decay=train.weight_decay)
        self._discriminator_optimizer = AdamW(self._of_discriminator, betas=BETAS, weight_decay=0)

    def get_ready(self, out: Path, progress: Mapping[str, OnFigures]) -> None:
        super().get_ready(out, progress)
        codes = self.paths["code"].take(torch.arange(self.distill.paths))
        self._paths_of = {code: torch.nonzero(codes == code).flatten() for code in set(codes.tolist())}

    def batch(self) -> Batch:
        """Images of the teacher's (`target`), two neighbours of each code, and what the student makes others of the
        same codes of (`x_t`, `t`): noise, or another of the code's images with noise.
        """
        train = self.config.train
        generator = torch.Generator().manual_seed(step_seed(train.seed, self.step))
        size = train.batch_size * train.accumulate
        path = torch.randint(self.distill.paths, (size // 2,), generator=generator)
        path = torch.stack([path, self._others(path, generator)], 1).flatten()
        index, code, no_text = (self.paths[name].take(path) for name in ("index", "code", "no_text"))
        every = torch.cat([path, self._others(path, generator)])
        images = self.clipped(self.paths["states"].take(every)[:, -1])
        noise = torch.randn(size, *images.shape[1:], generator=generator)
        phase = (torch.arange(size) // 2 + self.step * (size // 2)) % len(self._starts)
        t = self._starts[phase]
        x_t, _ = training_target(PredictionType.SAMPLE, images[size:], noise, self.alphas_cumprod[t])
        x_t = torch.where((phase == 0).view(-1, 1, 1, 1), noise, x_t)
        return Batch(index, x_t, images[:size], t, code, code, no_text)

    def _others(self, path: Tensor, generator: torch.Generator) -> Tensor:
        """A path for each, of the same code: of a code with few paths, now and then the same one."""
        pools = [self._paths_of[code] for code in self.paths["code"].take(path).tolist()]
        return torch.stack([pool[torch.randint(len(pool), (), generator=generator)] for pool in pools])

    def advance(self) -> float:
        """One step of the discriminator and then one of the student; returns the student's loss."""
        every = self.batch()
        noise, levels = self._noise(every.size)
        batch, noise, levels = every.part(self._part).to(self.device), noise[:, self._part], levels[self._part]
        of_real, of_made = noise.to(self.device)
        with self.autocast():
            made = self.clipped(self._predicted(batch))
        real = self._scores(batch, batch.target, of_real, levels)
        loss = F.softplus(self._scores(batch, made.detach(), of_made, levels) - real).mean()
        rate = self.distill.discriminator_learning_rate
        self._learn(loss, self._of_discriminator, self._discriminator_optimizer, rate)
        if self.step >= self._heads_first:
            self.discriminator.requires_grad_(False)
            loss = F.softplus(real.detach() - self._scores(batch, made, of_made, levels)).mean()
            self._learn(loss, self.parameters, self.optimizer, self.config.train.learning_rate)
            self.discriminator.requires_grad_(True)
        self.ema.update_parameters(self.trained)
        self.step += 1
        loss = loss.detach()
        self.processes.average([loss])
        return loss.item()

    def clipped(self, images: Tensor) -> Tensor:
        """Within the limits that images have when they are sampled."""
        return images if self.distill.clip is None else images.clamp(*self.distill.clip)

    def optimizers(self) -> dict[str, tuple[Optimizer, Sequence[Tensor]]]:
        return {**super().optimizers(), "discriminator": (self._discriminator_optimizer, self._of_discriminator)}

    def _weights(self) -> dict[str, Tensor]:
        heads = {f"heads.{name}": value for name, value in self.discriminator.named_parameters()}
        return super()._weights() | heads

    def _predicted(self, batch: Batch) -> Tensor:
        """The student's x0 of `x_t`, as its sampler takes it from the output."""
        out = self.passed(batch.x_t, batch.t.float(), self.condition(batch)).float()
        a, b = (self._x0[batch.t, k].view(-1, 1, 1, 1) for k in (0, 1))
        return a * batch.x_t + b * out

    def _noise(self, size: int) -> tuple[Tensor, Tensor]:
        """What the discriminator's images are noised with: for real ones and made ones [2,B,C,H,W], and timesteps [B],
        of which low ones, where details show, are the likelier.
        """
        generator = torch.Generator().manual_seed(step_seed(self.config.train.seed, _SEEDS + self.step))
        noise = torch.randn(2, size, *self.material.latents.shape[1:], generator=generator)
        most = _NOISIEST * len(self.alphas_cumprod)
        return noise, (most * torch.rand(size, generator=generator) ** 2).long()

    def _scores(self, batch: Batch, images: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """What each head gives [B, heads] for `images` with noise: high for those that it takes for the teacher's."""
        x_t, _ = training_target(PredictionType.SAMPLE, images, noise, self.alphas_cumprod[levels].to(self.device))
        with self.autocast(), self.subject.teacher() as teacher:
            found = features(teacher, x_t, levels.to(self.device).float(), self.condition(batch))
        scores: Tensor = self.discriminator([feature.float() for feature in found], batch.code)
        return scores

    def _example(self) -> list[Tensor]:
        null = torch.full((1,), NULL_CODE)
        x = torch.zeros(1, *self.material.latents.shape[1:])
        batch = Batch(null + 1, x, x, null + 1, null, null, torch.ones(1, dtype=torch.bool)).to(self.device)
        with torch.no_grad(), self.subject.teacher() as teacher:
            return features(teacher, batch.x_t, batch.t.float(), self.condition(batch))

    def _learn(self, loss: Tensor, parameters: Sequence[nn.Parameter], optimizer: Optimizer, rate: float) -> None:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._share_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, self.config.train.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = rate * self._rate()
        optimizer.step()


class Discriminator(nn.Module):
    """A head for each feature of the teacher."""

    def __init__(self, widths: Sequence[int], codes: int) -> None:
        """`widths`: channels of the features; `codes`: how many there are besides the null code."""
        super().__init__()
        self.heads = nn.ModuleList(Head(width, codes + 1) for width in widths)

    def forward(self, given: Sequence[Tensor], code: Tensor) -> Tensor:
        """Features [B,C,H,W] and codes int64 [B] (-1: null), neighbours with the same -> [B, heads]."""
        return torch.stack(
            [head(feature, code - NULL_CODE) for head, feature in zip(self.heads, given, strict=True)], 1
        )


class Head(nn.Module):
    """Convolutions over one feature, a projection on the code (Miyato and Koyama 2018, arXiv 1802.05637), and how far
    the image is from its neighbour.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(width, _WIDTH, 1), nn.GroupNorm(_NORM_GROUPS, _WIDTH)
        self.second, self.last_norm = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1), nn.GroupNorm(_NORM_GROUPS, _WIDTH)
        self.out, self.of_class = nn.Conv2d(_WIDTH, 1, 1), nn.Embedding(classes, _WIDTH)
        self.apart = nn.Sequential(nn.Conv2d(_WIDTH, _WIDTH, 1), nn.SiLU(), nn.Conv2d(_WIDTH, 1, 1))
        nn.init.normal_(self.of_class.weight, std=0.1)

    def forward(self, feature: Tensor, of: Tensor) -> Tensor:
        """[B,C,H,W], images 2k and 2k + 1 of one code, and classes int64 [B] -> [B]."""
        found = F.silu(self.norm(self.first(feature)))
        found = F.silu(self.last_norm(self.second(found)))
        neighbours = found.reshape(-1, 2, *found.shape[1:]).flip(1).reshape(found.shape)
        anywhere, of_class = self.out(found).mean((1, 2, 3)), (found.mean((2, 3)) * self.of_class(of)).sum(1)
        score: Tensor = anywhere + of_class + self.apart((found - neighbours).abs()).mean((1, 2, 3))
        return score


def features(model: nn.Module, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> list[Tensor]:
    """What the UNet of `model` has after its first convolution and after each of its blocks: [B,C,H,W] each."""
    unet = cast(IndicatorUNet, model).unet
    found: list[Tensor] = []

    def keep(module: nn.Module, given: Any, made: Any) -> None:
        found.append(made[0] if isinstance(made, tuple) else made)

    hooks = [
        block.register_forward_hook(keep)
        for block in (unet.conv_in, *unet.down_blocks, unet.mid_block, *unet.up_blocks)
    ]
    try:
        model(x_t, t, condition)
    finally:
        for hook in hooks:
            hook.remove()
    return found
