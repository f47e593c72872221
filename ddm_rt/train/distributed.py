"""The device that a process trains on; and several processes that train one model (`accelerate launch`, torchrun), one
device each: what they do together.

They draw the same minibatch and each takes its part of it, so the number of processes is no part of what determines
the weights, but for rounding. The main process alone writes.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from ddm_rt.config import Precision
from ddm_rt.errors import DdmError

T = TypeVar("T")

CPU = torch.device("cpu")
HALF = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}

_PATIENCE = timedelta(hours=12)  # the others wait while the main process finds codes and encodes images
_AT_ONCE = 2**26  # numbers of gradients in one exchange


@dataclass(frozen=True)
class Processes:
    """This process among `count`."""

    device: torch.device
    count: int = 1
    index: int = 0

    @property
    def main(self) -> bool:
        return self.index == 0

    def part(self, images: int, together: int = 1) -> slice:
        """Which of a step's `images` are this process's, of which so many stay `together`. Raises DdmError where they
        can't be shared out equally.
        """
        if images % (self.count * together):
            whose = f"each of {self.count} processes" if self.count > 1 else "a process"
            raise DdmError(
                f"train.batch_size x train.accumulate is {images}; expected a multiple of {self.count * together}: "
                f"{whose} has whole {'pairs' if together == 2 else 'images'}"
            )
        each = images // self.count
        return slice(self.index * each, (self.index + 1) * each)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the mean over the processes of each tensor, in place."""
        if self.count == 1:
            return
        from accelerate.utils import reduce

        for some in _portions(tensors):
            mean = reduce(torch.cat([tensor.flatten().float() for tensor in some]), "mean")
            for tensor, values in zip(some, mean.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(values.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process; every process waits for the others here."""
        if self.count == 1:
            return flag
        from accelerate.utils import reduce

        return bool(reduce(torch.tensor(float(flag), device=self.device), "max") > 0)

    def main_first(self, do: Callable[[], T]) -> T:
        """`do` in the main process, and when that is done in the others, which find what it has written.

        Raises DdmError in the others where it failed in the main process.
        """
        if self.count == 1:
            return do()
        if not self.main:
            if self.any(False):
                raise DdmError("the main process has stopped; it says why")
            return do()
        try:
            result = do()
        except BaseException:
            self.any(True)
            raise
        self.any(False)
        return result


ALONE = Processes(CPU)


def connect() -> Processes:
    """This process and those that were launched with it; alone where nothing launched it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(chosen_device())
    from accelerate import PartialState

    state = PartialState(cpu=chosen_device() == CPU, timeout=_PATIENCE)
    return Processes(state.device, state.num_processes, state.process_index)


def chosen_device() -> torch.device:
    """The first CUDA device where torch finds one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else CPU


def in_channels_last(device: torch.device, precision: Precision) -> bool:
    """Whether convolutions get channels-last tensors there: what a GPU's kernels of half precision want."""
    return device.type == "cuda" and precision in HALF


def device_name(device: torch.device) -> str:
    """For provenance: "cpu", or the card's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _portions(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    portions: list[list[Tensor]] = [[]]
    room = _AT_ONCE
    for tensor in tensors:
        if portions[-1] and tensor.numel() > room:
            portions.append([])
            room = _AT_ONCE
        portions[-1].append(tensor)
        room -= tensor.numel()
    return portions
