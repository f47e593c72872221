"""The student of a checkpoint: low-rank factors of its own beside the merged teacher, which it is without them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from ddm_rt.config import LoraConfig, RunConfig
from ddm_rt.model.latent import LatentDDM
from ddm_rt.runtime import SharedOf
from ddm_rt.train.checkpoint import lora
from ddm_rt.train.checkpoint.model import Captions, LatentSubject

_LORA = "lora."


@dataclass(frozen=True)
class Teacher:
    """A run on a checkpoint: its networks with everything merged, and what its weights.safetensors holds."""

    model: LatentDDM
    weights: Mapping[str, Tensor]
    lora: LoraConfig


class LatentStudent(LatentSubject):
    """Trains the factors `distill.lora`, and nothing else."""

    def __init__(
        self, teacher: Teacher, config: RunConfig, model: LatentDDM, captions: Captions, shared_of: SharedOf
    ) -> None:
        """`model` is the teacher's."""
        if config.distill is None or config.distill.lora is None:
            raise ValueError("the configuration is not that of a checkpoint's student")
        self._from, self._own = teacher, config.distill.lora
        own = config.model_copy(update={"lora": self._own})
        super().__init__(own, model, captions, shared_of)

    def _adapt(self, config: RunConfig, shared_of: SharedOf) -> None:
        lora.inject(self.model, config.lora)

    @contextmanager
    def teacher(self) -> Iterator[nn.Module]:
        layers = [module for module in self.model.modules() if isinstance(module, Linear)]
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield self.model
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def whole(self, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's tensors, and in each layer W + s·[B_t B_s]·[A_t; A_s]: its factors and ours side by side."""
        theirs, own = self._from.lora, self._own
        # A run has one scale for all its factors: the teacher's, where it has some.
        ratio = own.alpha / own.rank / (theirs.alpha / theirs.rank) if theirs.rank else 1.0
        found = dict(self._from.weights) | trained
        for name in sorted(name for name in found if name.startswith(_LORA)):
            side = 0 if name.endswith(".A") else 1  # of the rank
            parts = [self._from.weights.get(name), trained.get(name)]
            shape = list(found[name].shape)
            for i, rank in enumerate((theirs.rank, own.rank)):
                shape[side] = rank
                part = parts[i]
                parts[i] = torch.zeros(shape) if part is None else part * (ratio if i and side else 1.0)
            found[name] = torch.cat([part for part in parts if part is not None], side).contiguous()
        return found
