"""A server whose ledger can't be used says so, and goes on when it can."""

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, fake_bundle
from http_server import GENERATIONS, client_of
from ledger_processes import quota

from ddm_rt.errors import LedgerError
from ddm_rt.sample.balance.ledger import Ledger, Stream
from ddm_rt.sample.pipeline import Pipeline

MANY = {"n": 40}


def total(client: Any) -> dict[str, int]:
    [stream] = client.get("/v1/balance").json()["data"]
    counts: dict[str, int] = stream["assigned"]
    return counts


def positions(reply: Any) -> list[int]:
    return [image["position"] for image in reply.json()["manifest"]["images"]]


def test_a_ledger_without_a_folder_is_refused_at_start(tmp_path: Path) -> None:
    with Ledger(tmp_path / "nodir" / "x") as ledger, pytest.raises(LedgerError, match="nodir"):
        ledger.check()


def test_a_ledger_is_made_at_start(tmp_path: Path) -> None:
    with Ledger(tmp_path / "x") as ledger:
        ledger.check()
        assert (tmp_path / "x").is_file()
        ledger.check()


def test_a_full_disk_is_told_and_ends(tmp_path: Path) -> None:
    """SQLite has a limit on pages that refuses writes as a full disk does: "database or disk is full"."""
    with Ledger(tmp_path / "x") as ledger:
        pipeline = Pipeline(fake_bundle(), FakeEngine(), ledger)
        with client_of(pipeline) as client:
            first = client.post(GENERATIONS, json={"n": 2})
            assert positions(first) == [0, 1]
            connection = ledger._connection
            assert isinstance(connection, sqlite3.Connection)
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
            refused = client.post(GENERATIONS, json=MANY)
            while refused.status_code == 200:  # until its pages are full
                refused = client.post(GENERATIONS, json=MANY)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "ledger_unavailable"
            assert int(refused.headers["retry-after"]) >= 1
            assert "x-should-retry" not in refused.headers
            done = total(client)
            assert done["issued"] == done["done"], "nothing was drawn for what was refused"
            connection.execute("PRAGMA max_page_count = 1000000")
            assert client.get("/readyz").status_code == 200
            after = client.post(GENERATIONS, json=MANY)
            assert positions(after) == list(range(done["issued"], done["issued"] + 40)), "none is lost or drawn twice"


class Failing(Ledger):
    """Works, until it is told not to."""

    works = True

    def _transaction(self) -> Any:
        if not self.works:
            raise LedgerError("ledger counts: disk I/O error")
        return super()._transaction()


def test_readiness_follows_the_ledger() -> None:
    ledger = Failing()
    with client_of(Pipeline(fake_bundle(), FakeEngine(), ledger)) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        ledger.works = False
        assert client.get("/readyz").status_code == 200, "nobody has asked the ledger yet"
        assert client.post(GENERATIONS, json={}).status_code == 503
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "ledger_unavailable"})
        assert client.get("/healthz").status_code == 200, "a restart would not help"
        assert client.post(GENERATIONS, json={"balance": "off", "scope": None}).status_code == 200
        ledger.works = True
        assert client.get("/readyz").status_code == 200
        assert client.post(GENERATIONS, json={}).status_code == 200


def test_a_ledger_that_fails_at_the_end_gives_the_draws_back() -> None:
    ledger = Failing()

    class Last(FakeEngine):
        """The ledger fails once the images are decoded."""

        def images(self, *arguments: Any) -> Any:
            ledger.works = False
            return super().images(*arguments)

    with client_of(Pipeline(fake_bundle(), Last(), ledger)) as client:
        ledger.works = True
        failed = client.post(GENERATIONS, json={"n": 3})
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "ledger_unavailable")
        ledger.works = True
        assert total(client) == {"issued": 3, "done": 0, "in_progress": 0, "pooled": 3}


def test_a_disk_that_is_nearly_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may have room where a request's draws have none."""

    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Ledger(tmp_path / "x") as ledger:
        ledger.check()
        monkeypatch.setattr("tempfile.TemporaryFile", full)
        with pytest.raises(LedgerError, match=r"cannot be written \(No space left"):
            ledger.check()


def test_a_scope_is_found_among_more_than_are_listed() -> None:
    ledger = Ledger()
    for number in range(3):
        with ledger.lease(Stream("ab" * 32, f"scope {number}", "uniform"), quota, 1) as lease:
            lease.commit()
    assert [stream.scope for stream in ledger.streams(most=2)] == ["scope 0", "scope 1"]
    assert [stream.scope for stream in ledger.streams("scope 2", most=2)] == ["scope 2"]
