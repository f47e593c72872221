"""benchmarks/embedding.py runs, and its table holds every row."""

from pathlib import Path

import embedding
import pytest
from embedding_build import Built
from store import load


@pytest.mark.slow  # the whole benchmark; test_library.py and test_installed.py show what it times
def test_every_row_is_measured(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "IMAGES", (1, 2))
    embedding.main(["--rounds", "1", "--library", str(built.build), "--results", str(tmp_path)])
    record = load("embedding", tmp_path)
    assert record is not None
    parts = {
        part: [row for row in record["rows"] if row["part"] == part]
        for part in ("throughput", "commands", "joined", "sessions")
    }
    assert len(parts["throughput"]) == 4
    assert len(parts["commands"]) == 4
    assert len(parts["joined"]) == 2
    assert len(parts["sessions"]) == 3
    assert all(row["c_images_per_s"] > 0 for row in parts["throughput"])
    assert all(row["peak_rss_mib"] > 1 for row in parts["commands"])
    assert (tmp_path / "speed.md").read_text().count("| ddm-cli, ") == 2
