"""The two flavours of TensorRT: what is installed, why the rest isn't, and what each builds."""

import sys
from pathlib import Path

import pytest

from ddm_rt.config import Precision
from ddm_rt.engine.tensorrt import flavours
from ddm_rt.errors import BackendUnavailable, DdmError

TENSORRT, RTX = flavours.TABLE["tensorrt"], flavours.TABLE["tensorrt-rtx"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Source of a module that stands in for `tensorrt`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    yield tmp_path / "tensorrt.py"
    sys.modules.pop("tensorrt", None)


def test_rtx_builds_here() -> None:
    pytest.importorskip("tensorrt_rtx")
    assert flavours.cannot_build(RTX) is None
    assert flavours.version(RTX)[0].isdigit()


@pytest.mark.parametrize("name", flavours.TABLE)
def test_a_missing_package_is_told_with_the_way_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flavour = flavours.TABLE[name]
    monkeypatch.setattr(flavours, "find_spec", lambda module: None)
    expected = f"the package {flavour.module} is not installed; pip install 'ddm-rt[{name}]'"
    assert (flavours.cannot_build(flavour) or "").startswith(expected)
    with pytest.raises(BackendUnavailable, match="is not installed; pip install"):
        flavours.load(flavour)


def test_bindings_without_their_library_are_a_reason(module: Path) -> None:
    module.write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')")
    reason = flavours.unavailable(TENSORRT)
    assert reason is not None
    assert "import of tensorrt failed: libnvinfer.so.11: cannot open" in reason
    assert "pip install" in reason


def test_a_runtime_without_a_builder_is_a_reason(module: Path) -> None:
    module.write_text("__version__ = '11.4.0'\nclass Runtime: ...")
    assert flavours.unavailable(TENSORRT) is None
    assert "tensorrt 11.4.0 is a runtime without Builder and OnnxParser" in (flavours.cannot_build(TENSORRT) or "")


def test_a_builder_without_the_compiler_of_kernels_is_a_reason(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module.write_text("__version__ = '11.4.0'\nclass Builder: ...\nclass OnnxParser: ...")
    assert flavours.cannot_build(TENSORRT) is None
    find_spec = flavours.find_spec
    monkeypatch.setattr(flavours, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    reason = flavours.cannot_build(TENSORRT) or ""
    assert reason.startswith("the package triton is not installed")
    assert "pip install 'ddm-rt[tensorrt]'" in reason
    assert flavours.unavailable(TENSORRT) is None, "a plan that is there runs without it"


def test_unknown_flavour_lists_the_choices() -> None:
    with pytest.raises(DdmError, match="'onnxruntime' has no plans to build; those that have: tensorrt, tensorrt-rtx"):
        flavours.flavour("onnxruntime")


@pytest.mark.parametrize(("given", "expected"), [("89", "sm_89"), ("sm89", "sm_89"), (" SM_120", "sm_120")])
def test_architectures_are_written_in_several_ways(given: str, expected: str) -> None:
    assert flavours.architecture(given) == expected


@pytest.mark.parametrize("given", ["", "ada", "8.9", "-1", "８９"])
def test_what_is_no_architecture_is_refused(given: str) -> None:
    with pytest.raises(DdmError, match="expected a compute capability"):
        flavours.architecture(given)


def test_unknown_architecture_lists_the_choices() -> None:
    with pytest.raises(DdmError, match="sm_90 is unknown to tensorrt-rtx; it builds for sm_75, sm_80, sm_86, sm_89, "):
        flavours.check_target(RTX, "sm_90")
    flavours.check_target(TENSORRT, "sm_90")  # the present device is all it asks


@pytest.mark.parametrize(
    ("precision", "architecture", "taken"),
    [("fp8", "sm_86", "fp32, fp16, bf16, int8"), ("bf16", "sm_75", "fp16, int8"), ("fp32", "sm_75", "fp16, int8")],
)
def test_precision_that_an_architecture_lacks(precision: str, architecture: str, taken: str) -> None:
    with pytest.raises(DdmError, match=f"precision {precision}: tensorrt-rtx on {architecture} takes {taken};"):
        flavours.check_precision(RTX, precision, architecture)


@pytest.mark.parametrize("flavour", flavours.TABLE.values(), ids=lambda flavour: flavour.name)
@pytest.mark.parametrize("precision", Precision)
def test_a_pair_that_no_row_names_is_refused_before_anything_is_built(
    flavour: flavours.Flavour, precision: Precision
) -> None:
    for architecture in ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120"):
        least = flavour.precisions.get(precision)
        if least is not None and int(architecture.removeprefix("sm_")) >= least:
            flavours.check_precision(flavour, precision, architecture)
            continue
        with pytest.raises(DdmError, match=f"precision {precision}: {flavour.name} on {architecture} takes "):
            flavours.check_precision(flavour, precision, architecture)


def test_the_plugin_takes_every_graph_in_half_precision() -> None:
    assert (
        TENSORRT.denoiser(Precision.FP16, False) == TENSORRT.denoiser(Precision.INT8, False) == "denoiser.plugin.onnx"
    )
    assert TENSORRT.denoiser(Precision.FP32, False) == RTX.denoiser(Precision.FP16, False) == "denoiser.onnx"


@pytest.mark.parametrize("precision", Precision)
def test_a_plain_plan_takes_the_graph_of_plain_operators(precision: Precision) -> None:
    assert TENSORRT.denoiser(precision, True) == RTX.denoiser(precision, True) == "denoiser.onnx"
