"""Who makes the images: the product's engine, and the loop that a user of diffusers writes around the same networks.

Each variant makes whole images: from seeds or a generator to grey levels on the host.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu_parts import models
from gpu_parts.models import Architecture
from gpu_parts.rig import Rig

Images = Callable[[int], Any]  # number of steps -> uint8 [B,H,W,3]

ENGINE_MODE = "max-autotune-no-cudagraphs"  # the engine captures graphs of its own


@dataclass(frozen=True)
class Variant:
    """`who` runs the loop; `mode` is torch.compile's, None for eager modules."""

    who: str  # "engine": ours; "diffusers": its own UNet; "module": our UNet in diffusers' loop
    indicator: bool
    mode: str | None

    @property
    def name(self) -> str:
        how = "compiled" if self.ours and self.mode is not None else self.mode or "eager"
        return f"{self.who} {'with' if self.indicator else 'without'} indicator, {how}"

    @property
    def ours(self) -> bool:
        return self.who == "engine"


# What is timed against each other, the most important ones first.
PLAIN = (
    Variant("diffusers", False, None),
    Variant("engine", False, None),
    Variant("diffusers", False, "default"),
    Variant("engine", False, ENGINE_MODE),
    Variant("diffusers", False, "max-autotune"),
)
INDICATED = (
    Variant("module", True, None),
    Variant("engine", True, None),
    Variant("engine", True, ENGINE_MODE),
    Variant("module", True, "default"),
    Variant("module", True, "max-autotune"),
)
# What a user has today: those with an indicator are compared with it, too.
BASELINES = tuple(variant for variant in PLAIN if not variant.ours and variant.mode is not None)


