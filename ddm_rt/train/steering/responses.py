"""What a model makes of images on the way: the responses of its cross-attention layers, and the images it draws."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ddm_rt.config import NULL_CODE, RunConfig
from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.model.latent import LatentDDM
from ddm_rt.model.parts import Model
from ddm_rt.model.steering import PREDICTION, attention_layers
from ddm_rt.progress import OnFigures
from ddm_rt.schedule import Schedule, default_table

_AT_ONCE = 16  # images in one call of the model

Condition = Callable[[Tensor], Mapping[str, Tensor]]  # images int64 [B] -> cond


def of_prediction(latents: Tensor) -> dict[str, Tensor]:
    """What the prediction should be, [N,C·H·W], of images whose latents are [N,C,H,W]."""
    return {PREDICTION: latents.flatten(1)}


def null_codes(rows: Tensor, device: torch.device) -> Tensor:
    """The null code for each row."""
    return torch.full((len(rows),), NULL_CODE, device=device)


@torch.no_grad()
def of_attention(
    model: Model,
    latents: Tensor,
    condition: Condition,
    config: RunConfig,
    timesteps: Sequence[int],
    device: torch.device,
    progress: OnFigures | None = None,
) -> dict[str, Tensor]:
    """What each cross-attention layer gives, [N,C] by its name: the mean over positions and over `timesteps`, to which
    the latents [N,C,H,W] are noised. The noise is drawn from the run's seed.
    """
    generator = torch.Generator().manual_seed(config.train.seed)
    bar = torch.from_numpy(Schedule.from_config(config.schedule).alphas_cumprod.astype(np.float32))
    places = attention_layers(model.unet)
    found = {name: torch.zeros(len(latents), width) for name, width in places.items()}
    modules = dict(model.unet.named_modules())
    rows = torch.arange(0)

    def add(name: str) -> Callable[..., None]:
        def hook(_module: object, _given: object, out: Tensor) -> None:
            found[name][rows] += out.float().mean(1).cpu() / len(timesteps)

        return hook

    hooks = [modules[name].register_forward_hook(add(name)) for name in places]
    try:
        for done, t in enumerate(timesteps):
            for rows in torch.split(torch.arange(len(latents)), _AT_ONCE):
                x0 = latents[rows]
                noise = torch.randn(x0.shape, generator=generator)
                x_t = bar[t].sqrt() * x0 + (1 - bar[t]).sqrt() * noise
                model(x_t.to(device), torch.full((len(rows),), float(t), device=device), condition(rows))
            if progress is not None:
                progress(done + 1, len(timesteps), {})
    finally:
        for handle in hooks:
            handle.remove()
    return found


@torch.no_grad()
def drawn(
    model: LatentDDM,
    condition: Condition,
    prompts: int,
    images: int,
    config: RunConfig,
    device: torch.device,
    progress: OnFigures | None = None,
) -> Tensor:
    """Latents [P·images,C,H,W] of images of prompts 1 to P, all of a prompt's together, as a bundle of this run would
    draw them by default. `condition` takes rows of prompts, of which 0 is the null text. The prompts start from the
    same noise, which is drawn from the run's seed.
    """
    settings = config.sampling
    table = default_table(config.schedule, settings)
    steps = torch.from_numpy(table.rows()).to(device)
    scales = torch.full((prompts, 1), settings.guidance_scale, device=device)
    cond = condition(torch.cat([torch.zeros(prompts, dtype=torch.int64), torch.arange(1, prompts + 1)]))
    found = []
    for image in range(images):
        seed = config.train.seed + image
        noise = torch.randn(1, *config.model.latent_shape(config.data), generator=torch.Generator().manual_seed(seed))
        x = x0 = (table.init_scale * noise).repeat(prompts, 1, 1, 1).to(device)
        seeds = torch.full((prompts,), seed, device=device)
        for i, t in enumerate(table.timesteps.tolist()):
            out = model(x.repeat(2, 1, 1, 1), torch.full((2 * prompts,), t, device=device), cond).float()
            more = (seeds, torch.full_like(seeds, i)) if table.f[i] else (None, None)
            x, x0 = guided_step(
                list(torch.split(out, prompts)), scales, steps[i : i + 1].repeat(prompts, 1), x, x0, *more
            )
        found.append(x.cpu())
        if progress is not None:
            progress(image + 1, images, {})
    return torch.stack(found, 1).flatten(0, 1)
