"""`ddm-rt doctor`: each backend and kernel flavour, available or the reason why not."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

from ddm_rt.bundle import Bundle
from ddm_rt.engine import backends
from ddm_rt.kernels import dispatch
from ddm_rt.workflows import doctor


def rows() -> dict[str, tuple[bool, str]]:
    return {name: (ok, detail) for name, ok, detail in doctor.checks()}


def test_every_backend_and_kernel_flavour_has_its_row() -> None:
    found = rows()
    assert {f"backend {name}" for name in backends.availability()} <= found.keys()
    flavours = {f"kernel {op}: {flavour}" for op in dispatch.TABLE for flavour in dispatch.IMPLEMENTATIONS}
    assert flavours <= found.keys()
    assert all(detail for _, detail in found.values())


def test_what_tensorrt_builds_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(
        doctor.flavours, "cannot_build", lambda flavour: None if flavour.name == "tensorrt-rtx" else "why"
    )
    found = rows()
    assert found["builds of tensorrt"] == (False, "why")
    ok, detail = found["builds of tensorrt-rtx"]
    assert ok
    assert "for sm_75, sm_80, sm_86, sm_89, sm_120, sm_121, with or without a GPU" in detail
    assert "GPU" in found


def test_a_bundle_without_plans_is_told_how_to_get_them(tiny_bundle: Bundle) -> None:
    found = {name: detail for name, _, detail in doctor.checks(tiny_bundle)}
    assert "has none; ddm-rt build makes them" in found["plans"]


@pytest.mark.parametrize(
    ("reasons", "gpu", "expected"),
    [
        ([], True, (True, "fits this machine")),
        (["it is for sm_89; this GPU is sm_86"], True, (False, "it is for sm_89; this GPU is sm_86")),
        ([], False, (False, "it fits the bundle and the installed version; no CUDA driver")),
        (["other graphs"], False, (False, "other graphs; no CUDA driver")),
    ],
)
def test_each_plan_has_its_row(
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    reasons: list[str],
    gpu: bool,
    expected: tuple[bool, str],
) -> None:
    device = doctor.cuda.DeviceInfo("RTX 4090", "sm_89", "13.0", 2**34) if gpu else None
    monkeypatch.setattr(doctor, "_gpu", lambda: (("GPU", gpu, "no CUDA driver"), device))
    monkeypatch.setattr(doctor.plans, "names", lambda bundle: ("tensorrt-rtx-sm_89",))
    monkeypatch.setattr(doctor.plans, "review", lambda bundle, name, asked: list(reasons))
    found = {name: (ok, detail) for name, ok, detail in doctor.checks(tiny_bundle)}
    assert found["plan tensorrt-rtx-sm_89"] == expected


def test_it_agrees_with_what_can_be_loaded() -> None:
    found = rows()
    for op in dispatch.TABLE:
        for flavour in dispatch.IMPLEMENTATIONS:
            ok, _ = found[f"kernel {op}: {flavour}"]
            if ok:
                assert callable(dispatch.load(op, flavour))
            else:
                with pytest.raises(RuntimeError):
                    dispatch.load(op, flavour)


def test_without_torch_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec, import_module = importlib.util.find_spec, backends.import_module

    def absent(name: str, *args: Any) -> Any:
        if name == "ddm_rt.engine.torch.engine":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return import_module(name, *args)

    monkeypatch.setattr(backends, "import_module", absent)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find_spec(name, *a))
    found = rows()
    assert found["backend torch on cpu"] == (
        False,
        "the package torch is not installed; pip install 'ddm-rt[train,gpu]'",
    )
    assert found["backend onnxruntime on cpu"] == (True, "ready")
    assert found["kernel indicator_attention: reference"] == (False, "the package torch is not installed")
    assert found["kernel guided_step: reference"][0]


def test_the_command_shows_the_table(ddm_rt: Callable) -> None:
    said = ddm_rt("doctor")
    assert said.code == 0
    assert "backend onnxruntime on cpu" in said.out
    assert "reference" in said.out
