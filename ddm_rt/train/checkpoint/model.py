"""A checkpoint as the subject of training: factors beside its layers, or its whole UNet, and the indicator's own."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddm_rt.config import Family, RunConfig
from ddm_rt.model.indicator import Conditioner
from ddm_rt.model.latent import LatentDDM
from ddm_rt.model.unet import POOLED, SIZES, keep_channels_last
from ddm_rt.runtime import SharedOf
from ddm_rt.train.checkpoint import lora
from ddm_rt.train.distributed import CPU, HALF, in_channels_last

NULL_TEXT = 0  # the row of the null text, before those of the prompts

Texts = Callable[[Tensor], dict[str, Tensor]]  # rows int64 [B] -> context [B,T,D]; SDXL: and text_embeds [B,P]


class Captions(NamedTuple):
    """What the N images are conditioned with besides their codes."""

    prompts: tuple[str, ...]  # distinct ones, the null text first
    row_of: Tensor  # int64 [N], of each image's prompt
    texts: Texts  # of rows of prompts
    frames: Tensor  # int64 [N, 6], SDXL's time_ids


class LatentSubject:
    """Trains what `lora` says of a `LatentDDM` that holds its base checkpoint and no indicator yet.

    The code's values start from zero and so do the factors: training begins at the base checkpoint itself.
    """

    takes_text = True

    def __init__(self, config: RunConfig, model: LatentDDM, captions: Captions, shared_of: SharedOf) -> None:
        self.model, self.prompts, self._captions = model, captions.prompts, captions
        self._side = config.data.image_size
        self._precision = config.train.precision
        self._half = HALF.get(config.train.precision) if config.lora.rank else None
        self._text_encoder = config.lora.text_encoder
        model.requires_grad_(False)
        if not config.lora.rank:
            for parameter in model.unet.parameters():
                # Out of the checkpoint's files, which they may be mapped from.
                parameter.data = parameter.data.clone()
                parameter.requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            self._adapt(config, shared_of)
        if config.train.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        model.eval()  # dropout would draw from a generator that nobody resumes

    def _adapt(self, config: RunConfig, shared_of: SharedOf) -> None:
        """Put in what is trained beside the checkpoint's own."""
        if config.lora.rank:
            lora.inject(self.model, config.lora)
        if shared_of:
            self.model.add_indicator(config.model, shared_of)
        for name, parameter in self.model.named_parameters():
            if name.endswith(".processor.to_v_ind.weight"):
                nn.init.zeros_(parameter)

    @property
    def trained(self) -> Mapping[str, nn.Parameter]:
        whole = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and ".lora_" not in name
        }
        return whole | dict(lora.factors(self.model))

    @property
    def fixed(self) -> Mapping[str, Tensor]:
        indicator = self.model.conditioner
        return {"conditioner.top_of": indicator.top_of} if isinstance(indicator, Conditioner) else {}

    def place(self, device: torch.device) -> None:
        """UNet and indicator, and the text encoders where they are trained. What stays fixed is held in half precision
        where the run computes in it.
        """
        modules = [self.model.unet, *(self.model.text_encoders if self._text_encoder else ())]
        if self._half is not None:
            for parameter in (p for module in modules for p in module.parameters() if not p.requires_grad):
                parameter.data = parameter.data.to(self._half)
        for module in (*modules, self.model.conditioner):
            if module is not None:
                module.to(device)
        if in_channels_last(device, self._precision):
            keep_channels_last(self.model.unet)

    def condition(self, index: Tensor, code: Tensor, no_text: Tensor) -> dict[str, Tensor]:
        rows = torch.where(no_text, NULL_TEXT, self._captions.row_of[index])
        return self._condition(rows, code, self._captions.frames[index])

    def condition_on(self, rows: Tensor, code: Tensor) -> dict[str, Tensor]:
        frame = torch.tensor([self._side, self._side, 0, 0, self._side, self._side])
        return self._condition(rows, code, frame.expand(len(rows), -1))

    def decode(self, x0: Tensor) -> Tensor:
        """Its decoder is where `x0` is only meanwhile: between sheets a step may need the room."""
        self.model.vae.to(x0.device)
        image = self.model.decode(x0)
        self.model.vae.to(CPU)
        return image

    def _condition(self, rows: Tensor, code: Tensor, frames: Tensor) -> dict[str, Tensor]:
        text = {name: tensor.to(code.device) for name, tensor in self._captions.texts(rows).items()}
        added: dict[str, Tensor] | None = None
        if self.model.family is Family.SDXL:
            added = {POOLED: text[POOLED], SIZES: frames.float().to(code.device)}
        return self.model.condition(text["context"], code, torch.ones(len(code), device=code.device), added)


def trained_texts(model: LatentDDM, ids: Sequence[Tensor], null_is_zero: bool) -> Texts:
    """Texts of token ids [P,T] from the encoders as they are then. With `null_is_zero` the null text is zeros."""

    def texts(index: Tensor) -> dict[str, Tensor]:
        device = next(model.text_encoders.parameters()).device
        found = model.encode_text(*(tensor[index].to(device) for tensor in ids))
        if null_is_zero:
            kept = (index != NULL_TEXT).to(device)
            found = {name: tensor * kept.view(-1, *[1] * (tensor.ndim - 1)) for name, tensor in found.items()}
        return found

    return texts
