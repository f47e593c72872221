"""The benchmark of float32 islands: which there are, and what a line of it holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino")

import islands
import onnx
import openvino
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
def test_lines_are_not_measured_again_and_make_a_page(subject: Subject, tmp_path: Path) -> None:
    # In a process of its own: torch's training in one that has measured ended with a segmentation fault.
    line = [sys.executable, str(Path(__file__).with_name("islands_alone.py")), subject.bundle, str(tmp_path)]
    done = subprocess.run(
        line, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
