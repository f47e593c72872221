"""manifest.json: which seed, prompt, code and settings made each image; enough to make it again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ddm_rt.config import NULL_CODE, Frozen, Positive, SamplerName, Sha256, parse, parse_json
from ddm_rt.files import read
from ddm_rt.sample.loop.noise import derive_range
from ddm_rt.sample.request import FILES, SETTINGS, Code, Request, ResolvedRequest, Seed


class ImageRecord(Frozen):
    file: str = Field(pattern=r"^\d{5,10}\.png$")
    seed: Seed  # the image's own
    code: Code  # -1 is the null code
    top_code: Code
    position: Annotated[int, Field(ge=0)] | None = None  # in the scope's stream
    prompt: str | None = None  # where the request has several


class Recipe(Frozen):
    """What an image's bytes depend on, beside its own seed, prompt and code. Field names on disk are those of the
    design: `schema`, not `schema_version`.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")  # of this file's format
    bundle_id: Sha256  # of the bundle that made the images
    calibration_id: str | None = None  # of the calibration that gave the codes' weights, where one did
    request: ResolvedRequest  # what was asked for, with every default filled in
    target: str | None  # shares; None where no quota drew the codes
    sampler: SamplerName  # the algorithm
    num_steps: Positive  # of each image
    backend: str  # what computed the images
    precision: str  # in which the networks computed
    threads: int  # of the CPU
    versions: dict[str, str]  # of the libraries on which bytes depend
    bucket: Positive | None = None  # the batch sizes were those that go with it; None: with the largest

    def tree(self) -> dict[str, Any]:
        """As plain data, with the names on disk. A bucket, words to leave alone, an interval and APG of guidance, CADS,
        a cache and provenance stand there only where there are some.
        """
        tree = self.model_dump(mode="json", by_alias=True)
        unsaid = dict.fromkeys(("leave_alone", "guidance_interval", "apg", "cads", "cache")) | dict.fromkeys(
            FILES, False
        )
        for name, value in unsaid.items():
            if tree["request"][name] == value:
                del tree["request"][name]
        if tree["bucket"] is None:
            del tree["bucket"]
        return tree


class Manifest(Recipe):
    """manifest.json: all that is needed to make the images again."""

    images: tuple[ImageRecord, ...] = Field(min_length=1)  # seed, code and file of each image

    def again(self) -> Request:
        """A request with the settings of this one, and with other seeds and codes."""
        kept = (*SETTINGS, *FILES)
        return Request(**{name: getattr(self if hasattr(self, name) else self.request, name) for name in kept})

    def tree(self) -> dict[str, Any]:
        """As `Recipe.tree`; prompts of images stand there only where there are some."""
        tree = super().tree()
        for part in tree["images"]:
            if part["prompt"] is None:
                del part["prompt"]
        return tree


def image_records(
    request: ResolvedRequest,
    top_of: Sequence[int],
    codes: Sequence[int],
    first: int = 0,
    positions: Sequence[int | None] | None = None,
) -> tuple[ImageRecord, ...]:
    """The images `first` to `first + len(codes) - 1` of a request. `top_of` is the top code of each code."""
    prompts = request.prompt if isinstance(request.prompt, tuple) else (None,)
    numbers = range(first, first + len(codes))
    return tuple(
        ImageRecord(
            file=f"{i:05d}.png",
            seed=seed,
            code=code,
            top_code=NULL_CODE if code == NULL_CODE else top_of[code],
            position=None if positions is None else positions[i - first],
            prompt=prompts[i % len(prompts)],
        )
        for i, seed, code in zip(numbers, derive_range(request.seed, numbers), codes, strict=True)
    )


def read_manifest(source: dict[str, Any] | str | Path) -> Manifest:
    """From plain data or a file. Raises DdmError naming the file and the field that is wrong."""
    if isinstance(source, dict):
        return parse(Manifest, source, "manifest")
    return parse_json(Manifest, read(source, "expected a manifest.json"), source)
