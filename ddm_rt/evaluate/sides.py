"""What is compared: a bundle with settings, BUNDLE@steps=8,sampler=euler, or a directory that `sample` wrote."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import INDEX
from ddm_rt.config import Backend, Balance, Frozen, SamplerName
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.run import read_sampled
from ddm_rt.sample.manifest import Manifest, read_manifest
from ddm_rt.sample.pipeline import Pipeline

OnStep = Callable[[int, int], None]

# Key of a specification -> (what it sets, how its value is read, what was expected).
_KEYS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "steps": ("num_steps", int, "a whole number"),
    "sampler": ("sampler", SamplerName, f"one of {', '.join(SamplerName)}"),
    "guidance": ("indicator_guidance_scale", float, "a number"),
    "backend": ("backend", Backend, f"one of {', '.join(Backend)}"),
    "threads": ("threads", int, "a whole number"),
}
_LOADING = ("backend", "threads")


@dataclass(frozen=True)
class Side:
    """One of the two that are compared: where it is, and what is set beside the bundle's own defaults."""

    text: str  # as it was written: its label
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # of `Pipeline.generate`
    backend: str = "auto"
    threads: int | None = None

    @property
    def is_sampled(self) -> bool:
        """A directory of images rather than a bundle."""
        return os.path.isdir(self.source) and not (Path(self.source) / INDEX).is_file()  # noqa: PTH112  (see `parse_side`)


class Facts(Frozen):
    """What made the images of one side."""

    label: str
    bundle_id: str
    bundle: str
    backend: str
    precision: str
    threads: int
    sampler: str
    num_steps: int
    indicator_guidance_scale: float
    versions: dict[str, str]


class Images(NamedTuple):
    """Images uint8 [N,H,W,3] with the seed and code of each, the request's seed, and what made them."""

    images: NDArray[np.uint8]
    seed: int
    seeds: tuple[int, ...]
    codes: tuple[int, ...]
    facts: Facts


def parse_side(text: str, threads: int | None = None) -> Side:
    """SOURCE or SOURCE@KEY=VALUE,...; `threads` is the default of that key.

    A path that exists is taken as it is, so it may hold the sign. Raises DdmError naming the key or value that is wrong
    and the choices.
    """
    source, sign, rest = text.rpartition("@")
    if not sign or os.path.exists(text):  # noqa: PTH110  (a Path raises where a name is too long to exist)
        return Side(text=text, source=text, threads=threads)
    found: dict[str, Any] = {}
    for part in rest.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in _KEYS or not equals:
            raise DdmError(f"{text!r}: {part!r}; expected KEY=VALUE with KEY one of: {', '.join(_KEYS)}")
        name, read, expected = _KEYS[key]
        if name in found:
            raise DdmError(f"{text!r}: {key} is given twice")
        try:
            found[name] = read(value)
        except ValueError as error:
            raise DdmError(f"{text!r}: {key} is {value!r}; expected {expected}") from error
    if not source:
        raise DdmError(f"{text!r}: expected a bundle or a sampled directory before the @")
    loading = {"threads": threads} | {name: found.pop(name) for name in _LOADING if name in found}
    return Side(text=text, source=source, settings=found, **loading)


def open_side(side: Side) -> Pipeline | None:
    """The side's pipeline; None for a sampled directory. Raises DdmError, and BackendUnavailable with the choices."""
    if not side.is_sampled:
        return Pipeline.load(side.source, side.backend, side.threads)
    if side.settings or side.backend != "auto":
        raise DdmError(f"{side.text!r}: {side.source} holds images, made already; settings belong to a bundle")
    return None


def read_side(side: Side) -> Images:
    """Images of a sampled directory. Raises DdmError naming what is missing or damaged."""
    manifest = read_manifest(Path(side.source) / "manifest.json")
    images = read_sampled(Path(side.source)).images
    seeds, codes = (tuple(getattr(image, name) for image in manifest.images) for name in ("seed", "code"))
    facts = _facts(side.text, Path(side.source).name, manifest)
    return Images(images, manifest.request.seed, seeds, codes, facts)


def make_side(
    side: Side,
    pipeline: Pipeline,
    n: int,
    seed: int,
    *,
    codes: Sequence[int] | None = None,
    target: str = "uniform",
    balance: Balance = Balance.AUTO,
    on_step: OnStep | None = None,
) -> Images:
    """n images of a bundle: with `codes` [n] where they are given, else by quota. Raises DdmError as `generate`."""
    assigned: dict[str, Any] = {"target": target, "balance": balance} if codes is None else {"codes": codes}
    generation = pipeline.generate(n=n, seed=seed, **side.settings, **assigned, on_step=on_step)
    manifest = read_manifest(generation.manifest)
    seeds = tuple(image.seed for image in manifest.images)
    facts = _facts(side.text, pipeline.bundle.config.name, manifest)
    return Images(generation.images, seed, seeds, generation.codes, facts)


def seconds_per_image(sides: Sequence[tuple[Side, Pipeline]], n: int, rounds: int) -> list[list[float]]:
    """For each side the seconds per image of `rounds` requests for n images, in turn, after one that isn't counted."""
    taken: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for (side, pipeline), seconds in zip(sides, taken, strict=True):
            start = time.perf_counter()
            pipeline.generate(n=n, seed=0, **side.settings)
            if number:
                seconds.append((time.perf_counter() - start) / n)
    return taken


def _facts(label: str, bundle: str, manifest: Manifest) -> Facts:
    return Facts(
        label=label,
        bundle=bundle,
        indicator_guidance_scale=manifest.request.indicator_guidance_scale,
        **{name: getattr(manifest, name) for name in Facts.model_fields.keys() & Manifest.model_fields.keys()},
    )
