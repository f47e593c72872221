"""The DDM authors' way: diffusers' modules in eager torch, adapter merged, guidance as one batch; and torch.compile."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from subjects import Subject
from torch import Tensor, nn

from ddm_rt.bundle import Bundle
from ddm_rt.config import NULL_CODE
from ddm_rt.engine.torch.weights import load
from ddm_rt.errors import DdmError
from ddm_rt.model.unet import DDM
from ddm_rt.sample.balance.assignment import by_top_codes, code_tree
from peers import Call

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Eager:
    """A diffusers user's module. A checkpoint's UNet is plain diffusers' (a published adapter is merged into it)."""

    layout = torch.preserve_format
    plain = True  # a checkpoint's UNet

    def __init__(
        self,
        subject: Subject,
        threads: int,
        precision: str = "fp32",
        guided: bool = True,
        num_steps: int | None = None,
    ) -> None:
        """`num_steps` None takes the bundle's."""
        torch.set_num_threads(threads)
        self.dtype, self._guided, self._num_steps = DTYPES[precision], guided, num_steps
        self.versions = {name: version(name) for name in ("torch", "diffusers")}
        self._bundle = Bundle.load(subject.bundle, verify=False)
        if subject.checkpoint is None or not self.plain:
            self._model: nn.Module = load(self._bundle)
        else:
            self._model = _checkpoint_unet(Path(subject.checkpoint))
        self._plain = subject.checkpoint is not None and self.plain
        self._model.to(self.dtype).eval().requires_grad_(False)
        self._network = self.prepare(self._model)

    def prepare(self, model: nn.Module) -> Any:
        return model

    def step(self, feeds: dict[str, NDArray[Any]]) -> Call:
        given = {name: torch.from_numpy(value) for name, value in feeds.items()}
        x_t, t = given.pop("x_t").to(self.dtype, memory_format=self.layout), given.pop("t")
        cond = {name: value.to(self.dtype) for name, value in given.items()}

        @torch.inference_mode()
        def run() -> NDArray[np.float32]:
            if self._plain:
                out: Tensor = self._network(x_t, t, cond["text_tokens"], return_dict=False)[0]
            else:
                out = self._network(x_t, t, cond)
            return out.float().numpy()

        return run

    def images(self, n: int) -> Call:
        """Codes by the quota; both branches of guidance in one batch, as diffusers has it, unless not `guided`."""
        bundle, model = self._bundle, self._model
        if not isinstance(model, DDM):
            raise DdmError(f"{bundle.path}: whole images of a checkpoint are not timed here")
        config, scheduler = bundle.config, ddim(bundle)
        guidance = config.sampling.indicator_guidance_scale or 1.0
        codes = _codes(bundle, n)
        code = torch.tensor([NULL_CODE] * n + codes if self._guided else codes)
        context = torch.zeros(len(code), 1, model.context_dim, dtype=self.dtype)
        scale = torch.ones(len(code), dtype=self.dtype)

        generator = torch.Generator().manual_seed(0)

        @torch.inference_mode()
        def run() -> NDArray[np.float32]:
            scheduler.set_timesteps(self._num_steps or config.sampling.num_steps)
            x = torch.randn(n, *config.latent_shape, generator=generator) * scheduler.init_noise_sigma
            cond = model.condition(context, code, scale)
            for t in scheduler.timesteps:
                rows = torch.cat([x, x]) if self._guided else x
                out = self._network(rows.to(self.dtype), t.float().expand(len(code)), cond).float()
                if self._guided:
                    null, coded = out.chunk(2)
                    out = null + guidance * (coded - null)
                x = scheduler.step(out, t, x).prev_sample
            return model.decode(x).numpy()

        return run


class Compiled(Eager):
    """The same through torch.compile, which compiles on the first call of each shape."""

    def prepare(self, model: nn.Module) -> Any:
        return torch.compile(model)


class Tuned(Eager):
    """What diffusers' own guide to speed does: channels-last, one graph per shape, no break in it."""

    layout = torch.channels_last

    def prepare(self, model: nn.Module) -> Any:
        return torch.compile(model.to(memory_format=torch.channels_last), fullgraph=True, dynamic=False)  # type: ignore[call-overload]


class TunedWithIndicator(Tuned):
    """The same, where the model is a checkpoint's, with the indicator in its UNet."""

    plain = False


def _codes(bundle: Bundle, n: int) -> list[int]:
    if not bundle.codes.num_codes:
        return [NULL_CODE] * n
    return [code for code, _ in by_top_codes(code_tree(bundle), "uniform").quota().assign(n)]


def ddim(bundle: Bundle) -> DDIMScheduler:
    """diffusers' sampler object on the bundle's schedule."""
    schedule = bundle.schedule.config
    return DDIMScheduler(
        num_train_timesteps=schedule.num_train_timesteps,
        beta_schedule=schedule.beta_schedule,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        prediction_type=schedule.prediction_type.value,
        clip_sample=bundle.config.sampling.clip is not None,
        set_alpha_to_one=True,
    )


def pixel_model(bundle: Bundle) -> DDM:
    """The bundle's torch module, with the weights of its graphs."""
    model = load(bundle)
    assert isinstance(model, DDM)
    return model


def _checkpoint_unet(folder: Path) -> nn.Module:
    from diffusers import UNet2DConditionModel

    unet: nn.Module = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", local_files_only=True)
    return unet
