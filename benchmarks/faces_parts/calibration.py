"""Code weights from audited images: a stand-in with the engine's formulas, used where a whole bundle isn't needed."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

PRIOR = 0.5  # Dirichlet, per group


def posterior(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean of p(group | code) [K,G] after the audited counts [K,G]."""
    smooth = counts + PRIOR
    return np.asarray(smooth / smooth.sum(axis=1, keepdims=True), np.float64)


def weights(p: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The code weights [K] of maximum entropy with Σ_k w_k p_k = target, for p [K,G].

    They are w_k ∝ exp(λ·p_k); λ minimises the dual log Σ_k exp(λ·(p_k − target)). Where no weights reach the target the
    dual has no minimum, and its small quadratic term stops on weights that come near it.
    """
    shifted = p - target

    def dual(multipliers: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        exponents = shifted @ multipliers
        top = exponents.max()
        mass = np.exp(exponents - top)
        value = top + np.log(mass.sum()) + 1e-6 * multipliers @ multipliers
        return float(value), shifted.T @ mass / mass.sum() + 2e-6 * multipliers

    solved = minimize(dual, np.zeros(p.shape[1]), jac=True, method="BFGS")
    mass = np.exp(shifted @ solved.x - (shifted @ solved.x).max())
    return np.asarray(mass / mass.sum(), np.float64)


def audit(
    codes: NDArray[np.int64], groups: NDArray[np.int64], n: int, num_groups: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Weights [K] from `n` audited images of a pool with `codes` [N] and `groups` [N], and the audited counts [K,G].

    The first half is stratified over the codes, the second follows the weights that the first gives.
    """
    num_codes = int(codes.max()) + 1
    pools = [list(rng.permutation(np.flatnonzero(codes == k))) for k in range(num_codes)]
    counts = np.zeros((num_codes, num_groups), np.int64)
    target = np.full(num_groups, 1 / num_groups)

    def look(number: int, shares: NDArray[np.float64]) -> None:
        for k, wanted in enumerate(_apportion(number, shares)):
            for image in pools[k][:wanted]:
                counts[k, groups[image]] += 1
            pools[k] = pools[k][wanted:]

    look(n - n // 2, np.full(num_codes, 1 / num_codes))
    look(n // 2, weights(posterior(counts), target))
    return weights(posterior(counts), target), counts


def _apportion(n: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers that sum to n, by largest remainder."""
    exact = shares / shares.sum() * n
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: n - whole.sum()]] += 1
    return whole
