"""The ledger: streams, leases and the pool; threads. Neither lost nor doubled draws, in memory and in a file."""

import gc
import sqlite3
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_processes import STREAM, quota, reference

from ddm_rt.errors import DdmError, LedgerError
from ddm_rt.sample.balance.ledger import Draw, Lease, Ledger


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "memory" else tmp_path / "counts.ledger"


def test_a_stream_is_the_quotas_sequence_whatever_the_requests(place: Path | None) -> None:
    sizes = [1, 1, 3, 16, 1, 7, 2]
    with Ledger(place) as ledger:
        drawn: list[Draw] = []
        for size in sizes:
            with ledger.lease(STREAM, quota, size) as lease:
                drawn += lease.draws
                lease.commit()
        assert drawn == reference(sum(sizes))
        counts = ledger.counts(STREAM)
    assert counts.done == counts.issued == Counter(draw.code for draw in drawn)
    assert not counts.leased
    assert not counts.pooled


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    for start in (0, 5, 10):
        with Ledger(tmp_path / "counts.ledger") as ledger:
            lease = ledger.lease(STREAM, quota, 5)
            assert list(lease.draws) == reference(15)[start : start + 5]
            lease.commit()


def test_what_is_given_back_is_handed_out_first(place: Path | None) -> None:
    expected = reference(12)
    with Ledger(place) as ledger:
        first, second, third = (ledger.lease(STREAM, quota, n) for n in (3, 2, 4))
        second.commit()
        third.release()
        third.release()
        first.release()
        assert ledger.counts(STREAM).pooled == Counter(draw.code for draw in expected[:3] + expected[5:9])
        again = ledger.lease(STREAM, quota, 4)
        assert list(again.draws) == expected[:3] + expected[5:6]
        assert ledger.counts(STREAM).leased == Counter(draw.code for draw in again.draws)
        assert list(ledger.lease(STREAM, quota, 6).draws) == expected[6:12]


def test_a_lease_that_cannot_be_written_uses_no_positions(tmp_path: Path) -> None:
    path = tmp_path / "counts.ledger"
    with Ledger(path) as ledger:
        ledger.lease(STREAM, quota, 2).commit()
        with sqlite3.connect(path) as other:
            other.execute("CREATE TRIGGER full BEFORE INSERT ON draws BEGIN SELECT RAISE(ABORT, 'no room'); END")
        with pytest.raises(LedgerError, match="no room"):
            ledger.lease(STREAM, quota, 3)
        with sqlite3.connect(path) as other:
            other.execute("DROP TRIGGER full")
        other.close()
        assert list(ledger.lease(STREAM, quota, 3).draws) == reference(5)[2:]


@pytest.mark.parametrize("how", ["error", "block ends", "garbage"])
def test_an_abandoned_request_gives_back(place: Path | None, how: str) -> None:
    with Ledger(place) as ledger:
        if how == "error":
            with pytest.raises(KeyError), ledger.lease(STREAM, quota, 3):
                raise KeyError("a request that fails")
        elif how == "block ends":
            with ledger.lease(STREAM, quota, 3):
                pass
        else:
            lease: Lease | None = ledger.lease(STREAM, quota, 3)
            assert lease is not None
            lease = None
            gc.collect()
        assert list(ledger.lease(STREAM, quota, 4).draws) == reference(4)


def test_a_lease_ends_once(place: Path | None) -> None:
    with Ledger(place) as ledger:
        lease = ledger.lease(STREAM, quota, 2)
        lease.commit()
        lease.release()
        assert ledger.counts(STREAM).done.total() == 2
        for ended in (lease, ledger.lease(STREAM, quota, 2)):
            ended.release()
            with pytest.raises(RuntimeError, match="before"):
                ended.commit()
        assert ledger.counts(STREAM).pooled.total() == 2


