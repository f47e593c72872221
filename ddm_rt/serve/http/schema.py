"""The bodies of requests and responses: OpenAI's fields with their meanings, and ours beside them."""

import math
import secrets
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, create_model, model_validator

from ddm_rt.bundle import Bundle
from ddm_rt.config import Balance, Frozen, SamplerName
from ddm_rt.sample.request import FILES, Request, told_fields
from ddm_rt.serve.http.errors import invalid, unknown_model
from ddm_rt.serve.http.field_types import Calls, numbers
from ddm_rt.serve.settings import HttpSettings

PictureFormat = Literal["png", "webp", "jpeg"]

_EXACT_IN_JAVASCRIPT = 2**53
_LONGEST_TEXT = 32_000  # characters, as OpenAI has it
Text = Annotated[str, Field(max_length=_LONGEST_TEXT)]
_LONGEST_SIDE = 3840  # that a picture is scaled to, as the largest of OpenAI's is 3840x2160
_MOST_FIELDS = 100  # of a body
_MOST_PIXELS = 2**24  # that all pictures of a request are scaled to
Word = Annotated[str, Field(min_length=1, max_length=64)]


# A number in quotes, or `true` for 1, is a mistake; far beyond a scale of 100, nothing is finite any more.
_STRICT = {int | None: Field(strict=True), float | None: Field(strict=True, ge=0, le=100)}
# Fields of `Request` that HTTP takes otherwise: one text, within limits, and null for what the server draws.
_OTHERWISE: dict[str, tuple[Any, Any]] = {
    "prompt": (
        Text | None,
        Field(default=None, description="Text that the images show. A bundle without prompts drops it."),
    ),
    "negative_prompt": (Text | None, None),
    "n": (Annotated[int, Field(strict=True)] | None, None),
    "seed": (
        Annotated[int, Field(strict=True)] | None,
        Field(default=None, description="Image i has the seed derive(seed, i). Drawn by the server where not given."),
    ),
    "sampler": (SamplerName | None, None),
    "guidance_interval": (numbers(2, le=1), None),
    "apg": (numbers(2, le=1e6), None),
    "cads": (numbers(3, le=1e6), None),
    "cache": (Calls, None),
    "target": (Annotated[str, Field(max_length=4096)], "uniform"),
    "scope": (
        Annotated[str, Field(max_length=256)] | None,
        Field(
            default=None,
            description="Requests of one scope are balanced together. Left out: the server's. Null: this one alone.",
        ),
    ),
    "leave_alone": (Annotated[list[Word], Field(max_length=256)] | None, None),
}
# `size` says the first two, and whoever runs the server the last two.
_WITHOUT = {"height", "width", "shuffle", "allow_stale", *FILES}


def _fields() -> dict[str, tuple[str, tuple[Any, Any]]]:
    """Name of a field of `Request` -> its name here, and its type with limits and its default."""
    found = {}
    for name, (hint, default, limits, told) in told_fields().items():
        if name not in _WITHOUT:
            kind, default = _OTHERWISE.get(name, (Annotated[hint, _STRICT.get(hint, Field())], default))
            found[name] = told.name or name, (Annotated[kind, *limits, Field(description=told.help)], default)
    return found


_FIELDS = _fields()
_definitions: dict[str, Any] = dict(_FIELDS.values())
_Asked: Any = create_model("_Asked", __base__=Frozen, **_definitions)


def _unused_field(**limits: Any) -> Any:
    return Field(default=None, description="Taken for the sake of clients, and not used.", **limits)


