"""benchmarks/ledger.py runs, and its table holds every row."""

from pathlib import Path

import ledger
import pytest
from store import load


@pytest.mark.slow  # the whole benchmark, in processes of its own; tests/sample/test_ledger*.py show the ledger
def test_every_row_is_measured(tmp_path: Path) -> None:
    ledger.main(["--rounds", "1", "--seconds", "0.02", "--folder", str(tmp_path), "--results", str(tmp_path)])
    record = load("ledger", tmp_path)
    assert record is not None
    rows = record["rows"]
    assert [(row["ledger"], row["images"]) for row in rows] == [(name, n) for name in ledger.ROWS for n in (1, 16)]
    assert all(row["draws_per_s"] > 0 for row in rows)
    assert (tmp_path / "serving.md").read_text().count("| SQLite") == 8
