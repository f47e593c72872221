"""What the ledger's actor does, called here: every call can be made twice, by this one or by the next."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ledger_processes import STREAM, quota, reference
from ray.exceptions import GetTimeoutError

from ddm_rt.engine.contract import Engine
from ddm_rt.errors import LedgerError
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.serve.cluster.deployment import Described
from ddm_rt.serve.cluster.ledger import LedgerKeeper, SharedLedger, start_keeper

NAME = "0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "counts.ledger"


@pytest.fixture
def keeper(path: Path) -> Iterator[LedgerKeeper]:
    keeper = LedgerKeeper(path, False, NAME)
    yield keeper
    keeper.close()


def test_a_lease_is_one_however_often_it_is_asked_for(keeper: LedgerKeeper) -> None:
    first = keeper.lease(7, STREAM, quota(), 3)
    assert list(first) == reference(3)
    assert keeper.lease(7, STREAM, quota(), 3) == first
    assert keeper.counts(STREAM).leased.total() == 3
    assert list(keeper.lease(8, STREAM, quota(), 2)) == reference(5)[3:]


def test_a_commit_is_one_however_often_it_is_asked_for(keeper: LedgerKeeper) -> None:
    draws = keeper.lease(7, STREAM, quota(), 3)
    for _ in range(2):
        keeper.commit(7, STREAM, draws)
    assert keeper.counts(STREAM).done.total() == 3
    keeper.release(7)
    assert keeper.counts(STREAM).done.total() == 3


def test_what_is_given_back_cannot_be_committed(keeper: LedgerKeeper) -> None:
    draws = keeper.lease(7, STREAM, quota(), 3)
    for _ in range(2):
        keeper.release(7)
    assert keeper.counts(STREAM).pooled.total() == 3
    with pytest.raises(LedgerError, match="taken back"):
        keeper.commit(7, STREAM, draws)


def test_the_first_replica_says_on_what_images_are_made(keeper: LedgerKeeper) -> None:
    assert keeper.made_by() is None
    assert keeper.agree({"threads": 1}) == keeper.agree({"threads": 2}) == keeper.made_by() == {"threads": 1}


def test_a_file_that_cannot_be_used(path: Path) -> None:
    path.write_text("no ledger")
    keeper = LedgerKeeper(path, False, NAME)  # it starts, so that Ray starts it again
    with pytest.raises(LedgerError, match=r"counts\.ledger"):
        keeper.streams()


class Actor:
    """An actor's handle over a keeper in this process: a call's answer is what the fake `ray.get` is given."""

    def __init__(self, keeper: LedgerKeeper) -> None:
        self._keeper = keeper

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=getattr(self._keeper, method))


def test_a_lease_whose_answer_is_lost_is_given_back(keeper: LedgerKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(answer: object, timeout: float) -> None:
        raise GetTimeoutError

    ledger = SharedLedger(Actor(keeper), timeout_s=1.0)
    with monkeypatch.context() as patch:
        patch.setattr("ray.get", lose)
        with pytest.raises(LedgerError, match="not answered within 1 s"), ledger.lease(STREAM, quota, 3):
            pass
    assert keeper.counts(STREAM).issued.total() == keeper.counts(STREAM).pooled.total() == 3


def test_a_lease_gives_back_what_was_not_committed_and_asks_for_nothing_else(
    keeper: LedgerKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[int] = []
    monkeypatch.setattr("ray.get", lambda answer, timeout: answer)
    monkeypatch.setattr(
        keeper, "release", lambda number: released.append(number) or LedgerKeeper.release(keeper, number)
    )
    ledger = SharedLedger(Actor(keeper), timeout_s=1.0)
    with ledger.lease(STREAM, quota, 3) as lease:
        lease.commit()
    assert not released
    with ledger.lease(STREAM, quota, 2):
        pass
    assert len(released) == 1
    counts = ledger.counts(STREAM)
    assert (counts.done.total(), counts.pooled.total(), counts.leased.total()) == (3, 2, 0)


def test_the_actor_finds_the_file_though_it_runs_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers don't run where who starts them does."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()

    def remote(kind: type[LedgerKeeper]) -> Any:
        def make(*arguments: Any) -> LedgerKeeper:
            monkeypatch.chdir(there)
            return kind(*arguments)

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    monkeypatch.setattr("ray.remote", remote)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "ab" * 28))
    monkeypatch.chdir(here)
    keeper: Any = start_keeper(Path("counts.ledger"), False, "a name")
    keeper.lease(7, STREAM, quota(), 1)
    keeper.close()
    assert (here / "counts.ledger").is_file()
    assert not list(there.iterdir())


def test_streams(keeper: LedgerKeeper, path: Path) -> None:
    assert keeper.streams() == []
    keeper.lease(7, STREAM, quota(), 1)
    assert keeper.streams() == [STREAM]
    with Ledger(path) as other:
        assert other.counts(STREAM).leased.total() == 1


def test_an_engine_elsewhere_has_every_attribute_of_an_engine() -> None:
    assert {field.name for field in fields(Described)} == set(Engine.__annotations__)
