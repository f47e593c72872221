"""Measures two lines of islands.py in a process of its own, and checks them: `test_islands.py` runs it."""

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import islands
from pages import islands as page
from store import read
from subjects import Subject


def main(bundle: str, tmp_path: Path) -> None:
    subject = Subject(name="tiny", bundle=bundle)
    whole: Any = islands.Graphs.changes
    islands.Graphs.changes = lambda graphs: islice(whole(graphs), 1)  # type: ignore[method-assign]
    islands.BATCHES["shipped"] = (1, 2)
    stamp = {"processor": "none", "openvino": "1", "commit": "c"}
    islands.measure("shipped", subject, 1, tmp_path, stamp)
    lines = read(tmp_path / "islands.jsonl")
    assert [line["change"] for line in lines] == ["none", "hint", "tuned", "without", "rounded", "rounded", "rounded"]
    assert all(line["images"] == 2 and line["error_ratio"][1] > 0 for line in lines)
    islands.measure("shipped", subject, 1, tmp_path, {"commit": "d"})
    assert read(tmp_path / "islands.jsonl") == lines
    (tmp_path / "step.jsonl").touch()
    text = page.page(tmp_path)
    assert "| without timesteps |" in text
    assert "| OpenVINO's hint |" in text


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
