"""What a training run is about: the subject that it trains, and the material that it trains it on."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ddm_rt.runtime import SharedOf


class Subject(Protocol):
    """A model in training, and which of its tensors move. `model(x_t, t, cond)` gives the prediction."""

    takes_text: bool
    prompts: tuple[str, ...]  # distinct ones of the images, after the null text

    @property
    def model(self) -> nn.Module: ...

    @property
    def trained(self) -> Mapping[str, nn.Parameter]:
        """What moves, by the names in weights.safetensors."""

    @property
    def fixed(self) -> Mapping[str, Tensor]:
        """What weights.safetensors holds besides."""

    def place(self, device: torch.device) -> None:
        """Move what a step needs to `device`."""

    def condition(self, index: Tensor, code: Tensor, no_text: Tensor) -> dict[str, Tensor]:
        """cond of the images `index` int64 [B] with code int64 [B] (-1: null), some without their text, bool [B].

        `code` is on the device that the result is for, the others on the CPU.
        """

    def condition_on(self, rows: Tensor, code: Tensor) -> dict[str, Tensor]:
        """cond of no image of the set: of the prompts `rows` int64 [B] with code int64 [B]."""

    def decode(self, x0: Tensor) -> Tensor:
        """Latents [B,C,H,W] -> images [B,c,H',W'], nominally in [-1,1]."""


class Student(Subject, Protocol):
    """A subject that starts as its teacher. The conditioner is the teacher's and stays: codes mean what they meant."""

    def teacher(self) -> AbstractContextManager[nn.Module]:
        """The teacher, called as `model` is and with the same `cond`."""

    def whole(self, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        """What weights.safetensors holds, of `Trainer.weights`."""


@dataclass(frozen=True)
class Classes:
    """The class of each image that the indicator head learns: a code or a label."""

    y: Tensor | None = None  # int64 [N]; None without an indicator
    number: int = 0
    top_of: tuple[int, ...] = ()  # top code of each code; empty without codes
    shares: tuple[float, ...] = ()  # of each code in its top code, for balanced minibatches; empty: by size
    crossing: SharedOf = ()  # `CodeTable.shared_of` where factors cross

    @property
    def shared_of(self) -> SharedOf:
        """Of each code, the rows of the vectors that it shares with other codes."""
        return self.crossing or tuple((top,) for top in self.top_of)


@dataclass(frozen=True)
class Material:
    """What a run has before its first step."""

    latents: Tensor  # float32 [N, C, H, W] of the images
    classes: Classes
    make_subject: Callable[[], Subject]  # with random weights from torch's generator, if it has any
    labels: tuple[str, ...] | None = None  # of the images, for the provenance alone
    encoder: str | None = None  # name of the file or folder that gave the features of codes, where they weren't learned
    clear: Callable[[], None] = lambda: None  # removes what only training needed