class ImageRequest(_Asked):  # type: ignore[misc]  # the fields of `Request`
    """Body of `POST /v1/images/generations`. What is null or left out takes the bundle's or the server's default."""

    model: str | None = Field(
        default=None, description="The bundle's name, or another name that `GET /v1/models` lists."
    )
    size: str | None = Field(
        default=None,
        pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$",
        description="WIDTHxHEIGHT, one that `GET /v1/models` lists. A server that resizes takes any.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        default=None,
        description="b64_json, or url: the default where the model is called dall-e-..., as OpenAI has it.",
    )
    output_format: PictureFormat = Field(default="png", description="Of the image file.")
    output_compression: Annotated[int, Field(ge=0, le=100, strict=True)] | None = Field(
        default=None, description="Quality of webp and jpeg; 100 by default. A png is never compressed with losses."
    )
    stream: Annotated[bool, Field(strict=True)] | None = Field(
        default=None, description="Server-sent events: each image once it is there."
    )
    extra_events: Annotated[bool, Field(strict=True)] | None = Field(
        default=None, description="With stream, events that OpenAI doesn't have: started, progress, finished."
    )
    partial_images: Annotated[int, Field(ge=0, le=3, strict=True)] | None = Field(
        default=None,
        description="With stream, so many previews of each image on its way; fewer in few steps, or under load.",
    )
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = _unused_field()
    complexity: Literal["low", "medium", "high"] | None = _unused_field()
    background: Literal["auto", "opaque"] | None = _unused_field()
    moderation: Literal["auto", "low"] | None = _unused_field()
    style: Literal["vivid", "natural"] | None = _unused_field()
    user: str | None = _unused_field(max_length=512)
    safety_identifier: str | None = _unused_field(max_length=512)
    deadline_s: Annotated[float, Field(gt=0, le=3600, strict=True)] | None = Field(
        default=None, description="The request fails if it isn't done after so many seconds."
    )

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, body: Any) -> Any:
        """Before each of them is found to be unknown."""
        if isinstance(body, dict) and len(body) > _MOST_FIELDS:
            raise ValueError(f"the body has {len(body)} fields; expected {_MOST_FIELDS} at most")
        return body

    @property
    def answers_with(self) -> Literal["b64_json", "url"]:
        return self.response_format or ("url" if (self.model or "").startswith("dall-e-") else "b64_json")

    @property
    def previews(self) -> int:
        """Of each image."""
        return (self.partial_images or 0) if self.stream else 0

    def ignored(self, bundle: Bundle) -> str | None:
        """What a client should know of its request; None where there is nothing."""
        if self.prompt and bundle.config.prompt_free:
            return "the prompt is ignored: this model was trained without prompts"
        return None

    def asked(self, bundle: Bundle, http: HttpSettings) -> Request:
        """The request. Raises Failure naming the field that this server doesn't take."""
        names = http.names(bundle.config.name)
        if self.model is not None and self.model not in names:
            raise unknown_model(self.model, names)
        if self.output_compression not in (None, 100) and self.output_format == "png":
            raise invalid("output_compression is given, but png has no quality: webp and jpeg do", "output_compression")
        width, height = _pixels(self._made(bundle, http))
        given = {name: getattr(self, here) for name, (here, _) in _FIELDS.items()}
        if bundle.config.prompt_free and not http.strict_prompt:
            del given["prompt"]
        if self.n is None:
            del given["n"]
        if self.seed is None:
            given["seed"] = secrets.randbelow(_EXACT_IN_JAVASCRIPT)
        if "scope" not in self.model_fields_set and bundle.codes.num_codes > 0 and self.balance is not Balance.OFF:
            given["scope"] = http.scope
        given |= {name: getattr(http, name) for name in FILES} | {"height": height, "width": width}
        return Request(**given)

    def scaled_to(self, bundle: Bundle, http: HttpSettings) -> tuple[int, int] | None:
        """Width and height that its pictures are scaled to; None where they are made in the size that was asked for."""
        made = self._made(bundle, http)
        return None if self.size in (None, "auto", made) else _pixels(str(self.size))

    def _made(self, bundle: Bundle, http: HttpSettings) -> str:
        """The size that is made. Each size has slots and batch sizes of its own, so only those that were named are."""
        sizes = sizes_of(bundle, http)
        if self.size is None or self.size == "auto":
            return sizes[0]
        if self.size in sizes:
            return self.size
        wanted = _pixels(self.size)
        if not http.resize:
            said = f"size is {self.size!r}; this server makes: {', '.join(sizes)} (with --resize it takes any)"
            raise invalid(said, "size", "invalid_value")
        if max(wanted) > _LONGEST_SIDE:
            raise invalid(f"size is {self.size!r}; expected at most {_LONGEST_SIDE} a side", "size", "invalid_value")
        if (self.n or 1) * (1 + self.previews) * wanted[0] * wanted[1] > _MOST_PIXELS:
            those = f"n images of size {self.size!r}{' and their previews' * bool(self.previews)}"
            said = f"{those} have over {_MOST_PIXELS} pixels; expected fewer, or smaller ones"
            raise invalid(said, "size", "invalid_value")
        return min(sizes, key=lambda size: _distance(wanted, _pixels(size)))


def _pixels(size: str) -> tuple[int, int]:
    """Width and height of WIDTHxHEIGHT."""
    width, height = size.split("x")
    return int(width), int(height)


def _distance(wanted: tuple[int, int], made: tuple[int, int]) -> tuple[float, float]:
    """How unlike two sizes are: in shape first, and then in pixels. Twice as much counts as half."""
    shape = math.log((wanted[0] * made[1]) / (wanted[1] * made[0]))
    return round(abs(shape), 6), abs(math.log((wanted[0] * wanted[1]) / (made[0] * made[1])))


def sizes_of(bundle: Bundle, http: HttpSettings) -> tuple[str, ...]:
    """WIDTHxHEIGHT of the images that the server makes, the bundle's own first."""
    own = f"{bundle.config.image_size}x{bundle.config.image_size}"
    return tuple(dict.fromkeys((own, *http.sizes)))


class Reply(Frozen):
    """Base of what is answered: more fields may come with later versions."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ImageItem(Reply):
    """One image."""

    b64_json: str | None = None  # the image file in base64, with response_format b64_json
    url: str | None = None  # where the image file is, with response_format url
    seed: int  # the image's own
    code: int  # -1: the null code
    top_code: int  # -1: the null code
    group: str | None = None  # as the judge sees it, where there is one


class GroupShare(Reply):
    """How many images a judge took for one of its groups."""

    group: str  # a class of the judge
    images: int  # that the judge took for it
    share: float  # of all images that were judged
    low: float  # of a 95 % interval
    high: float  # of a 95 % interval


class MeasuredShares(Reply):
    """What a judge saw. It is a measurement: nothing is balanced by it."""

    images: int  # that were judged
    groups: list[GroupShare]  # one for each of the judge's groups


class TokenDetails(Reply):
    """OpenAI's count of tokens by kind."""

    text_tokens: int = 0  # none
    image_tokens: int = 0  # none


