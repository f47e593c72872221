"""The sampling loop of the bench: the product's step tables and noise, and a model in torch that a rival may look into.

A rival is a function of the denoiser and a step that gives the denoiser's output, changed as the rival has it. All that
it may draw by chance is a function of the images' seeds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddm_rt.kernels.guided_step.reference import guided_step_reference
from ddm_rt.sample.loop.noise import Stream, normal
from ddm_rt.schedule import Schedule, StepTable

COIN, CONDITION = 101, 102  # streams that the product doesn't use
Edit = Callable[[Tensor], Tensor]


@dataclass
class Denoiser:
    """A vanilla model's UNet. It counts the images that went through it."""

    unet: nn.Module
    forward: int = 0  # images times passes
    backward: int = 0
    heads: int = 0  # gradients of a small head on h alone

    def __call__(self, x: Tensor, t: float, context: Tensor, edit: Edit | None = None) -> Tensor:
        """x [B,C,H,W] at timestep t, context [B or 1,T,D] -> prediction [B,C,H,W]; `edit` changes h on the way.

        h is the output of the UNet's middle block, [B,C',H',W'].
        """
        self.forward += len(x)
        with edited(self.unet.mid_block, edit):
            out: Tensor = self.unet(x, x.new_full((len(x),), t), context.expand(len(x), -1, -1), return_dict=False)[0]
        return out


@contextmanager
def edited(module: Any, edit: Edit | None) -> Iterator[None]:
    """Within this, the output of `module` is what `edit` makes of it."""
    if edit is None:
        yield
        return
    handle = module.register_forward_hook(lambda _, given, made: edit(made))
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Step:
    """One step of a batch of images."""

    index: int
    count: int  # steps in all
    t: float
    alpha: float  # x = alpha·x0 + sigma·eps
    sigma: float
    x: Tensor  # [B, C, H, W]
    images: NDArray[np.int64]  # [B], their numbers in the run
    seeds: NDArray[np.uint64]  # [B]

    def coin(self) -> NDArray[np.int64]:
        """Side 0 or 1 by chance for each image [B], the same at each step."""
        return (normal(self.seeds, 0, COIN, (1,))[:, 0] > 0).astype(np.int64)

    def quota(self) -> NDArray[np.int64]:
        """Side 0 or 1 in turn for each image [B]."""
        return self.images % 2


Output = Callable[[Denoiser, Step], Tensor]


@dataclass(frozen=True)
class Model:
    """What of a trained model sampling needs."""

    denoiser: Denoiser
    schedule: Schedule
    table: StepTable
    shape: tuple[int, int, int]  # of latents
    decode: Callable[[Tensor], NDArray[np.uint8]]
    texts: Callable[[str], Tensor] | None = field(default=None)  # text -> context [1,T,D]; None: it takes no prompts

    def levels(self, index: int) -> tuple[float, float]:
        """alpha and sigma at a step."""
        bar = float(self.schedule.alphas_cumprod[round(float(self.table.t[index]))])
        return bar**0.5, (1 - bar) ** 0.5

    @torch.no_grad()
    def latents(self, output: Output, seeds: NDArray[np.uint64], images: NDArray[np.int64]) -> Tensor:
        """Samples [B,C,H,W] for these seeds, by the step table."""
        table = self.table
        rows = torch.from_numpy(table.rows())
        x = torch.from_numpy(normal(seeds, 0, Stream.INITIAL, self.shape)) * table.init_scale
        x0, no_scales = x, x.new_zeros(len(x), 0)
        for index in range(table.num_steps):
            step = Step(index, table.num_steps, float(table.t[index]), *self.levels(index), x, images, seeds)
            out = output(self.denoiser, step).detach()
            x, x0 = guided_step_reference([out], no_scales, rows[index].expand(len(x), -1), x, x0)
        return x

    def images(self, output: Output, seeds: NDArray[np.uint64], images: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 [B,H,W,3]."""
        return self.decode(self.latents(output, seeds, images))


def plain(context: Tensor) -> Output:
    """The model as it is, on one condition."""
    return lambda denoiser, step: denoiser(step.x, step.t, context)


def guided(context: Tensor, null: Tensor, scale: float) -> Output:
    """Classifier-free guidance (arXiv 2207.12598, eq. 6), two branches in one call."""

    def output(denoiser: Denoiser, step: Step) -> Tensor:
        apart, wanted = branches(denoiser, step, null, context)
        return apart + scale * (wanted - apart)

    return output


def branches(denoiser: Denoiser, step: Step, null: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs [B,C,H,W] on the null condition and on the wanted one, each [B or 1,T,D], of one call."""
    size = len(step.x)
    both = torch.cat([null.expand(size, -1, -1), context.expand(size, -1, -1)])
    apart, wanted = denoiser(torch.cat([step.x, step.x]), step.t, both).chunk(2)
    return apart, wanted
