"""Who is told what a service does: what counts it, and what traces it."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from ddm_rt.serve.scheduling.ticket import Ticket

if TYPE_CHECKING:
    from ddm_rt.serve.scheduling.service import LiveRequest


class Observer:
    """Each method is called when what it names has just happened, with the service's lock held: it is quick, and asks
    the service nothing. Seconds are those that it took. What an observer isn't interested in, it leaves out.
    """

    def taken(self, ticket: Ticket) -> None:
        """There is room for a request. It is told in the thread that submits it."""

    def refused(self, error: Exception) -> None:
        """There is none, or it came to nothing before a replica took it in."""

    def drawn(self, ticket: Ticket, seconds: float) -> None:
        """A request was checked, and its codes were drawn from the ledger. It is told in the thread that submits it."""

    def ledger_failed(self) -> None:
        """The ledger could not be used."""

    def ticked(self, seconds: float, images: int, requests: "Collection[LiveRequest]") -> None:
        """A tick moved so many images of these requests by a step; none where the engine raised."""

    def decoded(self, seconds: float, images: int, requests: "Collection[LiveRequest]") -> None:
        """Images of these requests were decoded, in one call of the engine."""

    def settled(self, ticket: Ticket, seconds: float) -> None:
        """The draws of a request were noted as done, or given back."""

    def ended(self, ticket: Ticket) -> None:
        """A request has ended as its ticket says."""

    def forgotten(self, ticket: Ticket) -> None:
        """Nothing more is told of a request, whether it ended or came to nothing."""