class Usage(Reply):
    """OpenAI's count of tokens, which its clients expect. Nothing is charged by tokens here: all are 0."""

    total_tokens: int = 0  # none
    input_tokens: int = 0  # none
    output_tokens: int = 0  # none
    input_tokens_details: TokenDetails = TokenDetails()  # by kind


class ImageReply(Reply):
    """Images, and what is needed to make them again."""

    created: int  # Unix time
    data: list[ImageItem]  # the images, in the order of the manifest
    background: Literal["opaque"] = "opaque"  # as OpenAI has it: no image has a transparent one
    quality: Literal["auto"] = "auto"  # as OpenAI has it: there is one quality
    usage: Usage = Usage()  # all 0
    output_format: PictureFormat  # of the image files
    size: str  # WIDTHxHEIGHT
    manifest: dict[str, Any]  # what `ddm-rt sample --from` takes
    measured: MeasuredShares | None = None  # of these images, where there is a judge


class ErrorItem(Reply):
    """An error in OpenAI's form."""

    message: str  # what was wrong, and what was expected
    type: str  # whose mistake it is
    param: str | None  # the field that is wrong, where it is one
    code: str | None  # the kind of error


class ErrorReply(Reply):
    """The body of every answer that is an error."""

    error: ErrorItem  # what went wrong


class JudgeItem(Reply):
    """The judge that looks at each image."""

    name: str  # of its file
    groups: list[str]  # classes that it counts


class FactorItem(Reply):
    """One way in which a person said that the images differ; targets name its values as FACTOR:VALUE."""

    name: str  # as it stands in a target
    values: list[str]  # as they stand in a target
    value_of: list[int]  # of each code: an index into values
    shares: list[float]  # of each value, by default


class ModelItem(Reply):
    """OpenAI's four fields, and what a page or a client may want to know before it asks for images."""

    id: str  # the bundle's name, or another one that the server was told
    object: Literal["model"] = "model"  # what this is
    created: int  # Unix time at which the server started
    owned_by: str = "ddm-rt"  # for clients that ask for it
    bundle_id: str  # sha256 over what decides an image's content
    prompt_free: bool  # whether the bundle takes no prompts
    ignores_prompt: bool  # whether the server drops prompts that the bundle doesn't take
    size: str  # WIDTHxHEIGHT by default
    sizes: list[str]  # WIDTHxHEIGHT that the server makes
    num_codes: int  # 0: nothing is balanced
    num_top_codes: int  # that get equal shares by default
    factors: list[FactorItem]  # that the codes are cells of; empty where nobody named any
    num_steps: int  # by default
    max_steps: int  # the most of an image
    max_images: int  # the most of one request
    sampler: SamplerName  # by default
    samplers: list[SamplerName]  # to choose from
    scope: str | None  # of requests that name none
    judge: JudgeItem | None  # null where nothing is measured


class ModelList(Reply):
    """The server's one model, under each of its names."""

    object: Literal["list"] = "list"  # what this is
    data: list[ModelItem]  # the models


class Assigned(Reply):
    """Images of a stream: positions handed out; of those, how many are done, under way, and to be handed out again."""

    issued: int  # positions handed out so far
    done: int  # images that were delivered
    in_progress: int  # images under way
    pooled: int  # positions that were given back, for the next requests


class TopCodeShare(Reply):
    """What a stream's images have of one top code."""

    top_code: int  # its number
    issued: int  # images of it that were handed out so far
    done: int  # of these, images that were delivered
    in_progress: int  # of these, images under way
    share: float  # of those issued


class ValueShare(Reply):
    """What a stream's images have of one value of a factor."""

    value: str  # its name
    issued: int  # images of it that were handed out so far
    done: int  # of these, images that were delivered
    in_progress: int  # of these, images under way
    share: float  # of those issued


class FactorBalance(Reply):
    """A stream's images by the values of one factor."""

    factor: str  # its name
    values: list[ValueShare]  # in the bundle's order


class StreamBalance(Reply):
    """Where a stream stands: requests of one scope and target."""

    scope: str  # its name
    target: str  # the shares that were asked for
    calibration_id: str | None  # of the calibration that gave the codes' weights, where one did
    assigned: Assigned  # images in all
    top_codes: list[TopCodeShare]  # the images by top code
    factors: list[FactorBalance]  # the images by each factor; empty where the bundle has none
    measured: MeasuredShares | None  # null where there is no judge


class BalanceList(Reply):
    """Where the ledger's streams stand."""

    object: Literal["list"] = "list"  # what this is
    data: list[StreamBalance]  # one for each stream


class Health(Reply):
    """Whether the server is of use."""

    status: Literal["ok", "ready", "draining", "ledger_unavailable", "stopped"]  # ok and ready are good
