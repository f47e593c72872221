"""What bounds a server: how much it works on at once, how much may wait, and for how long."""

from typing import Annotated

from pydantic import Field

from ddm_rt.config import Frozen, Positive

Seconds = Annotated[float, Field(gt=0)]


class ServeSettings(Frozen):
    slots: Positive = 16  # images in flight
    queue: Positive = 256  # images waiting for a slot
    max_images: Positive = 64  # of one request
    max_steps: Positive = 200
    per_key: Positive = 8  # requests of one key at once; requests without a key are not counted
    deadline_s: Seconds = 60.0  # of a request that doesn't say
    drain_s: Seconds = 30.0  # for requests under way when the server is told to stop
