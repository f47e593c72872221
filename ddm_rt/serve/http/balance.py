"""Where the ledger's streams stand, as `GET /v1/balance` tells it."""

from collections import Counter
from typing import TYPE_CHECKING

from ddm_rt.sample.balance.ledger import Stream
from ddm_rt.sample.balance.lending import Lender
from ddm_rt.serve.http.schema import Assigned, StreamBalance, TopCodeShare

if TYPE_CHECKING:
    from ddm_rt.serve.http.measured import Measured  # only with a judge, because scipy takes long to load


def balances(
    ledger: Lender, top_of: tuple[int, ...], scope: str | None = None, measured: "Measured | None" = None
) -> list[StreamBalance]:
    """Every stream of the ledger, or those of `scope`; `top_of` has the top code of each code."""
    streams = [stream for stream in ledger.streams() if scope is None or stream.scope == scope]
    return [_balance(ledger, stream, top_of, measured) for stream in streams]


def _balance(ledger: Lender, stream: Stream, top_of: tuple[int, ...], measured: "Measured | None") -> StreamBalance:
    counts = ledger.counts(stream)
    issued, done, leased = (_by_top_code(codes, top_of) for codes in (counts.issued, counts.done, counts.leased))
    total = counts.issued.total()
    return StreamBalance(
        scope=stream.scope,
        target=stream.target,
        calibration_id=stream.calibration_id,
        assigned=Assigned(
            issued=total,
            done=counts.done.total(),
            in_progress=counts.leased.total(),
            pooled=counts.pooled.total(),
        ),
        top_codes=[
            TopCodeShare(
                top_code=top,
                issued=issued[top],
                done=done[top],
                in_progress=leased[top],
                share=issued[top] / total if total else 0.0,
            )
            for top in range(max(top_of, default=-1) + 1)
        ],
        measured=None if measured is None else measured.shares(stream.scope),
    )


def _by_top_code(counts: Counter[int], top_of: tuple[int, ...]) -> Counter[int]:
    tops: Counter[int] = Counter()
    for code, images in counts.items():
        tops[top_of[code]] += images
    return tops
