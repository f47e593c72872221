"""What is compared: a bundle with settings, BUNDLE@steps=8,sampler=euler, or a directory that `sample` wrote."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import INDEX, Bundle
from ddm_rt.config import Backend, Frozen, Precision, SamplerName
from ddm_rt.engine import backends
from ddm_rt.engine.devices import Device
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.run import NO_TEXT, Text, check_prompts, read_sampled
from ddm_rt.progress import OnStep
from ddm_rt.sample.manifest import Manifest, read_manifest
from ddm_rt.sample.pipeline import Pipeline


def _numbers(count: int) -> Callable[[str], tuple[float, ...]]:
    def read(value: str) -> tuple[float, ...]:
        found = tuple(map(float, value.split(":")))
        if len(found) != count:
            raise ValueError(f"{len(found)} numbers")
        return found

    return read


# Key of a specification -> (what it sets, how its value is read, what was expected).
_KEYS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "steps": ("num_steps", int, "a whole number"),
    "sampler": ("sampler", SamplerName, f"one of {', '.join(SamplerName)}"),
    "guidance": ("indicator_guidance_scale", float, "a number"),
    "text_guidance": ("guidance_scale", float, "a number"),
    "interval": ("guidance_interval", _numbers(2), "START:STOP, fractions of the steps"),
    "apg": ("apg", _numbers(2), "NORM:ETA"),
    "cads": ("cads", _numbers(3), "SCALE:END:BEGIN"),
    "cache": ("cache", str, "a number of calls, auto or off"),
    "precision": ("precision", Precision, f"one of {', '.join(Precision)}"),
    "backend": ("backend", Backend, f"one of {', '.join(Backend)}"),
    "device": ("device", lambda value: str(Device.parse(value)), "cpu, cuda, or cuda:N"),
    "threads": ("threads", int, "a whole number"),
}
_LOADING = ("precision", "backend", "device", "threads")
_LEAST_ROUNDS = 3  # of a timing, however long they take


@dataclass(frozen=True)
class Side:
    """One of the two that are compared: where it is, and what is set beside the bundle's own defaults."""

    text: str  # as it was written: its label
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # of `Pipeline.generate`
    precision: Precision | None = None  # None: the bundle's own
    backend: str = "auto"
    device: str | None = None
    threads: int | None = None

    @property
    def rounds(self) -> bool:
        """Whether its backend computes an fp32 bundle in the precision, so that no bundle of it is made."""
        return self.precision in backends.rounds_to(self.backend)

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
    guidance_scale: float | None = None  # this and those below: None where the bundle takes no prompts
    prompt: str | tuple[str, ...] | None = None
    negative_prompt: str | None = None
    guidance_interval: tuple[float, float] | None = None
    apg: tuple[float, float] | None = None
    cads: tuple[float, float, float] | None = None
    calls: int | None = None  # of the model, where a cache makes up for the other steps
    target: str | None = None  # None where the other side's codes were taken
    calibration_id: str | None = None  # of what gave the codes' weights for the target
    versions: dict[str, str]

    def __str__(self) -> str:
        options = {"guidance interval": self.guidance_interval, "APG": self.apg, "CADS": self.cads}
        told = "".join(f", {name} {','.join(f'{n:g}' for n in given)}" for name, given in options.items() if given)
        told += "" if self.calls is None else f", {self.calls} of them call the model"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.label}: bundle {self.bundle_id[:12]}, {self.backend} {self.precision}, {self.threads} threads, "
            f"{self.sampler} {self.num_steps} steps, guidance {self.indicator_guidance_scale:g}{told}; {versions}"
        )


class Images(NamedTuple):
    """Images uint8 [N,H,W,3] with the seed, code and prompt of each, the request's seed, and what made them."""

    images: NDArray[np.uint8]
    seed: int
    seeds: tuple[int, ...]
    codes: tuple[int, ...]
    prompts: tuple[str | None, ...]
    facts: Facts


