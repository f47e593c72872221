"""The steering benchmark: what it times takes what a graph takes, and its page stands beside the trained codes."""

import shutil
from pathlib import Path

import pytest
from pages import steering as pages
from steering import BATCH, CELLS, KEY, _feed, timed
from store import RESULTS, read

from ddm_rt.bundle import Bundle
from ddm_rt.graph_files import open_session


def test_a_steered_graph_is_fed_what_it_takes(steered_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(steered_bundle.graphs["denoiser"])
    feed = _feed(session)
    assert {name: len(array) for name, array in feed.items()} == dict.fromkeys(feed, BATCH)
    assert session.run(None, feed)[0].shape == feed["x_t"].shape
    monkeypatch.setattr("steering.ROUNDS", 2)
    found = timed(steered_bundle, steered_bundle)
    assert len(found["ratio"]) == 3
    assert found["plain_ms"][1] > 0


def test_the_page_has_the_trained_codes_beside_the_steered(tmp_path: Path) -> None:
    for name in ("balance.jsonl", "latent_digits.jsonl", "steering.jsonl"):
        shutil.copy(RESULTS / name, tmp_path)
    text = pages.page(tmp_path)
    lines = read(tmp_path / "steering.jsonl")
    for line in lines:
        assert f"| {line['set']} | {line['model']} | steered: {line['site']}, strength" in text
        assert f"| {line['set']} | {line['model']} | codes | 2 |" in text
    assert {tuple(line[name] for name in KEY) for line in lines} <= {tuple(cell) for cell in CELLS}
