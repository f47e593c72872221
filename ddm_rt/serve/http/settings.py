"""What the HTTP interface allows and keeps, apart from what the scheduler bounds."""

from typing import Annotated

from pydantic import Field

from ddm_rt.config import Frozen, Positive
from ddm_rt.serve.scheduling.settings import Seconds

Size = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")]  # WIDTHxHEIGHT in pixels


class HttpSettings(Frozen):
    ignore_prompt: bool = False  # a prompt-free bundle drops prompts, where it would refuse them
    scope: str | None = "default"  # of requests that name none: single images are balanced only over requests
    sizes: tuple[Size, ...] = ()  # besides the bundle's own
    max_body_bytes: Positive = 2**18  # a prompt of 32,000 characters, every one of them escaped
    connections: Positive = 1024
    head_s: Seconds = 10.0  # for the head of a request to arrive
    body_s: Seconds = 10.0  # for the whole of a request's body to arrive
    write_s: Seconds = 30.0  # for a client to take the next part of its response
    idle_s: Seconds = 15.0  # between two signs of life in a stream
    grace_s: Seconds = 10.0  # past a request's deadline, for its end to be told
    keep_images_s: Seconds = 600.0  # images behind a URL
    keep_images_bytes: Positive = 2**28
    encode_threads: Positive = 2
    public_url: str | None = None  # what the URLs of images begin with; None: as the client named the server
    origins: tuple[str, ...] = ()  # web pages elsewhere that may call
    log_prompts: bool = False
