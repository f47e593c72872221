"""The benchmark of float32 islands: which there are, and what a line of it holds."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openvino")

import islands
import onnx
import openvino
from pages import islands as page
from store import read
from subjects import Subject

from ddm_rt.bundle import Bundle


@pytest.fixture
def subject(tiny_bundle: Bundle) -> Subject:
    return Subject(name="tiny", bundle=str(tiny_bundle.path))


def casts(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Cast" for node in model.graph.node)


def test_every_island_is_taken_away_alone_and_with_its_kind(subject: Subject) -> None:
    graphs = islands.Graphs(subject)
    own = casts(graphs.made(graphs.own))
    changes = list(graphs.changes())
    names = [change[:3] for change in changes]
    assert len(set(names)) == len(names)
    single = [model for change, kind, layer, model in changes if (change, kind) == ("without", "group norms")]
    assert len(single) == 1 + len(graphs.norms)
    assert casts(single[0]) < min(casts(model) for model in single[1:]) <= own
    assert {layer for _, kind, layer, _ in changes if kind == "block"} >= {"conv_in", "conv_out", "down_blocks.0"}


@pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this CPU has no bf16 instructions",
)
def test_lines_are_not_measured_again_and_make_a_page(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Any = islands.Graphs.changes
    monkeypatch.setattr(islands.Graphs, "changes", lambda graphs: islice(whole(graphs), 1))
    monkeypatch.setitem(islands.BATCHES, "shipped", (1, 2))
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
