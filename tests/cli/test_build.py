"""`ddm-rt build` as a user meets it: real TensorRT-RTX builds without a GPU, and one line for each mistake."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ddm_rt.bundle import INDEX, Bundle
from ddm_rt.engine.tensorrt import flavours

pytest.importorskip("tensorrt_rtx")

REAL = pytest.mark.slow(reason="a real build by the command; tests/engine has a quick one")


@pytest.fixture(scope="module")
def placed(bundle: Bundle, ddm_rt: Callable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the bundle with a plan, and what the command said. Read-only."""
    out = tmp_path_factory.mktemp("built") / "copy"
    line = ("build", bundle.path, "--backend", "tensorrt-rtx", "--sm", "89", "--batch", "1,2,4", "--out", out)
    said = ddm_rt(*line)
    assert said.code == 0, said.err
    assert said.err == ""
    assert f"plan: {out}/plans/tensorrt-rtx-sm_89\n" in said.out
    again = ddm_rt(*line)
    assert (again.code, "(up to date)" in again.out) == (0, True), again.err
    return out, said.out


@REAL
def test_it_builds_into_a_copy(placed: tuple[Path, str], bundle: Bundle) -> None:
    out, said = placed
    copy = Bundle.load(out)
    assert copy.bundle_id == bundle.bundle_id
    assert {"plans/tensorrt-rtx-sm_89/denoiser.plan", "plans/tensorrt-rtx-sm_89/key.json"} <= copy.index.files.keys()
    assert not any(name.startswith("plans/") for name in bundle.index.files)
    for name in ("conditioner", "denoiser", "decoder"):
        assert f"  {name}: " in said
    copy.check_directory("plans/tensorrt-rtx-sm_89")


@REAL
def test_other_backends_still_run_the_bundle(placed: tuple[Path, str], ddm_rt: Callable, tmp_path: Path) -> None:
    said = ddm_rt("sample", placed[0], "-n", 2, "--backend", "onnxruntime", "--out", tmp_path / "out")
    assert said.code == 0, said.err


@REAL
def test_doctor_says_whether_the_plan_fits(placed: tuple[Path, str], ddm_rt: Callable, bundle: Bundle) -> None:
    said = ddm_rt("doctor", placed[0])
    assert said.code == 0
    assert "plan tensorrt-rtx-sm_89" in " ".join(said.out.split())
    assert "plan tensorrt" not in ddm_rt("doctor", bundle.path).out


