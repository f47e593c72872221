"""EquiSteer (arXiv 2607.01147, ECCV 2026): the group's directions leave each cross-attention's output, and that of a
group by chance comes in.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from rivals.sampling import Denoiser, Model, Output, Step, branches, edited

STEPS = 20 / 50  # of Stable Diffusion 1.5's, the first ones; SDXL and SANA are steered at every step
SEEDS = 8  # images for each prompt
_EPS = 1e-6


@dataclass
class Steering:
    """For each step and layer: unit directions [K,D] of the groups, and the mean of their images' largest response
    [K]; and the gate's thresholds [K] at the first step.
    """

    directions: list[list[Tensor]]
    responses: list[list[Tensor]]
    gate: Tensor
    gate_layer: int


def removed(attention: Tensor, directions: Tensor) -> Tensor:
    """attention [B,N,D] without its parts along the directions [K,D], made orthogonal one after the other (eq. 7)."""
    done: list[Tensor] = []
    for direction in directions:
        left = direction
        for earlier in done:
            left = left - (left @ earlier) * earlier
        left = left / (left.norm() + _EPS)
        attention = attention - (attention @ left)[..., None] * left
        done.append(left)
    return attention


def steered(attention: Tensor, directions: Tensor, responses: Tensor, side: Tensor) -> Tensor:
    """attention [B,N,D] without the groups' directions, plus that of each image's group `side` [B] (eq. 7, 8).

    It keeps each token's norm (eq. 3).
    """
    norm = attention.norm(dim=-1, keepdim=True)
    found = removed(attention, directions) + (responses[side, None] * directions[side])[:, None]
    return found / (found.norm(dim=-1, keepdim=True) + _EPS) * norm


def layers(unet: nn.Module) -> dict[str, nn.Module]:
    """The cross-attention layers by name, in the order in which they run."""
    found = {name: module for name, module in unet.named_modules() if name.endswith("attn2")}
    order = ("down_blocks", "mid_block", "up_blocks")
    return {name: found[name] for start in order for name in found if name.startswith(start)}


@contextmanager
def each(unet: nn.Module, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Within this, the output of cross-attention layer i is change(i, output)."""
    with ExitStack() as stack:
        for number, module in enumerate(layers(unet).values()):
            stack.enter_context(edited(module, lambda made, number=number: change(number, made)))
        yield


@dataclass
class _Sums:
    means: list[list[Tensor]] = field(default_factory=list)  # [D] of each step and layer
    largest: list[list[Tensor]] = field(default_factory=list)  # with directions: [K]


def gather(
    model: Model, contexts: Sequence[Tensor], null: Tensor, scale: float, directions: list[list[Tensor]] | None
) -> _Sums:
    """Means over images and tokens of each layer's output at each step, for the conditioned branch; or, with
    directions, the means over images of the largest response of a token to each.
    """
    context = torch.cat([part for part in contexts for _ in range(SEEDS)])
    seeds = np.array([seed for _ in contexts for seed in range(SEEDS)], np.uint64)
    sums = _Sums()

    def output(denoiser: Denoiser, step: Step) -> Tensor:
        row: list[Tensor] = []

        def look(number: int, attention: Tensor) -> Tensor:
            wanted = attention[len(step.x) :]
            if directions is None:
                row.append(wanted.mean((0, 1)))
            else:
                row.append((wanted @ directions[step.index][number].T).amax(1).mean(0))
            return attention

        with each(denoiser.unet, look):
            apart, conditioned = branches(denoiser, step, null, context)
        (sums.means if directions is None else sums.largest).append(row)
        return apart + scale * (conditioned - apart)

    model.latents(output, seeds, np.arange(len(seeds)))
    return sums


def prepare(
    model: Model, named: Sequence[Sequence[Tensor]], neutral: Sequence[Tensor], null: Tensor, scale: float
) -> Steering:
    """From conditions [1,T,D] that name each of two groups, and ones that name none: the contrast of the two."""
    of_group = [gather(model, contexts, null, scale, None).means for contexts in named]
    directions = []
    for first, second in zip(*of_group, strict=True):
        pairs = [torch.stack([a - b, b - a]) for a, b in zip(first, second, strict=True)]
        directions.append([pair / (pair.norm(dim=1, keepdim=True) + _EPS) for pair in pairs])
    largest = [gather(model, contexts, null, scale, directions).largest for contexts in named]
    plain = gather(model, neutral, null, scale, directions).largest
    responses = [
        [torch.stack([first[0], second[1]]) for first, second in zip(*rows, strict=True)]
        for rows in zip(*largest, strict=True)
    ]
    gate_layer = sum(name.startswith("down") for name in layers(model.denoiser.unet)) - 1  # the last one downwards
    gate = (responses[0][gate_layer] + plain[0][gate_layer]) / 2
    return Steering(directions, responses, gate, gate_layer)


def make(context: Tensor, found: Steering, null: Tensor, scale: float, part: float = STEPS) -> Output:
    """Guidance by `scale`, whose conditioned branch is steered at the first `part` of the steps; groups by a coin.

    At the first step an image whose largest response passes a threshold is left alone: its prompt names a group.
    """
    alone: list[Tensor] = []

    def output(denoiser: Denoiser, step: Step) -> Tensor:
        size, side = len(step.x), torch.from_numpy(step.coin())
        if step.index == 0:
            alone[:] = [torch.zeros(size, dtype=torch.bool)]

        def change(number: int, attention: Tensor) -> Tensor:
            wanted = attention[size:]
            at = found.directions[step.index][number], found.responses[step.index][number]
            if step.index == 0 and number == found.gate_layer:
                alone[0] = ((wanted @ at[0].T).amax(1) > found.gate).any(1)
            changed = torch.where(alone[0][:, None, None], wanted, steered(wanted, *at, side))
            return torch.cat([attention[:size], changed])

        if step.index >= part * step.count:
            apart, wanted = branches(denoiser, step, null, context)
        else:
            with each(denoiser.unet, change):
                apart, wanted = branches(denoiser, step, null, context)
        return apart + scale * (wanted - apart)

    return output
