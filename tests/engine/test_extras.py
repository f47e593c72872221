"""The extras of TensorRT in empty environments, as a user installs them: what they bring, and what they miss."""

import json
from importlib.metadata import requires
from pathlib import Path

import pytest
from empty_environment import SLOW, build_wheel, environment, install, run, uninstall
from packaging.requirements import Requirement

from ddm_rt.bundle import Bundle
from ddm_rt.engine.tensorrt import plans

PLACES = ("cpu", "gpu-wheel")


def required(extra: str) -> dict[str, str]:
    """What the extra asks for: package -> versions."""
    found = map(Requirement, requires("ddm-rt") or ())
    return {each.name: str(each.specifier) for each in found if each.marker and each.marker.evaluate({"extra": extra})}


@pytest.mark.parametrize("extra", ["tensorrt", "tensorrt-rtx"])
def test_each_extra_brings_its_flavour_the_driver_bindings_and_the_compilers_needs(extra: str) -> None:
    assert required(extra).keys() == {extra, "cuda-bindings", "onnx", "triton"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@SLOW
def test_the_extra_of_rtx_alone_builds_the_digits(wheel: Path, tmp_path: Path) -> None:
    programs = environment(tmp_path, f"ddm-rt[tensorrt-rtx] @ {wheel.as_uri()}")
    absent = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)"
    assert run(programs / "python", "-c", absent, folder=tmp_path).returncode == 0, "torch is no part of it"
    line = ("build", "digits", "--backend", "tensorrt-rtx", "--sm", "89", "--out", "copy")
    done = run(programs / "ddm-rt", *line, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    bundle = Bundle.load(tmp_path / "copy")
    assert plans.names(bundle) == ("tensorrt-rtx-sm_89",)
    key = plans.read_key(bundle.path / plans.ROOT / "tensorrt-rtx-sm_89" / plans.KEY)
    assert key.engines.keys() == {"conditioner", "denoiser", "decoder"}
    assert key.kernels is None, "the extra brings the compiler of kernels"
    bundle.check_directory("plans/tensorrt-rtx-sm_89")


@SLOW
def test_without_tensorrts_libraries_the_build_says_how_to_get_them(wheel: Path, tmp_path: Path) -> None:
    """They are not on PyPI. What else the extra asks for is."""
    rest = [f"{name}{versions}" for name, versions in required("tensorrt").items() if name != "tensorrt"]
    programs = environment(tmp_path, wheel, *rest)
    done = run(programs / "ddm-rt", "build", "digits", "--backend", "tensorrt", "--out", "copy", folder=tmp_path)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "the package tensorrt is not installed; pip install 'ddm-rt[tensorrt]' on a machine that reaches" in said
    assert not (tmp_path / "copy").exists()


@SLOW
def test_the_wheel_for_gpus_takes_the_other_ones_place(wheel: Path, tmp_path: Path) -> None:
    """Without a device it samples on the CPU to the same bytes, and is refused by name where a device is asked for."""
    programs = environment(tmp_path, wheel, "cuda-bindings>=12.6,<14", "triton>=3.4,<4")
    sample = (programs / "ddm-rt", "sample", "digits", "-n", "3", "--steps", "3", "--backend", "onnxruntime")
    assert run(*sample, "--out", "cpu", folder=tmp_path).returncode == 0
    refused = run(*sample, "--device", "cuda", "--out", "none", folder=tmp_path)
    assert refused.returncode == 2
    install(tmp_path, "onnxruntime-gpu")
    both = run(programs / "ddm-rt", "doctor", folder=tmp_path)
    assert "are both installed and overwrite each other's files" in " ".join(both.stdout.split())
    uninstall(tmp_path, "onnxruntime", "onnxruntime-gpu")
    install(tmp_path, "onnxruntime-gpu")
    assert run(*sample, "--out", "gpu-wheel", folder=tmp_path).returncode == 0
    names = sorted(path.name for path in (tmp_path / "cpu").glob("*.png"))
    assert len(names) == 4  # with the contact sheet
    versions = {place: json.loads((tmp_path / place / "manifest.json").read_text())["versions"] for place in PLACES}
    if len({each["onnxruntime"] for each in versions.values()}) == 1:
        assert [(tmp_path / "cpu" / name).read_bytes() for name in names] == [
            (tmp_path / "gpu-wheel" / name).read_bytes() for name in names
        ]
    refused = run(*sample, "--device", "cuda", "--out", "none", folder=tmp_path)
    assert refused.returncode == 2
    assert "libcuda.so.1 was not found" in refused.stderr or "CUDA driver" in refused.stderr
    assert not (tmp_path / "none").exists()
    script = (
        "from pathlib import Path; from ddm_rt.bundle import Bundle; from ddm_rt.engine.ort import sessions;"
        "path = Bundle.load('digits').graphs['decoder']; provider = sessions.device_provider(); assert provider;"
        "sessions.open_on_device(path, provider, 0, 1, graphs=False, half=False)"
    )
    done = run(programs / "python", "-c", script, folder=tmp_path)
    assert "ONNX Runtime took CPUExecutionProvider; expected CUDAExecutionProvider" in done.stderr
