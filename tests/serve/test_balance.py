"""Where the ledger's streams stand: each top code's part of what was handed out, whatever has become of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import factor_bundle, fake_bundle
from ledger_processes import STREAM, quota

from ddm_rt.sample.balance.assignment import by_names
from ddm_rt.sample.balance.ledger import Ledger, Stream
from ddm_rt.serve.http.balance import balances

CODES = fake_bundle().codes  # those of `quota`, whose top codes have 0.3 and 0.7


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """10 draws are done, 6 are leased and 4 in the pool."""
    with Ledger(tmp_path / "counts.ledger") as ledger:
        done, leased, given_back = (ledger.lease(STREAM, quota, n) for n in (10, 6, 4))
        done.commit()
        given_back.release()
        yield ledger
        leased.release()


def test_a_stream_s_counts_by_top_code(ledger: Ledger) -> None:
    [found] = balances(ledger, CODES)
    assert (found.scope, found.target, found.measured) == (STREAM.scope, STREAM.target, None)
    counts = found.assigned
    assert (counts.issued, counts.done, counts.in_progress, counts.pooled) == (20, 10, 6, 4)
    assert [top.top_code for top in found.top_codes] == [0, 1]
    assert [top.issued for top in found.top_codes] == [6, 14]
    assert [top.share for top in found.top_codes] == [0.3, 0.7]
    assert [top.done for top in found.top_codes] == [3, 7]
    assert [top.in_progress for top in found.top_codes] == [2, 4]


def test_streams_of_one_scope(ledger: Ledger) -> None:
    other = Stream(STREAM.bundle_id, "other", STREAM.target)
    ledger.lease(other, quota, 1).commit()
    assert len(balances(ledger, CODES)) == 2
    assert [found.scope for found in balances(ledger, CODES, "other")] == ["other"]
    assert balances(ledger, CODES, "none") == []


def test_a_stream_s_counts_by_factor() -> None:
    bundle = factor_bundle()
    named = by_names(bundle, "hair:dark=1")
    assert named is not None
    with Ledger() as ledger:
        ledger.lease(Stream(bundle.bundle_id, "a", named.target), named.quota, 4).commit()
        [found] = balances(ledger, bundle.codes)
    assert found.target == "hair:dark=1.0"
    shares = {part.factor: {each.value: (each.done, each.share) for each in part.values} for part in found.factors}
    assert shares == {
        "gender": {"female": (2, 0.5), "male": (2, 0.5)},
        "hair": {"dark": (4, 1.0), "fair": (0, 0.0), "grey": (0, 0.0)},
    }
