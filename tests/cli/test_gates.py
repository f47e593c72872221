"""`ddm-rt compare --record`: what it refuses, what it keeps in the bundle, and what `auto` and `doctor` make of it."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("openvino")

from ddm_rt.bundle import Bundle, write_bundle
from ddm_rt.engine import backends
from ddm_rt.engine.cpu.openvino import OpenVinoEngine
from ddm_rt.engine.gates import read
from ddm_rt.files import asset, write_json
from ddm_rt.workflows.doctor import checks

LINE = ("compare", "--threads", 1, "--record")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The shipped bundle with two steps by default: one that may be written to."""

    def fill(folder: Path) -> None:
        shutil.copytree(asset("digits"), folder, dirs_exist_ok=True)
        (folder / "bundle.json").unlink()
        tree = json.loads((folder / "runtime.json").read_bytes())
        tree["sampling"]["num_steps"] = 2
        write_json(folder / "runtime.json", tree)

    return write_bundle(tmp_path / "own", fill, {}).path


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ("digits", "digits", (), "names nothing that `auto` takes by its gates; expected BUNDLE@backend=openvino"),
        ("digits", "digits@backend=openvino,steps=4", (), "sets num_steps; the gate is about the bundle"),
        ("digits@guidance=2", "digits@backend=openvino", (), "sets indicator_guidance_scale"),
        ("digits@backend=openvino", "digits@backend=openvino", (), "expected an fp32 bundle, on none of: openvino"),
        ("digits", "digits@backend=openvino", ("--rounds", 0), "needs a --reference, --rounds of at least 1"),
        ("digits", "digits@backend=openvino", ("--reference", "none"), "needs a --reference"),
        ("digits", "digits@backend=openvino", ("--balance", "off"), "the target uniform and balance"),
        ("digits", "digits@backend=openvino,precision=int8", (), "is converted for this comparison alone"),
        ("digits", "digits@backend=openvino", (), "can't be written to; give a copy of the bundle"),
        (
            "digits",
            "digits@backend=torch,precision=bf16,device=cpu",
            (),
            "computes on a CPU, where `auto` never rounds",
        ),
    ],
)
def test_what_says_nothing_about_serving_is_refused(ddm_rt, a: str, b: str, options: tuple, message: str) -> None:
    assert message in ddm_rt(*LINE, *options, a, b).refusal()


def test_the_record_is_in_the_bundle_and_auto_reads_it(ddm_rt, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVinoEngine, "max_batch", 8)  # graphs are compiled for each size
    before = Bundle.load(own)
    said = ddm_rt(*LINE, own, f"{own}@backend=openvino", "-n", 32, "--rounds", 1)
    assert said.code == 3, said.err
    assert f"recorded in {own}: openvino, auto does not take it: the drift gate said undecided" in said.out
    after = Bundle.load(own)
    assert after.bundle_id == before.bundle_id
    gate = read(after, "openvino")
    assert gate is not None
    assert (gate.bundle_id, gate.backend, gate.n, gate.groups) == (before.bundle_id, "openvino", 32, ("3", "8"))
    assert 0 <= gate.fd <= 0.5
    choice = backends.choose(after)
    assert choice.row.backend == "onnxruntime"
    assert "it didn't pass its gates here: the drift gate said undecided" in choice.reasons["openvino"]
    rows = {name: detail for name, _, detail in checks(after)}
    assert rows["backend auto"].startswith("onnxruntime on cpu in fp32; not ")
    assert "the drift gate said undecided" in rows["backend auto"]