def parse_side(text: str, threads: int | None = None) -> Side:
    """SOURCE or SOURCE@KEY=VALUE,...; `threads` is the default of that key.

    A path that exists is taken as it is, so it may hold the sign. Raises DdmError naming the key or value that is wrong
    and the choices, and for a precision that the backend never computes in.
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
        except (ValueError, DdmError) as error:
            raise DdmError(f"{text!r}: {key} is {value!r}; expected {expected}") from error
    if not source:
        raise DdmError(f"{text!r}: expected a bundle or a sampled directory before the @")
    backend, precision = found.get("backend", Backend.AUTO), found.get("precision", Precision.FP32)
    computed = (Precision.FP32, *backends.rounds_to(backend))
    if len(computed) > 1 and precision not in computed:
        raise DdmError(f"{text!r}: precision is {precision}; backend {backend} computes in {', '.join(computed)}")
    loading = {"threads": threads} | {name: found.pop(name) for name in _LOADING if name in found}
    return Side(text=text, source=source, settings=found, **loading)


def open_side(side: Side) -> Pipeline | None:
    """The side's pipeline; None for a sampled directory.

    Raises DdmError, also where the bundle has another precision than the side says and the backend doesn't round to it:
    this room converts none. Raises BackendUnavailable with the choices.
    """
    if side.is_sampled:
        if side.settings or (side.backend, side.device, side.precision) != ("auto", None, None):
            raise DdmError(f"{side.text!r}: {side.source} holds images, made already; settings belong to a bundle")
        return None
    bundle = Bundle.load(side.source)
    if side.precision not in (None, bundle.config.precision) and not side.rounds:
        raise DdmError(
            f"{side.text!r}: {bundle.path} is {bundle.config.precision}, not {side.precision}; "
            "fp32 bundles alone are converted, by `ddm-rt export`"
        )
    return Pipeline.load(bundle, side.backend, side.threads, device=side.device, precision=side.precision)


def check_side(side: Side, bundle: Bundle, text: Text) -> None:
    """Raises DdmError naming what of `text`, or of the side's own guidance, the bundle doesn't take."""
    own = {name: value for name, value in side.settings.items() if name == "guidance_scale"}
    check_prompts(bundle, {**text, **own})


def read_side(side: Side) -> Images:
    """Images of a sampled directory. Raises DdmError naming what is missing or damaged."""
    manifest = read_manifest(Path(side.source) / "manifest.json")
    images = read_sampled(Path(side.source)).images
    return _images(side.text, Path(side.source).name, images, manifest)


def make_side(
    side: Side,
    pipeline: Pipeline,
    n: int,
    seed: int,
    *,
    asked: Mapping[str, Any] = NO_TEXT,
    on_step: OnStep | None = None,
) -> Images:
    """n images of a bundle. `asked` holds arguments of `Pipeline.generate`, which the side's own settings come before.

    Raises DdmError as that does.
    """
    generation = pipeline.generate(n=n, seed=seed, **{**asked, **side.settings}, on_step=on_step)
    manifest = read_manifest(generation.manifest)
    return _images(side.text, pipeline.bundle.config.name, generation.images, manifest)


def seconds_of_requests(
    sides: Sequence[tuple[Side, Pipeline]],
    n: int,
    rounds: int,
    text: Text = NO_TEXT,
    limit_s: float = math.inf,
    progress: Callable[[int], object] = lambda _: None,
) -> list[list[float]]:
    """For each side the seconds of `rounds` requests for n images, in turn, after one that isn't counted.

    There are fewer rounds, but at least 3, once `limit_s` is over. `text` is as `asked` of `make_side`.
    """
    taken: list[list[float]] = [[] for _ in sides]
    begun = time.perf_counter()
    for number in range(rounds + 1):
        if number > _LEAST_ROUNDS and time.perf_counter() - begun > limit_s:
            break
        for (side, pipeline), own in zip(sides, taken, strict=True):
            start = time.perf_counter()
            pipeline.generate(n=n, seed=number, **{**text, **side.settings})
            if number:
                own.append(time.perf_counter() - start)
        progress(number)
    return taken


def _images(label: str, bundle: str, images: NDArray[np.uint8], manifest: Manifest) -> Images:
    request, each = manifest.request, manifest.images
    facts = {
        name: getattr(source, name)
        for source in (manifest, request)
        for name in Facts.model_fields.keys() & type(source).model_fields.keys()
    }
    shared = None if isinstance(request.prompt, tuple) else request.prompt
    cache = request.cache
    return Images(
        images=images,
        seed=request.seed,
        seeds=tuple(image.seed for image in each),
        codes=tuple(image.code for image in each),
        prompts=tuple(shared if image.prompt is None else image.prompt for image in each),
        facts=Facts(label=label, bundle=bundle, calls=None if cache is None else len(cache.steps), **facts),
    )
