"""runtime.json: all that a program without Python needs to sample from a bundle, beside the graphs and the tokenizers.

Python's engine and the C library read the same file. It outlives the program that wrote it: readers ignore fields that
they don't know, at every level, and refuse a bundle whose `requires` names a feature that they don't know. How a model
was trained stands in training.json, which a reader of this file never opens.

Bundles of format 1 say the same in config.json, schedule.json and codes.json (`read_format_1`).
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from ddm_rt.config import (
    Family,
    Frozen,
    Positive,
    Precision,
    RunConfig,
    SamplingConfig,
    ScheduleConfig,
    parse_open,
)
from ddm_rt.errors import BundleError
from ddm_rt.schedule import Schedule

RUNTIME, TRAINING = "runtime.json", "training.json"
FORMAT_1 = ("config.json", "schedule.json", "codes.json")
Shape = tuple[int, int, int]  # C, H, W of latents
Size = tuple[int, int]  # height and width of an image in pixels
SharedOf = tuple[tuple[int, ...], ...]  # of each code; see `CodeTable.shared_of`
_NAME_LENGTH = 64  # of a factor or a value
KNOWN_FEATURES: frozenset[str] = frozenset()  # what `requires` may name; nothing yet


class TensorSpec(Frozen):
    """One entry of `cond`: its shape after the batch axis (a str is a free axis) and its dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: Literal["float32", "float16", "int64"] = "float32"


class LayerWidth(Frozen):
    """A cross-attention layer by its name in diffusers' UNet, and how wide its keys are."""

    name: str
    width: Positive


class KeysValues(Frozen):
    """How `keys_values` of `cond`, [B, T + M, W], is divided: its last M rows are the indicator's. Its columns are the
    keys of the first layer, its values, the keys of the second one, and so on.
    """

    indicator_tokens: Annotated[int, Field(ge=0)]  # M
    layers: tuple[LayerWidth, ...]


class TextSpec(Frozen):
    """One tokenizer of a bundle and the text encoder's input that its ids go to."""

    tokenizer: str  # path in the bundle, `tokenizers`' JSON
    input: str  # of text_encoder.onnx: int64 [B, max_length]
    max_length: Positive
    pad_id: Annotated[int, Field(ge=0)]


class Leaf(Frozen):
    """One code: its top code, how many training images it holds, and its share of the top code's images."""

    code: int = Field(ge=0)
    top_code: int = Field(ge=0)
    size: int = Field(ge=0)
    share_in_top: float = Field(ge=0, le=1)


class Factor(Frozen):
    """One way in which a person said that the images differ, and each code's value of it."""

    name: str
    values: tuple[str, ...]
    value_of: tuple[Annotated[int, Field(ge=0)], ...]  # of each code: an index into `values`


