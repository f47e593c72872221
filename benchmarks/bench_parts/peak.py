"""How fast this machine is at best, and how much work a denoiser call is: together, the share of the peak."""

import statistics
import time
from functools import cache

import torch
from subjects import Subject
from torch.utils.flop_counter import FlopCounterMode

from bench_parts.feeds import feeds
from ddm_rt.bundle import Bundle
from ddm_rt.model.assemble import build

_SIDE, _CALLS = 2048, 7
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@cache
def peak_gflop_per_s(precision: str, threads: int) -> float | None:
    """Of torch's product of two 2048x2048 matrices; None for a precision that torch multiplies no matrices in."""
    if precision not in _DTYPES:
        return None
    torch.set_num_threads(threads)
    a, b = (torch.randn(_SIDE, _SIDE).to(_DTYPES[precision]) for _ in range(2))
    taken = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        torch.mm(a, b)
        taken.append(time.perf_counter() - start)
    return 2 * _SIDE**3 / statistics.median(taken[1:]) / 1e9


def gflop(subject: Subject, batch: int, side: int | None) -> float:
    """Of matrix products and convolutions in one denoiser call, two for a multiplication and its addition.

    Counted on shapes alone. The indicator's own attention, an op that torch doesn't know, is left out: under a
    hundredth.
    """
    bundle = Bundle.load(subject.bundle, verify=False)
    with torch.device("meta"):
        model = build(bundle.model, bundle.config.latent_shape, bundle.codes.shared_of).eval()
    given = {name: torch.from_numpy(value).to("meta") for name, value in feeds(subject, batch, side).items()}
    x_t, t = given.pop("x_t"), given.pop("t")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x_t, t, given)
    return float(counter.get_total_flops()) / 1e9
