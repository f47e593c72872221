"""Audits drawn again and again from a pool: what calibrating with them gives, against what the codes really give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.config import SamplerName
from ddm_rt.errors import DdmError
from ddm_rt.sample.calibration import audit
from ddm_rt.sample.calibration.calibration import Calibration, Settings, solve
from ddm_rt.sample.calibration.groups import Attribute, parse_target
from ddm_rt.sample.calibration.tilt import effective_number
from ddm_rt.workflows.calibrate import first_share

SETTINGS = Settings(
    sampler=SamplerName.DDIM,
    num_steps=25,
    indicator_guidance_scale=1.5,
    indicator_scale=1.0,
    eta=0.0,
    clip=(-1.0, 1.0),
    height=32,
    width=32,
    precision="fp32",
)
SEED = 0
# name -> base weights, prior on each group (None: fitted to all codes); the first is what the product does.
ESTIMATORS: dict[str, tuple[str, float | None]] = {
    "tree, fitted prior": ("tree", None),
    "tree, prior ½": ("tree", 0.5),
    "even codes, fitted prior": ("even", None),
}


@dataclass(frozen=True)
class Codes:
    """What each code gives: `pool` [K, N] for audits and `truth` [K, N'] hold 0, 1 or -1 (neither group)."""

    pool: NDArray[np.int64]
    truth: NDArray[np.int64]
    others: Mapping[str, NDArray[np.float64]]  # attribute -> mean of each code [K]
    sizes: NDArray[np.float64]
    tree: NDArray[np.float64]
    groups: tuple[str, str]

    @classmethod
    def of(
        cls, records: Sequence[Mapping[str, Any]], sizes: Sequence[int], tree: Sequence[float], groups: tuple[str, str]
    ) -> "Codes":
        labels = np.array([[groups.index(label) if label in groups else -1 for label in r["labels"]] for r in records])
        half = labels.shape[1] // 2
        others = {name: np.array([np.nanmean(record[name]) for record in records]) for name in ("slant", "thickness")}
        return cls(labels[:, :half], labels[:, half:], others, np.array(sizes, float), np.array(tree), groups)

    def mixed(self) -> "Codes":
        """Code k with (k mod 4)/8 of its images taken from all codes alike."""
        rng = np.random.default_rng(SEED)
        num_codes = len(self.pool)
        foreign = np.arange(num_codes) % 4 / 8

        def mix(labels: NDArray[np.int64]) -> NDArray[np.int64]:
            taken = rng.random(labels.shape) < foreign[:, None]
            other = labels[rng.integers(num_codes, size=labels.shape), rng.integers(labels.shape[1], size=labels.shape)]
            return np.where(taken, other, labels)

        others = {name: (1 - foreign) * mean + foreign * mean.mean() for name, mean in self.others.items()}
        return replace(self, pool=mix(self.pool), truth=mix(self.truth), others=others)

    @property
    def p(self) -> NDArray[np.float64]:
        """Share of the first group among the images of a group, per code."""
        return (self.truth == 0).sum(1) / (self.truth >= 0).sum(1)

    def achieved(self, weights: NDArray[np.float64]) -> float:
        """Share of the first group among the images of a group that `weights` give."""
        of = [float(weights @ (self.truth == group).mean(1)) for group in (0, 1)]
        return of[0] / sum(of)

    def effects(self, weights: NDArray[np.float64]) -> dict[str, float]:
        return {name: float(weights @ mean) for name, mean in self.others.items()}

    def summary(self) -> dict[str, Any]:
        return {
            "p": np.round(self.p, 4).tolist(),
            "neither": round(float((self.truth < 0).mean()), 4),
            "training_images": self.sizes.astype(int).tolist(),
        }


def uncalibrated(codes: Codes, target: float) -> dict[str, Any]:
    """The tree's own weights, which know nothing of the target."""
    weights = codes.tree
    return {
        "n": 0,
        "error": abs(codes.achieved(weights) - target),
        "effective_codes": effective_number(weights),
        "effective_images": effective_number(weights, codes.sizes),
        **codes.effects(weights),
    }


def audits(codes: Codes, target: float, n: int, scheme: str, estimator: str, draws: int) -> dict[str, Any]:
    """Mean and 90th percentile of the error over `draws`, and how often the target was refused.

    A refused target gets the nearest weights here, so that its error counts as well.
    """
    base, prior = ESTIMATORS[estimator]
    start = codes.tree if base == "tree" else np.full(len(codes.tree), 1 / len(codes.tree))
    rng = np.random.default_rng([SEED, n, round(100 * target), scheme == "even"])
    found = [_once(codes, target, n, scheme, start, prior, rng) for _ in range(draws)]
    errors = np.array([codes.achieved(weights) - target for weights, _ in found])
    accepted = np.array([not refused for _, refused in found])
    effects = [codes.effects(weights) for weights, _ in found]
    return {
        "error": float(np.abs(errors).mean()),
        "error_p90": float(np.quantile(np.abs(errors), 0.9)),
        "bias": float(errors.mean()),
        "refused": float(1 - accepted.mean()),
        "error_accepted": float(np.abs(errors[accepted]).mean()) if accepted.any() else None,
        "effective_codes": float(np.mean([effective_number(weights) for weights, _ in found])),
        "effective_images": float(np.mean([effective_number(weights, codes.sizes) for weights, _ in found])),
        **{name: float(np.mean([effect[name] for effect in effects])) for name in codes.others},
    }


def _once(
    codes: Codes,
    target: float,
    n: int,
    scheme: str,
    base: NDArray[np.float64],
    prior: float | None,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], bool]:
    order = [rng.permutation(codes.pool.shape[1]) for _ in codes.pool]
    used = [0] * len(codes.pool)
    counts = np.zeros((len(codes.pool), 2), np.int64)

    def draw(wanted: list[int]) -> Calibration:
        for code in wanted:
            group = codes.pool[code, order[code][used[code]]]
            used[code] += 1
            if group >= 0:
                counts[code, group] += 1
        return Calibration(
            bundle_id="0" * 64,
            attributes=(Attribute(name="digit", groups=codes.groups),),
            counts=tuple(tuple(map(int, row)) for row in counts),
            unsure=(0,) * len(counts),
            settings=SETTINGS,
        )

    first = n if scheme == "even" else first_share(n, len(base))
    record = draw(audit.stratified(base, first))
    text = f"{codes.groups[0]}={target},{codes.groups[1]}={1 - target}"
    parts = parse_target(text, record.attributes)
    if n > first:
        record = draw(audit.by_weights(solve(record, parts, base, nearest=True, prior=prior), n - first))
    try:
        return solve(record, parts, base, prior=prior), False
    except DdmError:
        return solve(record, parts, base, nearest=True, prior=prior), True
