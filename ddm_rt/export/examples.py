"""Inputs to trace and to check a graph with, made from a seed."""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from ddm_rt.config import NULL_CODE, Family, RunConfig
from ddm_rt.model.parts import Part
from ddm_rt.runtime import RuntimeConfig

Size = tuple[int, int]  # height and width of latents

# Latent families are checked at a few multiples of their smallest size: the training size takes minutes there.
_FEW = ((2, 2), (3, 4))


def example(part: Part, config: RuntimeConfig, run: RunConfig) -> dict[str, Tensor]:
    """What to trace with: 0 and 1 would be taken for constants, equal height and width for one axis."""
    return _inputs(part, config, run, batch=2, tokens=3, size=_sizes(part, config, run)[1], seed=0)


def cases(part: Part, config: RuntimeConfig, run: RunConfig) -> Iterator[dict[str, Tensor]]:
    """Random inputs at two batch sizes and two sizes; null code and scale 0 among them."""
    for seed, (batch, size) in enumerate(product((1, 3), _sizes(part, config, run))):
        yield _inputs(part, config, run, batch=batch, tokens=batch, size=size, seed=seed)


def _inputs(
    part: Part, config: RuntimeConfig, run: RunConfig, *, batch: int, tokens: int, size: Size, seed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int | str) -> Tensor:
        return torch.randn((batch, *part.sides(shape, tokens)), generator=generator)

    channels = config.latent_shape[0]
    # From the last code downwards, then the null code, with a scale of 0 before it.
    code = torch.arange(config.num_codes - 1, config.num_codes - 1 - batch, -1)
    scale = torch.linspace(1.5, 0.0, max(batch, 2))[:batch]
    pixels = torch.tensor([side * run.model.patch for side in size], dtype=torch.float32)
    made = {
        "context": lambda: normal(tokens, config.context_shape[1]),
        "code": lambda: torch.where(torch.arange(batch) == 1, NULL_CODE, code.clamp(min=0)),
        "indicator_scale": lambda: scale,
        "code_scale": lambda: scale,
        "x_t": lambda: normal(channels, *size),
        "t": lambda: torch.rand(batch, generator=generator) * (run.schedule.num_train_timesteps - 1),
        "x0": lambda: normal(channels, *size),
        **dict.fromkeys(
            ("time_ids", "sizes"), lambda: pixels.repeat(3).mul(torch.tensor([1, 1, 0, 0, 1, 1])).expand(batch, -1)
        ),
    }
    shapes = {spec.name: spec.shape for spec in (*part.cond, *config.added)}
    encoders = {spec.input: number for number, spec in enumerate(config.text)}

    def make(name: str) -> Tensor:
        if name in encoders:
            return _ids(config, run, encoders[name], batch, generator)
        return made[name]() if name in made else normal(*shapes[name])

    return {name: make(name) for name in part.inputs}


def _ids(config: RuntimeConfig, run: RunConfig, number: int, batch: int, generator: torch.Generator) -> Tensor:
    """Prompts of different lengths, as CLIP's tokenizer gives them: begin, words, end, padding."""
    spec, words = config.text[number], int(run.model.text_encoders[number]["vocab_size"])
    begin, end = words - 2, words - 1
    ids = torch.randint(0, begin, (batch, spec.max_length), generator=generator)
    length = torch.randint(1, spec.max_length, (batch, 1), generator=generator)
    place = torch.arange(spec.max_length)
    ids = torch.where(place < length, ids, torch.where(place == length, end, spec.pad_id))
    return torch.where(place == 0, begin, ids)


def _sizes(part: Part, config: RuntimeConfig, run: RunConfig) -> tuple[Size, Size]:
    """Latent sizes: the training size or, for families where it is big, a small one; and one that is not square."""
    _, height, width = config.latent_shape
    step = config.size_multiple // run.model.patch
    if config.family is not Family.PIXEL:
        step = 1 if part.inputs == ("x0",) else step  # a VAE's decoder takes any size
        (small, _), (high, wide) = _FEW
        return (small * step, small * step), (high * step, wide * step)
    return (height, width), (height + step, width + 2 * step)
