"""manifest.json: which seed, code and settings made each image; enough to make it again."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ddm_rt.config import Balance, Fraction, Frozen, Positive, SamplerName, parse, parse_json
from ddm_rt.errors import DdmError
from ddm_rt.sample.rng import MAX_SEED

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Code = Annotated[int, Field(ge=-1)]
Scale = Annotated[float, Field(ge=0)]


class Request(Frozen):
    """What was asked for, with every default filled in."""

    prompt: str | None = None
    negative_prompt: str | None = None
    n: Positive
    seed: Seed
    codes: tuple[Code, ...] | None = None  # None: drawn by quota, or null codes where balance is off
    balance: Balance
    scope: str | None = None
    shuffle: bool = False  # the codes were permuted within the request
    height: Positive  # pixels
    width: Positive
    guidance_scale: Scale | None = None
    indicator_guidance_scale: Scale
    indicator_scale: Scale
    eta: Fraction
    clip: tuple[float, float] | None


class ImageRecord(Frozen):
    file: str = Field(pattern=r"^\d{5,10}\.png$")
    seed: Seed  # the image's own
    code: Code  # -1 is the null code
    top_code: Code
    position: Annotated[int, Field(ge=0)] | None = None  # in the scope's stream


class Manifest(Frozen):
    """The whole file. Field names on disk are those of the design: `schema`, not `schema_version`."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    bundle_id: str = Field(pattern="^[0-9a-f]{64}$")
    calibration_id: str | None = None
    request: Request
    target: str | None  # None where no quota drew the codes
    sampler: SamplerName
    num_steps: Positive
    backend: str
    precision: str
    threads: int
    versions: dict[str, str]
    images: tuple[ImageRecord, ...] = Field(min_length=1)

    def tree(self) -> dict[str, Any]:
        """As plain data, with the names on disk."""
        return self.model_dump(mode="json", by_alias=True)


def read_manifest(source: dict[str, Any] | str | Path) -> Manifest:
    """From plain data or a file. Raises DdmError naming the file and the field that is wrong."""
    if isinstance(source, dict):
        return parse(Manifest, source, "manifest")
    try:
        content = Path(source).read_bytes()
    except OSError as error:
        raise DdmError(f"{source}: cannot be read ({error.strerror}); expected a manifest.json") from error
    return parse_json(Manifest, content, source)
