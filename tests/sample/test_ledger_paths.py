"""A ledger that was opened by a relative path stays that file, and its owners stay alive, wherever the process goes."""

from pathlib import Path

import pytest
from ledger_processes import STREAM, quota, reference

from ddm_rt.errors import LedgerError
from ddm_rt.sample.balance.ledger import Ledger


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


def test_no_position_is_handed_out_twice_after_chdir(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every daemon changes its directory after it has started."""
    monkeypatch.chdir(tmp_path)
    with Ledger("counts.ledger") as here:
        first = here.lease(STREAM, quota, 3)
        monkeypatch.chdir(elsewhere)
        with Ledger(tmp_path / "counts.ledger") as other:
            second = other.lease(STREAM, quota, 3)
            assert [*first.draws, *second.draws] == reference(6)
            third = here.lease(STREAM, quota, 2)  # `here` doesn't take back what `other` holds, either
            assert [*first.draws, *second.draws, *third.draws] == reference(8)
            for lease in (first, second, third):
                lease.commit()
    assert not any(elsewhere.iterdir())
    assert not [*tmp_path.glob("*-owner-*")]


def test_a_file_that_is_made_later_lies_where_the_ledger_was_opened(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Ledger("counts.ledger") as ledger:
        monkeypatch.chdir(elsewhere)
        ledger.lease(STREAM, quota, 1).commit()
    assert (tmp_path / "counts.ledger").is_file()
    assert not any(elsewhere.iterdir())


def test_a_link_to_a_ledger_is_that_ledger(tmp_path: Path, elsewhere: Path) -> None:
    (elsewhere / "link").symlink_to(tmp_path / "counts.ledger")
    with Ledger(tmp_path / "counts.ledger") as here, Ledger(elsewhere / "link") as other:
        first, second = here.lease(STREAM, quota, 3), other.lease(STREAM, quota, 3)
        assert [*first.draws, *second.draws] == reference(6)
        first.commit()
        second.commit()
    assert [path.name for path in elsewhere.iterdir()] == ["link"]


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(LedgerError, match=r"/a: cannot be made or opened \(Too many levels of symbolic links\)"):
        Ledger(tmp_path / "a").lease(STREAM, quota, 1)


def test_messages_name_the_path_as_it_was_given(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(elsewhere)
    (tmp_path / "counts.ledger").write_text("no ledger")
    with pytest.raises(LedgerError, match=r"^ledger \.\./counts\.ledger: "):
        Ledger("../counts.ledger")
