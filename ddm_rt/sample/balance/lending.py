"""What sampling needs of a ledger, wherever it is: in this process, or in one that others share."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from ddm_rt.sample.balance.ledger import Counts, Draw, Stream
from ddm_rt.sample.balance.quota import TreeQuota


class Lent(Protocol):
    """Draws of one request; see `sample.balance.ledger.Lease`."""

    @property
    def draws(self) -> tuple[Draw, ...]: ...

    def commit(self) -> None: ...


class Lender(Protocol):
    """See `sample.balance.ledger.Ledger`, which says what each of these does and raises."""

    def lease(self, stream: Stream, make_quota: Callable[[], TreeQuota], n: int) -> AbstractContextManager[Lent]:
        """`n` draws of a stream, for a request."""

    def counts(self, stream: Stream) -> Counts:
        """Where a stream stands."""

    def streams(self) -> list[Stream]:
        """The streams that have counts."""

    def check(self) -> None:
        """Whether it can be written to: raises LedgerError where not."""
