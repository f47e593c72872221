"""Codes that someone else made, from a JSON file."""

from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ddm_rt.config import Frozen, parse_json
from ddm_rt.data import ImageSet, Listing
from ddm_rt.errors import DdmError
from ddm_rt.runtime import Codes
from ddm_rt.train.codes.discover import describe

SUM_TOLERANCE = 1e-6
Number = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class GivenCodes(Frozen):
    """A codes file that someone else made; without `top_code` each code is a top code of its own."""

    code: tuple[Number, ...] = Field(min_length=1)  # of each image
    top_code: tuple[Number, ...] | None = None  # of each code
    share_in_top: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None  # of each code; None: by size


def read_codes(path: Path, images: ImageSet | Listing) -> tuple[Codes, NDArray[np.int64]]:
    """Codes that someone else made: JSON `{"code": [per image], "top_code": [per code], "share_in_top": [per code]}`.

    Raises DdmError when the file doesn't give one code for each image and one top code for each code, or the shares of
    a top code's codes don't sum to 1 (within 1e-6).
    """
    where = f"codes.source {path}"
    try:
        given = parse_json(GivenCodes, path.read_bytes(), where)
    except OSError as error:
        raise DdmError(f"{where}: cannot be read ({error.strerror}); expected a JSON file") from error
    if len(given.code) != len(images):
        raise DdmError(f"{where}: field code has {len(given.code)} entries for {len(images)} images")
    count = len(set(given.code))
    if max(given.code) >= count:
        raise DdmError(f"{where}: field code must use every number from 0 on; there are {count} different ones")
    top_of = given.top_code if given.top_code is not None else tuple(range(count))
    if len(top_of) != count:
        raise DdmError(f"{where}: field top_code has {len(top_of)} entries for {count} codes")
    if max(top_of) >= len(set(top_of)):
        raise DdmError(f"{where}: field top_code must use every number from 0 on")
    assignment = np.array(given.code, np.int64)
    codes = describe(assignment, np.array(top_of, np.int64), origin=f"file:{path.name}")
    if given.share_in_top is not None:
        if len(given.share_in_top) != count:
            raise DdmError(f"{where}: field share_in_top has {len(given.share_in_top)} entries for {count} codes")
        totals = np.bincount(top_of, weights=given.share_in_top)
        if (off := np.abs(totals - 1) > SUM_TOLERANCE).any():
            top = int(off.argmax())
            raise DdmError(f"{where}: field share_in_top sums to {totals[top]:.9g} in top code {top}; expected 1")
        leaves = zip(codes.leaves, given.share_in_top, strict=True)
        codes = codes.model_copy(
            update={"leaves": tuple(leaf.model_copy(update={"share_in_top": share}) for leaf, share in leaves)}
        )
    return codes, assignment