def test_the_missing_flavour_tells_how_to_install_it(
    ddm_rt: Callable, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = flavours.find_spec
    monkeypatch.setattr(flavours, "find_spec", lambda name: None if name == "tensorrt" else find_spec(name))
    refusal = ddm_rt("build", bundle.path, "--backend", "tensorrt").refusal()
    assert "the package tensorrt is not installed; pip install 'ddm-rt[tensorrt]'" in refusal
    assert "available here: tensorrt-rtx" in refusal


def test_without_triton_nothing_is_built_or_copied(
    ddm_rt: Callable, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = flavours.find_spec
    monkeypatch.setattr(flavours, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    line = ("build", bundle.path, "--backend", "tensorrt-rtx", "--sm", "75,89", "--out", tmp_path / "copy")
    refusal = ddm_rt(*line).refusal()
    assert "the package triton is not installed" in refusal
    assert "pip install 'ddm-rt[tensorrt-rtx]'" in refusal
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--sm", "90"), "architecture sm_90 is unknown to tensorrt-rtx; it builds for sm_75, sm_80"),
        (("--sm", "ada"), "architecture 'ada': expected a compute capability"),
        (("--sm", "75"), "precision fp32: tensorrt-rtx on sm_75 takes fp16, int8"),
        (("--sm", "89", "--batch", "8,4,2"), "--batch: min 8, opt 4, max 2; expected min <= opt <= max"),
        (("--sm", "89", "--batch", "1,2"), "--batch '1,2': expected MIN,OPT,MAX or one number"),
        (("--sm", "89", "--batch", "0"), "--batch '0': expected sizes of at least 1"),
        (("--sm", "89", "--size", "17"), "--size: 17 pixels; this bundle's sides are multiples of 2"),
        (("--sm", "89", "--memory-gib", "0"), "--memory-gib: 0; expected more than 0"),
        (("--sm", "89", "--timing-cache", "x"), "--timing-cache: tensorrt-rtx keeps none"),
        (("--sm", "89", "--plain"), "--plain: tensorrt-rtx has no plugin; its plans are of plain operators anyway"),
        (("--sm", "89", "--backend", "onnxruntime"), "'onnxruntime' has no plans to build"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    ddm_rt: Callable, bundle: Bundle, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    refusal = ddm_rt(
        "build", bundle.path, "--backend", "tensorrt-rtx", "--out", tmp_path / "copy", *arguments
    ).refusal()
    assert words in refusal
    assert not (tmp_path / "copy").exists()


def test_a_build_that_fails_leaves_no_copy(ddm_rt: Callable, bundle: Bundle, tmp_path: Path) -> None:
    line = ("--backend", "tensorrt-rtx", "--sm", "89", "--memory-gib", "0.06", "--out", tmp_path / "copy")
    assert (
        "the limit is 0.06 GiB (--memory-gib); a larger --memory-gib raises it"
        in ddm_rt("build", bundle.path, *line).refusal()
    )
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_bundle_is_not_written_into(ddm_rt: Callable) -> None:
    refusal = ddm_rt("build", "digits", "--backend", "tensorrt-rtx", "--sm", "89").refusal()
    assert "can't be written to; --out DIR builds into a copy" in refusal


def test_another_bundle_at_out_is_kept(ddm_rt: Callable, bundle: Bundle, tmp_path: Path) -> None:
    other = Bundle.load("digits")
    out = shutil.copytree(other.path, tmp_path / "other")
    before = (out / INDEX).read_bytes()
    refusal = ddm_rt("build", bundle.path, "--backend", "tensorrt-rtx", "--sm", "89", "--out", out).refusal()
    assert f"holds another bundle, {other.bundle_id[:12]}; choose another" in refusal
    assert (out / INDEX).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sm", "89"), "--sm: this option can't go with --backend torch"),
        (("--out", "copy"), "--out: this option can't go with --backend torch"),
        (("--plain",), "--plain: this option can't go with --backend torch"),
        (("--memory-gib", "4"), "--memory-gib: this option can't go with --backend torch"),
        (("--batch", "1,x"), "--batch 'x': expected a number of at least 1"),
        (("--batch", "0"), "--batch '0': expected a number of at least 1"),
        (("--size", "12x"), "--size '': expected a number of at least 1"),
        (("--size", "17"), "--size '17': expected HEIGHTxWIDTH or one number, multiples of "),
        (("--precision", "int8"), "it computes in the bundle's own precision, fp32"),
        (("--device", "tpu"), "device 'tpu' is unknown; expected cpu, cuda, or cuda:N"),
        (("--device", "cuda:7"), "backend 'torch' is not available: "),
    ],
)
def test_mistakes_of_a_build_for_torch(
    ddm_rt: Callable, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple, message: str
) -> None:
    monkeypatch.setenv("DDM_RT_CACHE", str(tmp_path / "cache"))
    assert message in ddm_rt("build", bundle.path, "--backend", "torch", *options).refusal()
    assert not (tmp_path / "cache").exists()


def test_options_of_torchs_build_are_not_tensorrts(ddm_rt: Callable, bundle: Bundle) -> None:
    for option, value in (("--precision", "bf16"), ("--device", "cuda:1")):
        refusal = ddm_rt("build", bundle.path, "--backend", "tensorrt-rtx", option, value).refusal()
        assert f"{option}: this option can't go with --backend tensorrt-rtx" in refusal


@pytest.mark.slow(reason="compiles C++ for minutes")
def test_a_bundle_is_compiled_for_torch_and_sampled(
    ddm_rt: Callable, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDM_RT_CACHE", str(tmp_path / "cache"))
    line = ("build", bundle.path, "--backend", "torch", "--precision", "bf16", "--batch", "2")
    made = ddm_rt(*line)
    assert made.code == 0, made.err
    assert f"compiled: {tmp_path / 'cache' / 'torch'}" in made.out
    assert "denoiser-2.pt2: bf16, x_t [2, 4, 8, 8]" in made.out
    assert ddm_rt(*line).out == made.out, "what is there is not built again"
    other = ddm_rt(*line[:-1], "1,2")
    assert "denoiser-1.pt2" in other.out, "other sizes are"
    sampled = ddm_rt(
        *("sample", bundle.path, "--backend", "torch", "--precision", "bf16", "-n", "2", "--out", tmp_path / "out")
    )
    assert sampled.code == 0, sampled.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["precision"], "compiled" in manifest["versions"]) == ("bf16", True)
