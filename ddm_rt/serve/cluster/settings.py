"""What bounds a server of several replicas: how many there are, and what each of them takes."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from ddm_rt.config import Frozen, Positive
from ddm_rt.serve.scheduling.settings import Seconds

Share = Annotated[float, Field(ge=0)]


class RaySettings(Frozen):
    replicas: Positive = 2  # the fewest
    max_replicas: Positive | None = None  # None: as many as the fewest, so that nothing scales
    target_ongoing: Annotated[float, Field(gt=0)] = 8.0  # requests of one replica that scaling aims at
    max_ongoing: Positive = 256  # requests of one replica; further ones wait for a replica, up to their deadlines
    upscale_delay_s: Seconds = 10.0  # for which the load must have been higher
    downscale_delay_s: Seconds = 300.0  # or lower
    threads: Positive = 1  # of each replica's engine: one number, because bytes depend on it
    cpus: Share = 1.0  # that each replica reserves
    gpus: Share = 0.0
    address: str | None = None  # of a Ray cluster that runs; None: one on this machine, for as long as the server runs
    dashboard: bool = False  # of a cluster on this machine
    object_store_bytes: Annotated[int, Field(ge=78643200)] = 2**27  # of such a one; images pass through it
    ledger_s: Seconds = 30.0  # for the ledger's actor to answer, or to come back
    start_s: Seconds = 600.0  # for the first replica to be there

    @model_validator(mode="after")
    def _fewest_first(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}; expected at least replicas, {self.replicas}")
        return self

    @property
    def most(self) -> int:
        """Replicas."""
        return self.replicas if self.max_replicas is None else self.max_replicas
