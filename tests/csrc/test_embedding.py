"""benchmarks/embedding.py runs, and its table holds every row."""

import json
from pathlib import Path

import embedding
import pytest
from embedding_build import Built


@pytest.mark.slow  # the whole benchmark; test_library.py and test_installed.py show what it times
def test_every_row_is_measured(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "IMAGES", (1, 2))
    out = tmp_path / "embedding.json"
    embedding.main(["--rounds", "1", "--library", str(built.build), "--out", str(out)])
    record = json.loads(out.read_text())
    assert len(record["throughput"]) == 4
    assert len(record["commands"]) == 4
    assert all(row["c_images_per_s"] > 0 for row in record["throughput"].values())
    assert all(row["peak_rss_mib"] > 1 for row in record["commands"].values())
    assert out.with_suffix(".md").read_text().count("| ddm-cli, ") == 2
