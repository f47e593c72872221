"""`auto` and gated backends: taken where a record of this bundle, processor and version says that every gate passed."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openvino")

from ddm_rt.bundle import Bundle, add_directory
from ddm_rt.config import Precision
from ddm_rt.engine import backends, gates
from ddm_rt.engine.gates import Gate
from ddm_rt.engine.machine import processor
from ddm_rt.errors import BackendUnavailable
from ddm_rt.files import write_json


def gate(bundle: Bundle, **changes: Any) -> Gate:
    passed = Gate(
        bundle_id=bundle.bundle_id,
        backend="openvino",
        version=version("openvino"),
        processor=processor(),
        threads=2,
        against="0" * 64,
        against_backend="onnxruntime",
        judge="1" * 64,
        groups=("3", "8"),
        n=1000,
        seed=0,
        decision="equivalent",
        margin=0.03,
        fd=0.01,
        frechet=(10.0, 11.0),
        quality="equivalent",
        diversity="undecided",  # enough in the bundle's own precision
        seconds_per_image=(0.02, 0.01),
    )
    return passed.model_copy(update=changes)


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """One of the test's own, to be written to."""
    shutil.copytree(tiny_bundle.path, tmp_path / "own")
    return Bundle.load(tmp_path / "own")


def recorded(bundle: Bundle, **changes: Any) -> Bundle:
    tree = gate(bundle, **changes).model_dump()
    return add_directory(bundle, gates.place("openvino"), lambda folder: write_json(folder / "gate.json", tree))


def test_without_a_record_auto_passes_it_over_and_says_how_to_make_one(bundle: Bundle) -> None:
    choice = backends.choose(bundle)
    assert choice.row.backend == "onnxruntime"
    assert choice.reasons["openvino"].startswith("no gate is recorded for it here; `ddm-rt compare FP32_BUNDLE ")
    assert backends.load(bundle, "openvino").backend == "openvino", "by name it is there for anybody"


def test_a_gate_that_was_passed_here_lets_auto_take_it(bundle: Bundle) -> None:
    after = recorded(bundle)
    assert after.bundle_id == bundle.bundle_id
    assert backends.choose(after).row.backend == "openvino"
    assert backends.load(after).backend == "openvino"


def test_a_gate_without_all_verdicts_counts_and_says_what_it_lacks(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    after = recorded(bundle, diversity=None)
    assert backends.load(after).backend == "openvino"
    said = f"without verdicts on diversity; `ddm-rt compare FP32_BUNDLE {after.path}@backend=openvino --record`"
    assert sum(said in record.getMessage() for record in caplog.records) == 1
    caplog.clear()
    backends.load(recorded(bundle))
    assert not caplog.records


def test_half_precision_must_have_kept_both(bundle: Bundle) -> None:
    half = gate(bundle, precision=Precision.BF16)
    assert half.failures() == ["the verdict on diversity was undecided"]
    assert half.model_copy(update={"diversity": "equivalent"}).failures() == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"decision": "drift"}, "the drift gate said drift (margin 0.03)"),
        ({"decision": "undecided"}, "the drift gate said undecided"),
        ({"fd": 0.0601}, "FD was 0.060, at most 0.06 passes"),
        ({"frechet": (10.0, 11.6)}, "the Frechet distance was 11.6, 1.15 of 10 passes"),
        ({"seconds_per_image": (0.01, 0.01)}, "it was no faster (1.00 times onnxruntime)"),
        ({"diversity": "changed"}, "the verdict on diversity was changed"),
        ({"quality": "changed"}, "the verdict on quality was changed"),
        ({"processor": "an abacus"}, "its gate is recorded for processor an abacus; this is "),
        ({"version": "1.0"}, "its gate is recorded for version 1.0; this is "),
        ({"bundle_id": "2" * 64}, "its gate is recorded for bundle 2222"),
    ],
)
def test_what_did_not_pass_here_is_not_taken(bundle: Bundle, changes: dict[str, Any], reason: str) -> None:
    choice = backends.choose(recorded(bundle, **changes))
    assert choice.row.backend == "onnxruntime"
    assert reason in choice.reasons["openvino"]


def test_a_damaged_record_keeps_no_other_backend_from_running(bundle: Bundle) -> None:
    after = recorded(bundle)
    (after.path / gates.place("openvino") / "gate.json").write_text("{}")
    choice = backends.choose(Bundle.load(after.path))
    assert choice.row.backend == "onnxruntime"
    assert "gate.json" in choice.reasons["openvino"]


def test_a_bundle_that_nothing_else_runs_names_what_would(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "TABLE", tuple(row for row in backends.TABLE if row.backend == "openvino"))
    with pytest.raises(BackendUnavailable, match=r"no gate is recorded .*; available here: openvino"):
        backends.load(bundle)
