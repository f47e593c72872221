"""Random bundles' codes over crossing factors, and weights of them."""

import math
from collections.abc import Sequence

import numpy as np

from ddm_rt.errors import DdmError
from ddm_rt.raking import Margin, rake, shares
from ddm_rt.runtime import CodeTable, Factor, Leaf, check_factors
from ddm_rt.sample.balance.assignment import Weights, by_codes
from ddm_rt.sample.balance.factors import cell_weights, uniform_weights

_MOST_CELLS = 36
NAMES = ["α", "b b", "c;d", "e&f"]


def table(sizes: Sequence[int], cells: Sequence[tuple[int, ...]], weights: Sequence[float]) -> CodeTable:
    """Codes for these cells: their weights, raked to even shares of the first factor's values, and where no cell is
    missing of the others', too.
    """
    total = math.fsum(weights)
    even = [Margin([cell[i] for cell in cells], [1 / size] * size) for i, size in enumerate(sizes)]
    whole = len(cells) == math.prod(sizes)
    found, _ = rake([weight / total for weight in weights], even if whole else even[:1])
    leaves = tuple(
        Leaf(code=k, top_code=cell[0], size=10, share_in_top=min(1.0, share * sizes[0]))
        for k, (cell, share) in enumerate(zip(cells, found, strict=True))
    )
    factors = tuple(
        Factor(name=NAMES[i], values=tuple(f"v{k}" for k in range(size)), value_of=tuple(cell[i] for cell in cells))
        for i, size in enumerate(sizes)
    )
    codes = CodeTable(leaves=leaves, factors=factors)
    check_factors(codes, "table")
    return codes


def random_table(rng: np.random.Generator) -> CodeTable:
    """2 to 4 factors of 2 to 4 values; every value has a cell, and some cells are missing."""
    sizes = [int(size) for size in rng.integers(2, 5 if rng.random() < 0.5 else 3, rng.integers(2, 5))]
    while math.prod(sizes) > _MOST_CELLS:
        sizes.pop()
    every = list(np.ndindex(*sizes))
    some = [every[i] for i in rng.permutation(len(every))[: max(2, int(len(every) * rng.choice([0.4, 0.8, 1.0])))]]
    for i, size in enumerate(sizes):
        there = {cell[i] for cell in some}
        some += [next(cell for cell in every if cell[i] == v) for v in range(size) if v not in there]
    cells = list(dict.fromkeys(some))
    return table(sizes, cells, rng.choice([0.05, 0.3, 1.0, 2.0], len(cells)) + rng.random(len(cells)))


def random_weights(codes: CodeTable, rng: np.random.Generator) -> list[float]:
    """Those of "uniform", any, or those of a target over some of the factors."""
    if (kind := rng.random()) < 0.2:
        return uniform_weights(codes)
    raw = [float(weight) for weight in rng.random(codes.num_codes) + rng.choice([1e-3, 1.0], codes.num_codes)]
    own = [weight / math.fsum(raw) for weight in raw]
    if kind < 0.95:
        return own
    wanted = {
        factor.name: shares(factor.value_of, own, len(factor.values)) for factor in codes.factors if rng.random() < 0.7
    }
    try:
        return cell_weights(codes, wanted, "random")
    except DdmError:  # a factor that isn't named can't keep its shares
        return own


def weights_of(codes: CodeTable, code_weights: Sequence[float]) -> Weights:
    tree: list[dict[int, float]] = [{} for _ in range(codes.num_top_codes)]
    for leaf in codes.leaves:
        tree[leaf.top_code][leaf.code] = leaf.share_in_top
    return by_codes(tree, "target", code_weights, None)
