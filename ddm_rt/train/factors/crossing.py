"""Codes of crossing factors: each combination of values that occurs is a code, a cell of their product.

The default shares of cells are chosen so that every factor is even. Where all cells hold enough images, each cell gets
the same share ("product"). Otherwise the cells are raked: the margins are even, and each cell keeps its odds in the
data ("margins"), since a cell of few images would else be seen too often.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError
from ddm_rt.raking import Margin, rake
from ddm_rt.runtime import Codes, Factor, Leaf, check_factors
from ddm_rt.train.codes.discover import EXEMPLARS
from ddm_rt.train.factors.raking import CAP, effective
from ddm_rt.train.factors.record import CandidateFactor, Cells

MOST_CELLS = 1024


def cross(factors: Sequence[CandidateFactor], cells: Cells, origin: str) -> tuple[Codes, NDArray[np.int64]]:
    """Codes of the cells of `factors`, and the code of each image, int64 [N].

    A cell's top code is its value of the first factor. "auto" takes the product where no image would count more than
    CAP average ones in it, else the margins. Raises DdmError where the product is asked for and has empty cells, where
    too few cells have images for even margins, or where the factors have more than MOST_CELLS cells.
    """
    labels = np.array([factor.label for factor in factors])  # [F, N]
    sizes = [len(factor.sizes) for factor in factors]
    whole = math.prod(sizes)
    if whole > MOST_CELLS:
        raise DdmError(f"{origin}: the factors have {whole} cells; at most {MOST_CELLS} are possible")
    present, cell = np.unique(labels, axis=1, return_inverse=True)  # [F, K], [N]
    order = _drawn_order(present, sizes)
    present, cell = present[:, order], np.argsort(order)[cell.reshape(-1)]
    count = np.bincount(cell, minlength=present.shape[1])
    full = present.shape[1] == whole and len(cell) <= CAP * whole * count.min()
    if cells == "product" and present.shape[1] < whole:
        raise DdmError(
            f"{origin}: {whole - present.shape[1]} of {whole} combinations have no image, so the product can't be "
            "even; expected --cells margins"
        )
    by_product = cells == "product" or (cells == "auto" and full)
    share = np.full(len(count), 1 / len(count)) if by_product else _even_margins(count, present, factors, origin)
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
            "effective_images": effective((share / count)[cell]),
        },
    )
    check_factors(codes, origin)
    return codes, cell.astype(np.int64)


def _even_margins(
    count: NDArray[np.int64], present: NDArray[np.int64], factors: Sequence[CandidateFactor], origin: str
) -> NDArray[np.float64]:
    """The share of each cell, raked from its images [K]. Raises DdmError where the factors can't be even together."""
    margins = [
        Margin(values.tolist(), [1 / len(factor.sizes)] * len(factor.sizes))
        for values, factor in zip(present, factors, strict=True)
    ]
    share, reached = rake((count / count.sum()).tolist(), margins)
    if not reached:
        raise DdmError(
            f"{origin}: {' and '.join(str(factor.name) for factor in factors)} can't be even together, since too few "
            "of their combinations have images; accept fewer factors"
        )
    return np.array(share)


def _drawn_order(present: NDArray[np.int64], sizes: Sequence[int]) -> NDArray[np.int64]:
    """An order of the cells [F, K]: by the first value, and then so that short requests see many values of each factor.

    A quota takes the values of the first factor in turn, and breaks ties by the order of codes. So the g-th draw should
    have another value of every factor than the one before: g mod its size, shifted by one whenever that would repeat a
    cell. Two by four cells are drawn as 00, 11, 02, 13, 01, 12, 03, 10.
    """
    turn = np.arange(math.prod(sizes))
    cells, cycle = np.zeros((len(sizes), len(turn)), np.int64), 1
    for factor, size in enumerate(sizes):
        within = turn % (cycle * size)  # where in a round over the cells of the factors so far
        cells[factor] = (within + within // math.lcm(cycle, size)) % size
        cycle *= size
    place = np.empty(len(turn), np.int64)
    place[np.ravel_multi_index(tuple(cells), tuple(sizes))] = turn
    return np.lexsort([place[np.ravel_multi_index(tuple(present), tuple(sizes))], present[0]])