class Compiled:
    """`engine.torch.networks.Networks`: those that are called for each image are compiled here, by torch.compile.

    `ddm-rt build` compiles ahead of time, from a bundle. Here is no bundle, so the same modules go the other way.
    """

    sizes = None

    def __init__(self, eager: Any, rig: Rig) -> None:
        self._eager = eager
        self.device, self.precision, self.signatures = eager.device, eager.precision, eager.signatures
        self.cond = eager.cond
        self.versions = eager.versions | {"compiled": f"torch.compile, {ENGINE_MODE}"}
        self._modules = {name: rig.compiled(eager.parts[name].module, ENGINE_MODE) for name in ("denoiser", "decoder")}

    def __call__(self, name: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if name not in self._modules:
            made: tuple[Tensor, ...] = self._eager(name, inputs)
            return made
        return (self._modules[name](*inputs),)


class Product:
    """The engine and the sampling loop of ddm_rt, guided, with two branches."""

    def __init__(self, architecture: Architecture, model: Any, batch: int, rig: Rig, *, compiled: bool) -> None:
        from ddm_rt.engine.torch.eager import Eager
        from ddm_rt.engine.torch.engine import TorchEngine

        self.architecture, self.batch = architecture, batch
        indicator = model.conditioner is not None
        bundle = models.bundle(architecture, indicator=indicator)
        eager = Eager(bundle, model)
        self.engine = TorchEngine.of_networks(bundle, Compiled(eager, rig) if compiled else eager)
        rig.graphs(self.engine)
        given = models.contexts(architecture, 2 * batch)
        context = given.pop("context")
        # The first half of the rows is the null branch: another text, and the null code.
        own = np.arange(2 * batch) >= batch
        code = np.where(own & indicator, np.arange(2 * batch) % models.CODES, -1).astype(np.int64)
        self.cond = self.engine.conditioner(context, code, np.ones(2 * batch, np.float32), given)

    def __call__(self, num_steps: int) -> Any:
        return self.made(num_steps, range(self.batch))[1]

    def made(
        self,
        num_steps: int,
        numbers: Sequence[int],
        buckets: Sequence[int] | None = None,
        late: int = 0,
        *,
        decoded: bool = True,
    ) -> tuple[Tensor, Any]:
        """Latents and images (None unless `decoded`) with these numbers, each with its own seed and conditions. The
        last `late` of them join the others after their first step.
        """
        from ddm_rt.sample.loop.slots import Slots

        table = models.table(self.architecture, num_steps)
        slots = Slots(self.engine, self._gather, tuple(buckets or (2 * len(numbers),)))
        first = numbers[: len(numbers) - late]
        admitted = [*self._admitted(slots, table, first)]
        finished: list[int] = []
        pieces: list[Tensor] = []
        while len(slots):
            leaving, samples = slots.tick()
            finished += leaving
            pieces += [samples] if samples is not None else []
            if len(admitted) < len(numbers):
                admitted += self._admitted(slots, table, numbers[len(first) :])
        latents = pieces[0] if len(pieces) == 1 else self.engine.concat(pieces)
        latents = self.engine.take(latents, np.array([finished.index(number) for number in admitted]))
        return latents, self.engine.images(latents) if decoded else None

    def _admitted(self, slots: Any, table: Any, numbers: Sequence[int]) -> range:
        from ddm_rt.sample.loop.guidance import Branches
        from ddm_rt.sample.loop.noise import Stream, normal
        from ddm_rt.sample.loop.slots import Job

        seeds = np.array(numbers, np.uint64)
        noise = normal(seeds, 0, Stream.INITIAL, self.architecture.latent) * np.float32(table.init_scale)
        conditions = [(number % self.batch, self.batch + number % self.batch) for number in numbers]
        jobs = [
            Job(number, Branches(each, (models.GUIDANCE,))) for number, each in zip(numbers, conditions, strict=True)
        ]
        admitted: range = slots.admit(table, noise, jobs)
        return admitted

    def _gather(self, wanted: Sequence[Any]) -> Mapping[str, Any]:
        index = np.array(wanted, np.int64)
        return {name: self.engine.take(value, index) for name, value in self.cond.items()}


class Diffusers:
    """The loop of diffusers' pipelines, with its scheduler's arithmetic, around a UNet and the VAE in bf16."""

    def __init__(
        self, architecture: Architecture, unet: Any, model: Any, batch: int, rig: Rig, mode: str | None
    ) -> None:
        self.architecture, self.batch, self.rig = architecture, batch, rig
        self.scheduler = models.scheduler(architecture)
        self.unet = unet if mode is None else rig.compiled(unet, mode)
        decode = model.vae.decode
        self.decode = decode if mode is None else rig.compiled(decode, mode)
        self.scaling = float(model.vae.config.scaling_factor)
        given = {name: self._on_device(value) for name, value in models.contexts(architecture, 2 * batch).items()}
        self.context = given["context"]
        self.added: dict[str, Tensor] | None = None
        if architecture.pooled:
            self.added = {"text_embeds": given["text_embeds"], "time_ids": given["time_ids"]}
        self.extra: dict[str, Tensor] | None = None
        if model.conditioner is not None and unet is model.unet:
            own = torch.arange(2 * batch) >= batch
            shape = (2 * batch, models.INDICATOR, architecture.context)
            tokens = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            # The code's scale stays float32 in the engine as well: attention multiplies its sum with it.
            scale = own.float().to(rig.device)
            self.extra = {"indicator_tokens": self._on_device(tokens.numpy()), "indicator_scale": scale}

    def _on_device(self, value: Any) -> Tensor:
        return torch.from_numpy(value).to(self.rig.device, torch.bfloat16)

    @torch.no_grad()
    def __call__(self, num_steps: int) -> Any:
        device = self.rig.device
        self.scheduler.set_timesteps(num_steps, device=device)
        latents = torch.randn(self.batch, *self.architecture.latent, device=device, dtype=torch.bfloat16)
        latents = latents * self.scheduler.init_noise_sigma
        for t in self.scheduler.timesteps:
            x = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            null, conditioned = self._predicted(x, t).chunk(2)
            guided = null + models.GUIDANCE * (conditioned - null)
            latents = self.scheduler.step(guided, t, latents, return_dict=False)[0]
        self.rig.new_call()
        image = self.decode((latents / self.scaling).to(torch.bfloat16), return_dict=False)[0]
        pixels = (image / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
        return (pixels * 255).round().astype(np.uint8)

    def _predicted(self, x: Tensor, t: Tensor) -> Tensor:
        x = x.to(torch.bfloat16, memory_format=torch.channels_last)
        self.rig.new_call()
        predicted: Tensor = self.unet(
            x, t, self.context, cross_attention_kwargs=self.extra, added_cond_kwargs=self.added, return_dict=False
        )[0]
        return predicted


class Workshop:
    """Makes variants of one architecture at one batch size; models are built when the first variant needs them."""

    def __init__(self, architecture: Architecture, batch: int, rig: Rig) -> None:
        self.architecture, self.batch, self.rig = architecture, batch, rig
        self._models: dict[bool, Any] = {}
        self._unet: Any = None

    def model(self, *, indicator: bool) -> Any:
        if indicator not in self._models:
            made = models.build(self.architecture, self.rig, indicator=indicator)
            # One VAE for all. torch.compile gives the same code to both, and would capture its CUDA graph anew each
            # time that the weights lie elsewhere.
            made.vae = next((model.vae for model in self._models.values()), made.vae)
            self._models[indicator] = made
        return self._models[indicator]

    def images(self, variant: Variant) -> Images:
        model = self.model(indicator=variant.indicator)
        if variant.ours:
            return Product(self.architecture, model, self.batch, self.rig, compiled=variant.mode is not None)
        if variant.who == "diffusers" and self._unet is None:
            self._unet = models.plain_unet(model)
        unet = self._unet if variant.who == "diffusers" else model.unet
        return Diffusers(self.architecture, unet, model, self.batch, self.rig, variant.mode)

    def weight_bytes(self, variant: Variant) -> int:
        model = self.model(indicator=variant.indicator)
        parameters = [*model.unet.parameters(), *model.vae.decoder.parameters()]
        return sum(each.numel() * each.element_size() for each in parameters)
