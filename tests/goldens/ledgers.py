"""A ledger of the digits bundle after some requests, and what is drawn from it next."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from ddm_rt.bundle import Bundle
from ddm_rt.sample.balance.assignment import Weights, by_codes, by_top_codes, code_tree
from ddm_rt.sample.balance.ledger import Counts, Ledger, Stream
from ddm_rt.sample.calibration.calibration import Calibration

_TABLES = {
    "streams": "SELECT number, bundle_id, scope, target, calibration_id, counts FROM streams ORDER BY number",
    "draws": "SELECT stream, position, code, owner, lease FROM draws ORDER BY stream, position",
    "owners": "SELECT name FROM owners ORDER BY name",
}


class Streams:
    """The streams of a digits bundle with the goldens' calibration."""

    def __init__(self, bundle: Bundle, calibration: Calibration, calibration_id: str) -> None:
        tree, wanted = code_tree(bundle), calibration.targets[-1]
        self._bundle_id = bundle.bundle_id
        self._weights = {
            "uniform": by_top_codes(tree, "uniform"),
            "shares": by_top_codes(tree, "code:0=.3,code:1=.7"),
            "groups": by_codes(tree, wanted.target, wanted.code_weights, calibration_id),
        }

    def draw(self, ledger: Ledger, scope: str, target: str, n: int) -> Any:
        """A lease of `n` draws."""
        return ledger.lease(self.stream(scope, target), self._weights[target].quota, n)

    def stream(self, scope: str, target: str) -> Stream:
        weights: Weights = self._weights[target]
        return Stream(self._bundle_id, scope, weights.target, weights.calibration_id)


def fill(path: Path, streams: Streams, out: Path) -> None:
    """Draw from a new ledger at `path`; its state goes to `out`, as one file, with a request under way."""
    with Ledger(path, owner="till") as ledger:
        for scope, target, n, done in (
            ("shop", "uniform", 10, True),
            ("shop", "uniform", 5, False),
            ("shop", "uniform", 2, True),
            ("shop", "shares", 33, True),
            ("campaign", "groups", 12, True),
            ("campaign", "uniform", 8, False),
        ):
            with streams.draw(ledger, scope, target, n) as lease:
                if done:
                    lease.commit()
        with streams.draw(ledger, "campaign", "groups", 3), closing(sqlite3.connect(path)) as source:
            out.unlink(missing_ok=True)
            with closing(sqlite3.connect(out)) as copy:
                source.backup(copy)


def go_on(path: Path, streams: Streams) -> dict[str, Any]:
    """Further requests to the ledger at `path`: what they draw, where the streams stand, and the file's rows."""
    draws, seen = [], []
    with Ledger(path, owner="next") as ledger:
        for scope, target, n, done in (
            ("shop", "uniform", 9, True),
            ("shop", "shares", 6, False),
            ("shop", "shares", 4, True),
            ("campaign", "groups", 7, True),
            ("campaign", "uniform", 5, True),
            ("fair", "uniform", 11, True),
        ):
            stream = streams.stream(scope, target)
            with streams.draw(ledger, scope, target, n) as lease:
                draws.append({"scope": scope, "target": target, "draws": [list(draw) for draw in lease.draws]})
                if done:
                    lease.commit()
            if stream not in seen:
                seen.append(stream)
        counts = {f"{stream.scope} {stream.target}": _plain(ledger.counts(stream)) for stream in seen}
        known = [list(stream) for stream in ledger.streams()]
    with closing(sqlite3.connect(path)) as connection:
        rows = {name: [list(row) for row in connection.execute(query)] for name, query in _TABLES.items()}
    return {"draws": draws, "counts": counts, "streams": known, "rows": rows}


def _plain(counts: Counts) -> dict[str, dict[str, int]]:
    """As JSON has them."""
    kinds = {"issued": counts.issued, "leased": counts.leased, "pooled": counts.pooled}
    return {kind: {str(code): n for code, n in sorted(each.items())} for kind, each in kinds.items()}
