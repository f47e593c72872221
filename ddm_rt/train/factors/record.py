"""factors.json: the candidates that were found, and which of them a person named and accepted."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.metrics import normalized_mutual_info_score

from ddm_rt.config import DataConfig, Frozen, Sha256, parse, parse_json
from ddm_rt.errors import DdmError
from ddm_rt.files import read
from ddm_rt.train.factors.candidates import Candidate
from ddm_rt.train.factors.raking import effective, raked

FACTORS = "factors.json"
TYPICAL = 10  # images of each side that are recorded as examples, drawn at random
# A name as it can stand in a target; `runtime.check_factors` has the last word.
Name = Annotated[str, Field(pattern=r"^[^\s:=,]([^:=,]{0,62}[^\s:=,])?$")]
Cells = Literal["auto", "product", "margins"]
Value = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class CandidateFactor(Frozen):
    """One candidate, and what a person said of it."""

    number: int  # from 1, as `--accept` calls it
    view: str  # the features that it was found in
    rule: str
    agreement: float  # of the other views, an adjusted Rand index
    known: float  # mutual information with the other views in nats; candidates are ranked by it
    stability: float | None  # of a branch over bootstrap samples, an adjusted Rand index
    sizes: tuple[int, ...]  # images of each side, the largest first
    examples: tuple[tuple[int, ...], ...]  # of each side, drawn at random: numbers of images
    overlap: dict[str, float]  # with each other candidate, by its number: normalised mutual information
    effective_images: float  # behind samples in which its sides are even
    moves: dict[str, tuple[float, float]]  # largest share of each other candidate, before and after evening this out
    name: Name | None = None
    values: tuple[Name, ...] = ()  # names of the sides, in the order of `sizes`
    label: tuple[Value, ...]  # the side of each image


class FactorsFile(Frozen):
    """The whole file. `cells` says how the accepted factors are balanced together; `crossing.cross` has the words."""

    schema_version: Literal[1] = 1
    data: DataConfig
    names_sha256: Sha256  # of the names of the images that it was made of, so that training takes the same
    seed: int
    accepted: tuple[int, ...] = ()  # numbers of candidates; the first gives the top codes
    cells: Cells = "auto"
    factors: tuple[CandidateFactor, ...]

    @property
    def chosen(self) -> tuple[CandidateFactor, ...]:
        """The accepted candidates, in their order."""
        return tuple(self.factors[number - 1] for number in self.accepted)


def described(candidates: Sequence[Candidate], seed: int) -> tuple[CandidateFactor, ...]:
    """The candidates with what a person needs to choose, unnamed."""
    found = []
    for i, candidate in enumerate(candidates):
        weights = raked([candidate.label], cap=np.inf)  # even sides, whatever that costs
        others = [(str(j + 1), other.label) for j, other in enumerate(candidates) if j != i]
        found.append(
            CandidateFactor(
                number=i + 1,
                view=candidate.view,
                rule=candidate.rule,
                agreement=candidate.agreement,
                known=candidate.known,
                stability=candidate.stability,
                sizes=candidate.sizes,
                examples=_examples(candidate.label, np.random.default_rng([seed, i])),
                overlap={name: float(normalized_mutual_info_score(candidate.label, label)) for name, label in others},
                effective_images=effective(weights),
                moves={
                    name: (_largest(label, np.ones(len(label))), _largest(label, weights)) for name, label in others
                },
                label=tuple(candidate.label.tolist()),
            )
        )
    return tuple(found)


def is_factors(content: bytes) -> bool:
    """Whether a file of codes is one of factors."""
    try:
        tree = json.loads(content)
    except ValueError:
        return False
    return isinstance(tree, dict) and "factors" in tree


def read_factors(path: Path) -> FactorsFile:
    """The file at `path`. Raises DdmError naming it and what is wrong."""
    found = parse_json(FactorsFile, read(path, "expected factors.json of `ddm-rt discover`"), path)
    check(found, path)
    return found


def check(found: FactorsFile, path: Path | str) -> None:
    """Raises DdmError naming `path` and the field where the file contradicts itself."""
    if [factor.number for factor in found.factors] != list(range(1, len(found.factors) + 1)):
        raise DdmError(f"{path}: field factors: expected the numbers 1 to {len(found.factors)} in order")
    if not found.factors:
        raise DdmError(f"{path}: field factors is empty; expected one or more")
    for factor in found.factors:
        where, sides = f"{path}: factor {factor.number}", len(factor.sizes)
        if (
            max(factor.label, default=sides) >= sides
            or np.bincount(factor.label, minlength=sides).tolist() != list(factor.sizes)
            or not all(factor.sizes)
        ):
            raise DdmError(f"{where}: field label: its sides have other sizes than field sizes says")
        if len(factor.label) != len(found.factors[0].label):
            raise DdmError(f"{where}: field label: {len(factor.label)} images; factor 1 has another number")
    for number in found.accepted:
        if not 1 <= number <= len(found.factors) or found.accepted.count(number) > 1:
            raise DdmError(
                f"{path}: field accepted: {number}; expected different numbers from 1 to {len(found.factors)}"
            )
        factor = found.factors[number - 1]
        if factor.name is None or not len(factor.values) == len(set(factor.values)) == len(factor.sizes):
            raise DdmError(f"{path}: factor {number} is accepted; it needs a name, and a name for each of its sides")
    if len({factor.name for factor in found.chosen} - {"code"}) != len(found.accepted):
        raise DdmError(f"{path}: the accepted factors need different names, none of them code")


def names_sha256(names: Sequence[str]) -> str:
    """The sha256 of the images' names, in their order."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def accept(
    found: FactorsFile, numbers: Sequence[int], names: Mapping[int, tuple[str, tuple[str, ...]]], cells: Cells = "auto"
) -> FactorsFile:
    """`found` with these candidates accepted, in the order of `numbers`, and no others.

    `names` has the name of a candidate and of its sides, the largest first. A candidate without one keeps the name that
    it has, or is called factor1, or what its number is, with the sides a, b and so on. Raises DdmError for an unknown
    number and for names that a target can't hold; `read_factors` checks the rest.
    """
    for number in (*numbers, *names):
        if not 1 <= number <= len(found.factors):
            raise DdmError(f"--accept: there is no candidate {number}; expected numbers from 1 to {len(found.factors)}")
    if unused := sorted(set(names) - set(numbers)):
        raise DdmError(f"--name: candidate {unused[0]} has a name, but --accept doesn't name it")
    factors = []
    for factor in found.factors:
        default = factor.name or f"factor{factor.number}", factor.values or tuple("abcdefghij"[: len(factor.sizes)])
        name, values = names.get(factor.number, default) if factor.number in numbers else (None, ())
        factors.append(factor.model_dump() | {"name": name, "values": values})
    tree = found.model_dump() | {"accepted": tuple(numbers), "cells": cells, "factors": factors}
    return parse(FactorsFile, tree, "--name")


def _examples(label: NDArray[np.int64], rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    sides = (np.flatnonzero(label == side) for side in range(int(label.max()) + 1))
    return tuple(tuple(int(i) for i in np.sort(rng.permutation(side)[:TYPICAL])) for side in sides)


def _largest(label: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    sums = np.bincount(label, weights=weights)
    return float(sums.max() / sums.sum())
