"""Variation along a continuous attribute: its Wasserstein-1 distance from balanced real images.

An attribute is a function of images uint8 [N,H,W,3] to one number each, float64 [N]; NaN where it has no value, as the
slant of an empty picture. Group shares say whether groups are there; this says whether their variety is.
"""

from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from ddm_rt.config import Frozen
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.intervals import CONFIDENCE, Interval

Images = NDArray[np.uint8]  # [N, H, W, 3]
Values = NDArray[np.float64]  # [N]
Attribute = Callable[[Images], Values]

RESAMPLES = 500
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_MIDDLE = ((0.45, 0.80), (0.35, 0.65))  # of height and width: cheeks and nose of a centred, upright face


class Variation(Frozen):
    """One attribute of generated against reference images, in the attribute's own unit."""

    attribute: str
    n: int
    n_reference: int
    undefined: int  # generated images without a value, left out
    mean: float
    mean_reference: float
    spread: float  # standard deviation
    spread_reference: float
    w1: float
    interval: Interval  # 95 %
    floor_mean: float  # W1 of two samples as large as these, both drawn from the reference: what chance gives
    floor_p95: float


def slant(images: Images) -> Values:
    """Lean to the right in degrees, of bright strokes on dark: atan(−μ₁₁/μ₀₂) of the brightness (y runs down)."""
    weight = _luma(images) * 255
    weight = weight - weight.min(axis=(1, 2), keepdims=True)
    height, width = weight.shape[1:]
    x, y = np.arange(width)[None, None, :], np.arange(height)[None, :, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weight.sum(axis=(1, 2), keepdims=True)
        dx, dy = (axis - (weight * axis).sum(axis=(1, 2), keepdims=True) / total for axis in (x, y))
        across, down = ((weight * dy * other).sum(axis=(1, 2)) for other in (dx, dy))
        return np.asarray(np.degrees(np.arctan(-across / down)), np.float64)


def skin_luminance(images: Images) -> Values:
    """Median luma, 0 to 1, of the middle of a centred, upright face: most of it is skin, whatever else is there."""
    rows, columns = (
        slice(int(start * side), max(int(stop * side), int(start * side) + 1))
        for (start, stop), side in zip(_MIDDLE, images.shape[1:3], strict=True)
    )
    return np.asarray(np.median(_luma(images)[:, rows, columns], axis=(1, 2)), np.float64)


ATTRIBUTES: dict[str, Attribute] = {"slant": slant, "skin_luminance": skin_luminance}


def attribute(name: str) -> Attribute:
    """One of `ATTRIBUTES`, or MODULE:FUNCTION of your own. Raises DdmError naming what there is."""
    if name in ATTRIBUTES:
        return ATTRIBUTES[name]
    module, sign, function = name.partition(":")
    if not sign:
        raise DdmError(f"attribute {name!r}: expected MODULE:FUNCTION, or one of: {', '.join(ATTRIBUTES)}")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, ValueError, AttributeError) as error:
        raise DdmError(f"attribute {name!r}: {error}") from error
    if not callable(found):
        raise DdmError(f"attribute {name!r}: not a function")
    own: Attribute = found
    return own


def variations(
    names: Sequence[str], images: Images, reference: Images, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Variation, ...]:
    """Each attribute of generated against reference images. Raises DdmError as `attribute` and `variation`."""
    functions = [(name, attribute(name)) for name in names]
    return tuple(
        variation(name, _values(name, function, images), _values(name, function, reference), seed, resamples)
        for name, function in functions
    )


def variation(name: str, values: Values, reference: Values, seed: int = 0, resamples: int = RESAMPLES) -> Variation:
    """Values [N] against [M]; NaN is left out and counted. Raises DdmError where nothing is left on either side.

    W1 folds at 0, so percentiles of redrawn distances never hold the 0 of a sampler that is on target. By the triangle
    inequality it moves by no more than both samples do: with r the 95th percentile of W1(redrawn, drawn) over generated
    images plus that over reference images, the interval is W1 ± r, cut at 0. It errs on the wide side.
    """
    drawn, real = values[~np.isnan(values)], reference[~np.isnan(reference)]
    for side, kept in (("generated", drawn), ("reference", real)):
        if len(kept) == 0:
            raise DdmError(f"attribute {name!r}: no {side} image has a value")
    rng = np.random.default_rng(seed)

    def again(sample: Values, n: int) -> Values:
        return rng.choice(sample, n)

    def moved(sample: Values) -> float:
        return float(wasserstein_distance(again(sample, len(sample)), sample))

    w1 = float(wasserstein_distance(drawn, real))
    reach = float(np.quantile([moved(drawn) + moved(real) for _ in range(resamples)], CONFIDENCE))
    floor = [wasserstein_distance(again(real, len(drawn)), again(real, len(real))) for _ in range(resamples)]
    return Variation(
        attribute=name,
        n=len(drawn),
        n_reference=len(real),
        undefined=len(values) - len(drawn),
        mean=float(drawn.mean()),
        mean_reference=float(real.mean()),
        spread=float(drawn.std()),
        spread_reference=float(real.std()),
        w1=w1,
        interval=(max(0.0, w1 - reach), w1 + reach),
        floor_mean=float(np.mean(floor)),
        floor_p95=float(np.quantile(floor, 0.95)),
    )


def _values(name: str, function: Attribute, images: Images) -> Values:
    found = np.asarray(function(images))
    if found.shape != (len(images),) or not np.issubdtype(found.dtype, np.number):
        raise DdmError(f"attribute {name!r}: gave {found.dtype} {list(found.shape)}; expected a number for each image")
    if np.isinf(found).any():
        raise DdmError(f"attribute {name!r}: gave infinite values; NaN says that there is none")
    return found.astype(np.float64)


def _luma(images: Images) -> NDArray[np.float64]:
    """uint8 [N,H,W,3] -> [N,H,W] in [0, 1]."""
    return np.asarray(images @ _LUMA / 255, np.float64)
