"""A checkpoint as the subject of training: factors beside its layers, or its whole UNet, and the indicator's own."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ddm_rt.config import Family, RunConfig
from ddm_rt.model.latent import LatentDDM
from ddm_rt.model.unet import POOLED, SIZES
from ddm_rt.train import lora
from ddm_rt.train.device import HALF
from ddm_rt.train.text import NULL_TEXT

Texts = Callable[[Tensor], dict[str, Tensor]]  # rows int64 [B] -> context [B,T,D]; SDXL: and text_embeds [B,P]


class LatentSubject:
    """Trains what `lora` says of a `LatentDDM` that holds its base checkpoint and no indicator yet.

    The code's values start from zero and so do the factors: training begins at the base checkpoint itself.
    """

    takes_text = True

    def __init__(
        self,
        config: RunConfig,
        model: LatentDDM,
        texts: Texts,
        text_of: Tensor,  # int64 [N], each image's row for `texts`; 0 is the null text
        frames: Tensor,  # int64 [N, 6], SDXL's time_ids
        top_of: tuple[int, ...],
    ) -> None:
        self.model, self._texts, self._text_of, self._frames = model, texts, text_of, frames
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
            if top_of:
                model.add_indicator(config.model, top_of)
            if config.lora.rank:
                lora.inject(model, config.lora)
        for name, parameter in model.named_parameters():
            if name.endswith(".processor.to_v_ind.weight"):
                nn.init.zeros_(parameter)
        if config.train.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
            for encoder in model.text_encoders if self._text_encoder else ():
                encoder.gradient_checkpointing_enable({"use_reentrant": False})

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
        return {} if indicator is None else {"conditioner.top_of": indicator.top_of}

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

    def condition(self, index: Tensor, code: Tensor, no_text: Tensor) -> dict[str, Tensor]:
        rows = torch.where(no_text, NULL_TEXT, self._text_of[index])
        return self._condition(rows, code, self._frames[index])

    def _condition(self, rows: Tensor, code: Tensor, frames: Tensor) -> dict[str, Tensor]:
        text = {name: tensor.to(code.device) for name, tensor in self._texts(rows).items()}
        added: dict[str, Tensor] | None = None
        if self.model.family is Family.SDXL:
            added = {POOLED: text[POOLED], SIZES: frames.float().to(code.device)}
        return self.model.condition(text["context"], code, torch.ones(len(code), device=code.device), added)


def encoded_live(model: LatentDDM, ids: tuple[Tensor, ...], null_is_zero: bool) -> Texts:
    """Texts from the encoders as they are at the time: for those that are trained."""

    def texts(rows: Tensor) -> dict[str, Tensor]:
        device = next(model.text_encoders.parameters()).device
        found = model.encode_text(*(tensor[rows].to(device) for tensor in ids))
        if null_is_zero:
            kept = (rows != NULL_TEXT).to(device)
            found = {name: tensor * kept.view(-1, *[1] * (tensor.ndim - 1)) for name, tensor in found.items()}
        return found

    return texts
