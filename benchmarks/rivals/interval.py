"""Guidance in an interval of noise levels (Kynkäänniemi et al., arXiv 2404.07724): one branch outside."""

from torch import Tensor

from rivals.sampling import Denoiser, Output, Step, branches

# Steps 17 to 22 of 32 in the authors' sampler (rho 7, from 80 to .002) as sigma/alpha.
HIGHEST, LOWEST = 1.61, 0.28


def inside(step: Step) -> bool:
    """Whether the step's noise level is one that is guided."""
    return LOWEST <= step.sigma / step.alpha <= HIGHEST


def make(context: Tensor, null: Tensor, scale: float) -> Output:
    """Guidance by `scale` inside, the condition [1,T,D] alone outside."""

    def output(denoiser: Denoiser, step: Step) -> Tensor:
        if not inside(step):
            return denoiser(step.x, step.t, context)
        apart, wanted = branches(denoiser, step, null, context)
        return apart + scale * (wanted - apart)

    return output
