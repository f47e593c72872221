"""What bounds a server: its scheduler, its HTTP interface, and its replicas where there are several."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ddm_rt.config import Frozen, Positive

Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]


def _text(pattern: str, expected: str) -> AfterValidator:
    """Text of this form; `expected` says in words which."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r}; expected {expected}")
        return text

    return AfterValidator(check)


Size = Annotated[str, _text(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", "WIDTHxHEIGHT in pixels, such as 768x512")]
Host = Annotated[str, _text(r"\*|[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", "a name or an address without a port, or *")]
Url = Annotated[str, _text(r"https?://[^\s/]\S*", "an address that begins with http:// or https://")]
Origin = Annotated[str, _text(r"\*|https?://[^\s/]+", "https://HOST without a path, or *")]


class ServeSettings(Frozen):
    """What the scheduler works on at once, and what may wait for how long. Each replica has these."""

    slots: Positive = 16  # images in flight
    queue: Positive = 256  # images waiting for a slot
    max_images: Positive = 64  # of one request
    max_steps: Positive = 200  # of an image
    per_key: Positive = 8  # requests of one key at once; requests without a key are not counted
    deadline_s: Seconds = 60.0  # of a request that doesn't say
    drain_s: Seconds = 30.0  # for requests under way when the server is told to stop


class HttpSettings(Frozen):
    """What the HTTP interface allows, apart from what the scheduler bounds."""

    strict_prompt: bool = False  # a prompt-free bundle refuses prompts, where it would drop them with a warning
    name: Annotated[str, Field(min_length=1)] | None = None  # the model's; None: that of the bundle's configuration
    model_aliases: tuple[str, ...] = ()  # other names of the bundle, for clients that know OpenAI's models alone
    provenance: bool = True  # image files say what made them, and from which seed
    provenance_code: bool = False  # and with which code
    resize: bool = False  # make the nearest size and scale the picture, where another size is asked for
    scope: str | None = "default"  # of requests that name none: single images are balanced only over requests
    sizes: tuple[Size, ...] = ()  # besides the bundle's own
    max_body_bytes: Positive = 2**18  # a prompt of 32,000 characters, every one of them escaped
    head_s: Seconds = 10.0  # for the head of a request to arrive
    body_s: Seconds = 10.0  # for the whole of a request's body to arrive
    write_s: Seconds = 30.0  # for a client to take the next part of its response
    allowed_hosts: tuple[
        Host, ...
    ] = ()  # names that the server is called by, besides localhost and addresses; "*": any
    max_requests: Positive = 512  # under way at once, health checks apart
    public_url: Url | None = None  # what the URLs of images begin with; None: as the client named the server
    origins: tuple[Origin, ...] = ()  # web pages elsewhere that may call
    log_prompts: bool = False  # whether the log has the texts of prompts

    def names(self, configured: str) -> tuple[str, ...]:
        """The names that the model answers to: its own first, then that in the bundle's configuration, then others."""
        return tuple(dict.fromkeys((self.name or configured, configured, *self.model_aliases)))

    @model_validator(mode="after")
    def _code_goes_with_the_rest(self) -> Self:
        if self.provenance_code and not self.provenance:
            raise ValueError("provenance_code is given, but provenance is off; the code is a part of it")
        return self


class RaySettings(Frozen):
    """How many replicas there are, and what each of them takes."""

    replicas: Positive = 2  # the fewest
    max_replicas: Positive | None = None  # None: as many as the fewest, so that nothing scales
    target_ongoing: Annotated[float, Field(gt=0)] = 8.0  # requests of one replica that scaling aims at
    max_ongoing: Positive = 256  # requests of one replica; further ones wait for a replica, up to their deadlines
    threads: Positive = 1  # of each replica's engine: one number, because bytes depend on it
    cpus: Share = 1.0  # that each replica reserves
    gpus_per_replica: Share = 0.0  # that each replica reserves
    gpus: Literal["all"] | Positive | None = None  # so many replicas with a whole GPU each, in place of `replicas`
    address: str | None = None  # of a Ray cluster that runs; None: one on this machine, for as long as the server runs
    dashboard: bool = False  # of a cluster on this machine

    @model_validator(mode="after")
    def _gpus_count_replicas(self) -> Self:
        others = self.model_fields_set & {"replicas", "max_replicas", "gpus_per_replica"}
        if self.gpus is not None and others:
            raise ValueError(f"gpus says how many replicas there are; expected no {min(others)} beside it")
        return self

    @model_validator(mode="after")
    def _fewest_first(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}; expected at least replicas, {self.replicas}")
        return self

    @property
    def most(self) -> int:
        """Replicas."""
        return self.replicas if self.max_replicas is None else self.max_replicas