def test_streams_are_listed(place: Path | None) -> None:
    other, calibrated = STREAM._replace(scope="other"), STREAM._replace(target="a=1", calibration_id="c")
    with Ledger(place) as ledger:
        assert ledger.streams() == []
        for stream in (STREAM, other, STREAM, calibrated):
            ledger.lease(stream, quota, 1).commit()
        assert ledger.streams() == [STREAM, other, calibrated]
        assert ledger.streams(most=2) == [STREAM, other]


def test_streams_are_apart(place: Path | None) -> None:
    streams = [
        STREAM,
        STREAM._replace(scope="other"),
        STREAM._replace(target="uniform"),
        STREAM._replace(calibration_id="c1"),
        STREAM._replace(calibration_id="c2"),
    ]
    with Ledger(place) as ledger:
        for stream in streams:
            assert ledger.lease(stream, quota, 3).draws == tuple(reference(3))
        assert ledger.counts(STREAM._replace(scope="never used")).issued.total() == 0


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["lease", "lease", "commit", "release"]), st.integers(1, 9)), min_size=1, max_size=40
    )
)
def test_any_order_of_leases_loses_and_doubles_nothing(steps: list[tuple[str, int]]) -> None:
    """With p in the pool, the handed-out images of a top code stay within the quota's bound + p of their share."""
    bound = quota().top.bound
    with Ledger() as ledger:
        out: list[Lease] = []
        done: list[Draw] = []
        for kind, number in steps:
            if kind == "lease":
                before = ledger.counts(STREAM).pooled.total()
                lease = ledger.lease(STREAM, quota, number)
                assert ledger.counts(STREAM).pooled.total() == max(before - number, 0)
                out.append(lease)
            elif out:
                lease = out.pop(number % len(out))
                if kind == "commit":
                    lease.commit()
                    done += lease.draws
                else:
                    lease.release()
            counts = ledger.counts(STREAM)
            leased = [draw for lease in out for draw in lease.draws]
            assert len(set(leased + done)) == len(leased + done)
            assert set(leased + done) <= set(reference(counts.issued.total()))
            assert counts.done == Counter(draw.code for draw in done)
            assert counts.leased == Counter(draw.code for draw in leased)
            handed = len(leased + done)
            top = sum(draw.code in (0, 2) for draw in leased + done)
            assert abs(top - 0.3 * handed) <= bound + counts.pooled.total()


def test_threads_share_a_ledger(place: Path | None) -> None:
    drawn: list[Draw] = []

    def work() -> None:
        for turn in range(30):
            with ledger.lease(STREAM, quota, 1 + turn % 4) as lease:
                if turn % 3:
                    lease.commit()
                    drawn.extend(lease.draws)

    with Ledger(place) as ledger:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = ledger.counts(STREAM)
        rest = ledger.lease(STREAM, quota, counts.pooled.total()).draws
    assert len(drawn) == 8 * sum(1 + turn % 4 for turn in range(30) if turn % 3)
    assert sorted([*drawn, *rest]) == reference(counts.issued.total())


def test_a_ledger_that_is_closed_gives_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "counts.ledger")
    lease = ledger.lease(STREAM, quota, 3)
    ledger.close()
    ledger.close()
    with pytest.raises(DdmError, match="closed"):
        lease.commit()
    with Ledger(tmp_path / "counts.ledger") as other:
        assert other.lease(STREAM, quota, 3).draws == lease.draws
    assert [file.name for file in tmp_path.iterdir()] == ["counts.ledger"]


def test_two_ledgers_of_one_file_are_as_two_processes(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path / "counts.ledger"), Ledger(tmp_path / "counts.ledger")
    first, second = one.lease(STREAM, quota, 6), two.lease(STREAM, quota, 6)
    assert [*first.draws, *second.draws] == reference(12)
    assert two.counts(STREAM).leased.total() == 12
    one.close()
    assert two.counts(STREAM).leased.total() == 6
    second.commit()
    two.close()
