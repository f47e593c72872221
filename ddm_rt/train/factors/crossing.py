"""Codes of crossing factors: each combination of values that occurs is a code, a cell of their product.

The default shares of cells are chosen so that every factor is even. Where all cells hold enough images, each cell gets
the same share ("product"). Otherwise the images are raked so that the margins are even and each cell keeps its odds in
the data, as far as it can ("margins"): a cell of few images would else be seen too often.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError
from ddm_rt.runtime import Codes, Factor, Leaf, check_factors
from ddm_rt.train.codes.discover import EXEMPLARS
from ddm_rt.train.factors.raking import CAP, effective, raked
from ddm_rt.train.factors.record import CandidateFactor, Cells

MOST_CELLS = 1024


def cross(factors: Sequence[CandidateFactor], cells: Cells, origin: str) -> tuple[Codes, NDArray[np.int64]]:
    """Codes of the cells of `factors`, and the code of each image, int64 [N].

    A cell's top code is its value of the first factor. "auto" takes the product where no image would count more than
    CAP average ones in it, else the margins. Raises DdmError where the product is asked for and has empty cells, or
    where the factors have more than MOST_CELLS cells.
    """
    labels = np.array([factor.label for factor in factors])  # [F, N]
    sizes = [len(factor.sizes) for factor in factors]
    present, cell = np.unique(labels, axis=1, return_inverse=True)  # [F, K], [N]
    order = _rotated(present, sizes)
    present, cell = present[:, order], np.argsort(order)[cell.reshape(-1)]
    whole, count = int(np.prod(sizes)), np.bincount(cell, minlength=present.shape[1])
    if present.shape[1] > MOST_CELLS:
        raise DdmError(f"{origin}: the factors have {present.shape[1]} cells; at most {MOST_CELLS} are possible")
    full = present.shape[1] == whole and len(cell) <= CAP * whole * count.min()
    if cells == "product" and present.shape[1] < whole:
        raise DdmError(
            f"{origin}: {whole - present.shape[1]} of {whole} combinations have no image, so the product can't be "
            "even; expected cells to be margins"
        )
    by_product = cells == "product" or (cells == "auto" and full)
    weights = (1 / count)[cell] if by_product else raked(list(labels))
    share = np.bincount(cell, weights=weights) / weights.sum()
    tops = present[0]
    in_top = share / np.bincount(tops, weights=share)[tops]
    codes = Codes(
        origin=origin,
        leaves=tuple(
            Leaf(code=k, top_code=int(tops[k]), size=int(count[k]), share_in_top=min(1.0, float(in_top[k])))
            for k in range(len(count))
        ),
        factors=tuple(
            Factor(name=str(factor.name), values=factor.values, value_of=tuple(values.tolist()))
            for factor, values in zip(factors, present, strict=True)
        ),
        exemplars=tuple(tuple(np.flatnonzero(cell == k)[:EXEMPLARS].tolist()) for k in range(len(count))),
        rule={
            "factors": [
                factor.model_dump(include={"name", "values", "view", "rule", "agreement", "stability", "sizes"})
                for factor in factors
            ],
            "cells": "product" if by_product else "margins",
            "effective_images": effective(weights),
        },
    )
    check_factors(codes, origin)
    return codes, cell.astype(np.int64)


def _rotated(present: NDArray[np.int64], sizes: Sequence[int]) -> NDArray[np.int64]:
    """An order of the cells [F, K]: by the first value, and then rotated by it.

    A quota breaks ties by the order of codes. With two values of the first factor and four of the second, the cells
    are drawn as 00, 12, 01, 13, 02, 10 and so on: a short request sees different values of both.
    """
    first, *rest = present
    turned = [(values - first * max(1, size // sizes[0])) % size for values, size in zip(rest, sizes[1:], strict=True)]
    return np.lexsort([*turned[::-1], first])
