"""Code weights that reach given group shares while leaving the codes' own weights as they are as far as possible.

With base weights b over K codes and p_k = p(group | code k), the weights π that satisfy Σ_k π_k p_k = t and are closest
to b in relative entropy are π_k ∝ b_k·exp(λ·(p_k - t)) (Jaynes 1957; Kullback 1959, for an even b the maximum of
entropy). λ minimises the convex dual log Σ_k b_k exp(λ·(p_k - t)), whose gradient is Σ_k π_k p_k - t and whose Hessian
is the covariance of p under π: Newton's method needs a handful of steps.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS = 200
_LARGEST = 1e7  # |λ|: no finite λ gives a target on the hull's edge
_TOLERANCE = 1e-9  # of a share
_NEAR = 1e-6


class Tilt(NamedTuple):
    """`weights` [K] sum to 1. `shares` [F] is what they give; `reached` says whether that is the target."""

    weights: Floats
    shares: Floats
    reached: bool


def tilt(p: Floats, target: Floats, base: Floats, slack: float | Floats = 0.0) -> Tilt:
    """The weights above for p [K, F], target [F] and base [K] (positive where a code may be used).

    With `slack` > 0 the shares miss the target by slack·λ (the dual gets ½·slack·|λ|²): then there are weights for any
    target, the nearest ones where it lies outside what the codes can give. It may be one for each share [F]. Several
    attributes may stand side by side in F; that their columns are linearly dependent doesn't matter.
    """
    p, target = np.asarray(p, np.float64), np.asarray(target, np.float64)
    slack = np.broadcast_to(np.asarray(slack, np.float64), target.shape)
    live = np.asarray(base, np.float64) > 0
    moves, log_base = p[live] - target, np.log(np.asarray(base, np.float64)[live])
    direction = np.zeros(p.shape[1])

    def dual(at: Floats) -> tuple[float, Floats]:
        score = log_base + moves @ at
        top = float(score.max())
        mass = np.exp(score - top)
        total = float(mass.sum())
        return top + math.log(total) + float(at @ (slack * at)) / 2, mass / total

    value, weights = dual(direction)
    for _ in range(_STEPS):
        gradient = weights @ moves + slack * direction
        if np.abs(gradient).max() < _TOLERANCE / 10:
            break
        centred = moves - weights @ moves
        hessian = (centred * weights[:, None]).T @ centred + np.diag(slack)
        # Shares of one attribute sum to 1, so the Hessian is singular; the gradient lies in its range.
        step = -np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0]
        if not np.isfinite(step).all():
            break  # all weight on one code
        longest = max(100.0, float(np.abs(direction).max()))
        step *= min(1.0, longest / max(float(np.abs(step).max()), 1e-300))
        scale = 1.0
        while scale > 1e-10:
            new_value, new_weights = dual(direction + scale * step)
            # Near the end the fall of the dual drowns in rounding, and Newton's step is right as it is.
            near = np.abs(gradient).max() < _NEAR
            if near or new_value <= value + 1e-4 * scale * float(gradient @ step):
                break
            scale /= 2
        else:
            break
        direction, value, weights = direction + scale * step, new_value, new_weights
        if float(np.abs(direction).max()) > _LARGEST:
            break
    everywhere = np.zeros(len(p))
    everywhere[live] = weights
    shares = everywhere @ p
    return Tilt(everywhere, shares, bool(np.abs(shares - target).max() < _TOLERANCE))


def effective_number(weights: Floats, sizes: Floats | None = None) -> float:
    """Kish's effective number of codes, 1/Σπ²; with `sizes` [K], of training images that share each code's weight."""
    each = np.ones(len(weights)) if sizes is None else np.asarray(sizes, np.float64)
    used = weights > 0
    if not each[used].all():
        return 0.0  # a code without training images has nothing behind it
    return float(1 / np.sum(weights[used] ** 2 / each[used]))
