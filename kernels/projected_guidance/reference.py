"""Adaptive projected guidance, written over array methods: the same lines run on numpy arrays and torch tensors.

On numpy this is the oracle of every other implementation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddm_rt.kernels.guided_step.reference import MAX_BRANCHES

Array = Any  # numpy.ndarray or torch.Tensor

SMALLEST = 1e-300  # in place of ‖o‖² = 0; smaller than the square of any float32 number


def projected_guidance_reference(
    outputs: Sequence[Array],  # 2 or 3 branches, each [B, C, H, W]
    settings: Array,  # [B, branches + 1]: a scale for each difference, the largest norm r (above 0), and η
) -> Array:
    """The branches' outputs combined, float32 [B, C, H, W].

        Δ_i = o_{i+1} - o_i
        Δ_i ← Δ_i·min(1, r/‖Δ_i‖)
        Δ∥_i = (⟨Δ_i, o_{i+1}⟩/⟨o_{i+1}, o_{i+1}⟩)·o_{i+1},  Δ⊥_i = Δ_i - Δ∥_i
        out = o_0 + Σ_i scale_i·(Δ⊥_i + η·Δ∥_i)

    Norms and products are over C, H and W of one image. This is adaptive projected guidance (Sadat et al. 2024, arXiv
    2410.02416) as diffusers' guider has it, without momentum: on the model's output, and from the less conditioned
    branch. The paper projects the predicted x0, and starts from the conditioned branch with a scale that is less by
    one. With η = 1 and a norm that no difference reaches, it is the plain guidance of `guided_step`.

    Sums over an image are float64, in an order that the batch doesn't change (`_sum`). What is done with them is
    float32: out = o_0 + Σ_i (p_i·Δ_i + q_i·o_{i+1}) from left to right, with two numbers p and q per image and term.

    Raises ValueError naming the argument, its shape and the expected one.
    """
    check_arguments(outputs, settings)
    batch, terms = len(settings), len(outputs) - 1
    largest, eta = _double(settings[:, terms]), _double(settings[:, terms + 1])
    out = outputs[0]
    for i in range(terms):
        given, difference = outputs[i + 1], outputs[i + 1] - outputs[i]
        o, delta = _double(given.reshape(batch, -1)), _double(difference.reshape(batch, -1))
        norm, along = _sum(delta * delta) ** 0.5, _sum(delta * o) / _sum(o * o).clip(SMALLEST)
        p = _double(settings[:, i]) * (largest / norm.clip(largest))
        q = p * (eta - 1) * along
        out = out + (_single(p) * difference + _single(q) * given)
    return out


def check_arguments(outputs: Sequence[Array], settings: Array) -> None:
    """The checks of every implementation. Raises ValueError naming the argument, its shape and the expected one."""
    if not 2 <= len(outputs) <= MAX_BRANCHES:
        raise ValueError(f"outputs has {len(outputs)} branches; expected 2 to {MAX_BRANCHES}")
    shape = tuple(outputs[0].shape)
    expected = {f"outputs[{i}]": (out, shape) for i, out in enumerate(outputs)}
    expected["settings"] = settings, (shape[0], len(outputs) + 1)
    for name, (given, wanted) in expected.items():
        if tuple(given.shape) != wanted:
            raise ValueError(f"{name} has shape {tuple(given.shape)}; expected {wanted}")


def _sum(values: Array) -> Array:
    """Sums [B] of values [B, N], which it may overwrite. numpy adds pairwise, row by row. The order of torch's own sum
    follows from the batch: there the second half is added to the first until one is left, and the middle one of an odd
    number waits.
    """
    if isinstance(values, np.ndarray):
        return values.sum(1)
    while (count := values.shape[1]) > 1:
        half = (count + 1) // 2
        values[:, : count - half] += values[:, half:]
        values = values[:, :half]
    return values[:, 0]


def _double(values: Array) -> Array:
    return values.astype(np.float64) if isinstance(values, np.ndarray) else values.double()


def _single(values: Array) -> Array:
    """[B] as float32 [B, 1, 1, 1]."""
    single = values.astype(np.float32) if isinstance(values, np.ndarray) else values.float()
    return single.reshape(-1, 1, 1, 1)