class CodeTable(Frozen):
    """The codes that a bundle samples with. Codes are modes of the data and never claimed to be groups.

    Where factors cross, a code is one cell of their product, and its top code is its value of the first factor.
    """

    leaves: tuple[Leaf, ...] = ()  # each code, with its top code, size and share
    factors: tuple[Factor, ...] = ()  # empty where nobody named any

    @property
    def num_codes(self) -> int:
        """Number of codes; 0 where the bundle has none."""
        return len(self.leaves)

    @property
    def num_top_codes(self) -> int:
        """Number of top codes, which get equal shares by default."""
        return len({leaf.top_code for leaf in self.leaves})

    @property
    def top_of(self) -> tuple[int, ...]:
        """The top code of each code."""
        return tuple(leaf.top_code for leaf in self.leaves)

    @property
    def shared_of(self) -> SharedOf:
        """Of each code, the rows of the vectors that it shares with others: its top code's, or its values' of all
        factors, which are numbered one factor after the other.
        """
        if not self.factors:
            return tuple((leaf.top_code,) for leaf in self.leaves)
        starts = itertools.accumulate((len(factor.values) for factor in self.factors[:-1]), initial=0)
        columns = [
            [start + value for value in factor.value_of] for start, factor in zip(starts, self.factors, strict=True)
        ]
        return tuple(zip(*columns, strict=True))

    @model_serializer(mode="wrap")
    def _without_factors(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Codes that nobody named factors of have the file that they had before."""
        return without_empty(handler(self), "factors")


class Codes(CodeTable):
    """codes.json of a run: what discovery found."""

    schema_version: int = 1
    origin: str  # "discovered", "probe" (labels defined them), "file:NAME" or "none"
    tree: tuple[tuple[int, int, float], ...] = ()  # merges as scipy's linkage: children, height
    exemplars: tuple[tuple[int, ...], ...] = ()  # per code, indices of typical training images
    stability_ari: tuple[float, ...] = ()  # adjusted Rand index of the top codes under each bootstrap
    rule: dict[str, Any] = Field(default_factory=dict)  # settings that found them


class StoredSchedule(ScheduleConfig):
    """A schedule in a file: its configuration, and ᾱ of every training timestep, which `Schedule.stored` checks."""

    alphas_cumprod: Any = None


class RuntimeConfig(Frozen):
    """What a backend and the sampler need to know of a bundle, in either format, but for the schedule."""

    name: str  # of the bundle, for people
    family: Family = Family.PIXEL  # what surrounds the denoiser
    precision: Precision = Precision.FP32  # in which the graphs compute
    latent_shape: tuple[Positive, Positive, Positive]  # C, H, W at the training size
    image_size: Positive  # height and width of an image by default, in pixels
    channels: Literal[1, 3]  # 1: grey, 3: colour
    size_multiple: Positive  # height and width must be multiples of it
    context_shape: tuple[int | str, int]  # T, D of the conditioner's context
    prompt_free: bool  # whether it takes no prompts
    takes_negative_prompt: bool = True  # False: a student, which has no branch for one
    text: tuple[TextSpec, ...] = ()  # empty where prompt-free
    added: tuple[TensorSpec, ...] = ()  # what the conditioner takes besides: SDXL's text_embeds and time_ids
    empty_negative_is_zero: bool = False  # SDXL: without a negative prompt the null text is zeros
    cond: tuple[TensorSpec, ...]  # what the conditioner gives to the denoiser
    keys_values: KeysValues | None = None  # where `cond` has them in place of tokens
    sampling: SamplingConfig  # defaults of requests
    codes: tuple[Leaf, ...] = ()  # each code, with its top code, size and share
    factors: tuple[Factor, ...] = ()  # what the codes are cells of, where somebody named it

    @property
    def num_codes(self) -> int:
        """Number of codes; 0 where the bundle has none."""
        return len(self.codes)

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Bundles without factors or ready keys have the file, and the id, that they had before."""
        return without_empty(without_empty(handler(self), "factors"), "keys_values")

    @property
    def patch(self) -> int:
        """Pixels a side to a latent."""
        return self.image_size // self.latent_shape[1]

    def latents_of(self, size: Size) -> Shape:
        """Shape of the latents of images of `size`."""
        channels, height, width = self.latent_shape
        return channels, size[0] * height // self.image_size, size[1] * width // self.image_size

    def size_of(self, shape: Shape) -> Size:
        """Size of images whose latents have this shape."""
        _, height, width = self.latent_shape
        return shape[1] * self.image_size // height, shape[2] * self.image_size // width


class _Head(Frozen):
    """What is read of runtime.json before anything else: later versions may change everything else."""

    schema_version: Literal[1] = 1
    requires: tuple[str, ...] = ()  # features without which images would not be what the bundle's maker meant


class Runtime(RuntimeConfig):
    """runtime.json of a bundle of format 2, but for its head."""

    schedule: StoredSchedule


class Training(Frozen):
    """training.json: what was trained, and how. Nobody needs it to sample; the torch backend builds `model`."""

    schema_version: Literal[1] = 1  # of this file's format
    model: dict[str, Any]  # `config.ModelConfig`, which is no provenance to those who build it: they read all of it
    run: RunConfig  # every setting of the training run
    discovery: Codes  # without `leaves`, which stand in runtime.json


def read_runtime(content: str | bytes, path: Path) -> tuple[RuntimeConfig, Schedule]:
    """What runtime.json says. Raises DdmError naming `path` and the field that is wrong or unknown but required."""
    for feature in parse_open(_Head, content, path).requires:
        if feature not in KNOWN_FEATURES:
            raise BundleError(
                f"{path}: field requires: the bundle needs {feature!r}, which this version doesn't know; "
                "a newer ddm_rt reads it"
            )
    runtime = parse_open(Runtime, content, path)
    stored = {name: getattr(runtime.schedule, name) for name in ScheduleConfig.model_fields}
    schedule = Schedule.stored(
        ScheduleConfig(**stored), runtime.schedule.alphas_cumprod, path, "schedule.alphas_cumprod"
    )
    _check_codes(runtime.codes, len(runtime.codes), f"{path}: field codes")
    check_factors(CodeTable(leaves=runtime.codes, factors=runtime.factors), f"{path}: field factors")
    return RuntimeConfig(**{name: getattr(runtime, name) for name in RuntimeConfig.model_fields}), schedule


def runtime_json(config: RuntimeConfig, schedule: Schedule) -> str:
    """The content of runtime.json: `read_runtime` gives the same."""
    tree: dict[str, Any] = {"schema_version": 1, "requires": [], **config.model_dump(mode="json")}
    tree["schedule"] = {**schedule.config.model_dump(mode="json"), "alphas_cumprod": schedule.alphas_cumprod.tolist()}
    return _text(tree)


def changed_runtime_json(content: bytes, config: RuntimeConfig, names: Iterable[str]) -> str:
    """The content of runtime.json with these fields as `config` has them; what this version doesn't know stays."""
    tree, fields = json.loads(content), config.model_dump(mode="json")
    return _text(tree | {name: fields[name] for name in names})


def _text(tree: dict[str, Any]) -> str:
    """Indented, but for ᾱ, which stands on one line."""
    levels = json.dumps(tree["schedule"]["alphas_cumprod"], allow_nan=False)
    text = json.dumps({**tree, "schedule": {**tree["schedule"], "alphas_cumprod": None}}, indent=1, allow_nan=False)
    return text.replace('"alphas_cumprod": null', f'"alphas_cumprod": {levels}') + "\n"


def training_json(model: Any, run: Any, discovery: Any) -> str:
    """The content of training.json, from plain data as runs and bundles of format 1 have it."""
    discovery = {name: value for name, value in discovery.items() if name != "leaves"}
    return json.dumps({"schema_version": 1, "model": model, "run": run, "discovery": discovery}, indent=1) + "\n"


class _Config1(RuntimeConfig):
    """config.json of a bundle of format 1."""

    schema_version: Literal[1] = 1
    listed_codes: Annotated[int, Field(ge=0, alias="num_codes")]
    model: dict[str, Any]  # provenance, as `run`
    run: dict[str, Any]


def read_format_1(contents: Sequence[bytes], paths: Sequence[Path]) -> tuple[RuntimeConfig, Schedule]:
    """What config.json, schedule.json and codes.json say. Raises DdmError naming the file and the field."""
    config = parse_open(_Config1, contents[0], paths[0])
    codes = parse_open(Codes, contents[2], paths[2])
    schedule = Schedule.from_json(contents[1], paths[1])
    _check_codes(codes.leaves, config.listed_codes, f"{paths[2]}: field leaves", ", as config.json says")
    fields = {name: getattr(config, name) for name in RuntimeConfig.model_fields}
    fields |= {"takes_negative_prompt": config.run.get("distill") is None}
    fields |= {"codes": codes.leaves, "factors": ()}  # this format has none
    return RuntimeConfig(**fields), schedule


def _check_codes(leaves: Sequence[Leaf], num_codes: int, where: str, source: str = "") -> None:
    if len(leaves) != num_codes or [leaf.code for leaf in leaves] != list(range(len(leaves))):
        raise BundleError(f"{where}: expected codes 0 to {num_codes - 1} in order{source}")
    tops = {leaf.top_code for leaf in leaves}
    if tops != set(range(len(tops))):
        raise BundleError(f"{where}: top codes must be numbered from 0 without gaps")


def check_factors(codes: CodeTable, where: str) -> None:
    """Raises BundleError naming `where` for factors that don't make up the codes."""
    names = [factor.name for factor in codes.factors]
    if "code" in names:
        raise BundleError(f"{where}: a factor is named code, which targets call codes by; choose another name")
    if len(set(names)) != len(names):
        raise BundleError(f"{where}: two factors have the same name; the names are {', '.join(names)}")
    for factor in codes.factors:
        for name in (factor.name, *factor.values):
            if not (0 < len(name) <= _NAME_LENGTH and name.isprintable() and name == name.strip()) or {*name} & {
                *":=,"
            }:
                raise BundleError(
                    f"{where}: {name!r} is no name that a target can have; expected 1 to {_NAME_LENGTH} printable "
                    "characters without : = , and without space at either end"
                )
        if len(factor.values) < 2 or len(set(factor.values)) != len(factor.values):
            raise BundleError(
                f"{where}: {factor.name}: the values are {', '.join(factor.values)}; expected two or more, each once"
            )
        if len(factor.value_of) != codes.num_codes or set(factor.value_of) != set(range(len(factor.values))):
            raise BundleError(
                f"{where}: {factor.name}: field value_of: expected one of {len(factor.values)} values for each of "
                f"{codes.num_codes} codes, each used"
            )
    if codes.factors and codes.factors[0].value_of != codes.top_of:
        raise BundleError(f"{where}: the top code of each code must be its value of {names[0]}, the first factor")
    cells = [factor.value_of for factor in codes.factors]
    if len(set(zip(*cells, strict=True))) != codes.num_codes * bool(cells):
        raise BundleError(f"{where}: two codes have the same value of every factor")


def without_empty(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """`tree` without the field `name`, if that is empty."""
    return tree if tree.get(name) else {field: value for field, value in tree.items() if field != name}


def training_of_format_1(config: bytes, codes: bytes) -> str:
    """The content of training.json, from files of format 1 that `read_format_1` has read."""
    tree = json.loads(config)
    return training_json(tree["model"], tree["run"], json.loads(codes))
