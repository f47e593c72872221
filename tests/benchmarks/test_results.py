"""What is committed in benchmarks/results: pages are what their lines give, and lines are put where they belong."""

import json
import re
from pathlib import Path

import pytest
import render
import store

BY_HAND = {"README.md", "development.md", "distill.md"}


def test_pages_are_those_that_the_lines_give() -> None:
    made = render.pages()
    assert made.keys() == render.PAGES.keys()
    for page, text in made.items():
        there = (store.RESULTS / page).read_text("utf-8")
        assert there == text, f"{page} is not what its lines give: run python benchmarks/render.py"
    data = {f"{name}.jsonl" for name, _ in render.PAGES.values()}
    assert {path.name for path in store.RESULTS.iterdir()} == made.keys() | data | BY_HAND


def test_every_file_is_described_and_every_line_is_compact() -> None:
    described = (store.RESULTS / "README.md").read_text("utf-8")
    for path in store.RESULTS.glob("*.jsonl"):
        assert f"| {path.name} |" in described
        for line in path.read_text("utf-8").splitlines():
            assert line == json.dumps(json.loads(line), ensure_ascii=False, separators=(",", ":"))


def test_documents_link_to_pages_that_are_there() -> None:
    root = store.RESULTS.parents[1]
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for link in re.findall(r"\((benchmarks/results/[^)#]+)", (root / document).read_text("utf-8")):
            assert (root / link).is_file(), f"{document}: {link}"


def test_a_line_takes_the_place_of_its_own_and_of_no_other(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    first, other, again = ({"set": name, "value": value} for name, value in (("a", 1), ("b", 2), ("a", 3)))
    store.put(path, [first], "set")
    store.put(path, [other], "set")
    store.put(path, [again], "set")
    assert store.read(path) == [again, other]


def test_a_study_is_read_as_it_was_saved_beside_others(tmp_path: Path) -> None:
    record = {"commit": "c", "rows": [{"n": 1, "share": 0.25}, {"n": 2, "share": None}]}
    store.save("drift", record, tmp_path)
    store.save("precision", {"commit": "d"}, tmp_path)
    store.save("drift", record | {"commit": "e"}, tmp_path)
    assert store.load("drift", tmp_path) == record | {"commit": "e"}
    assert store.load("precision", tmp_path) == {"commit": "d", "rows": []}
    assert store.load("drift gate", tmp_path) is None
    assert len(store.read(tmp_path / "drift.jsonl")) == 4


def test_numbers_are_rounded_and_no_number_is_refused(tmp_path: Path) -> None:
    assert store.rounded({"a": [1 / 3, 123456789, 0.1]}) == {"a": [0.3333333, 123456789, 0.1]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.put(tmp_path / "cells.jsonl", [{"set": "a", "value": float("nan")}], "set")
    assert list(tmp_path.iterdir()) == []
