"""What the HTTP interface needs of whoever samples: one scheduler in this process, or replicas elsewhere."""

from typing import Protocol

from ddm_rt.bundle import Bundle
from ddm_rt.sample.balance.lending import Lender
from ddm_rt.sample.request import Request
from ddm_rt.serve.scheduling.settings import ServeSettings
from ddm_rt.serve.scheduling.stats import Stats
from ddm_rt.serve.scheduling.ticket import Ticket


class Source(Protocol):
    """What is served; a `Pipeline` is one."""

    bundle: Bundle
    ledger: Lender


class Service(Protocol):
    """See `serve.scheduling.scheduler.Scheduler`, which says what each of these does and raises."""

    settings: ServeSettings

    @property
    def pipeline(self) -> Source: ...

    @property
    def alive(self) -> bool: ...

    @property
    def ready(self) -> bool: ...

    def submit(
        self, request: Request, *, key: str = "", priority: int = 0, deadline_s: float | None = None
    ) -> Ticket: ...

    def stats(self) -> Stats: ...

    def drain(self, timeout_s: float | None = None) -> bool: ...

    def close(self) -> None: ...
