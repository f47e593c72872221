"""The extras of TensorRT in empty environments, as a user installs them: what they bring, and what they miss."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ddm_rt.bundle import Bundle
from ddm_rt.engine.tensorrt import plans

INSTALL_S = 900.0
_NO_INDEX = re.compile(r"error sending request|the network was disabled|dns error|Could not connect")

SLOW = pytest.mark.slow(reason="makes an environment and installs hundreds of megabytes into it")


def required(extra: str) -> dict[str, str]:
    """What the extra asks for: package -> versions."""
    found = map(Requirement, requires("ddm-rt") or ())
    return {each.name: str(each.specifier) for each in found if each.marker and each.marker.evaluate({"extra": extra})}


@pytest.mark.parametrize("extra", ["tensorrt", "tensorrt-rtx"])
def test_each_extra_brings_its_flavour_the_driver_bindings_and_the_compilers_needs(extra: str) -> None:
    assert required(extra).keys() == {extra, "cuda-bindings", "onnx", "triton"}


def _run(*line: str | Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, timeout=INSTALL_S, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = _run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, Path(__file__).parents[2], folder=folder
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("ddm_rt-*.whl"))


def environment(folder: Path, *packages: str | Path) -> Path:
    """The folder of programs of an empty environment into which uv installed the packages from PyPI."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert uv is not None, "uv is missing, which `make test` brings"
    made = _run(uv, "venv", "--quiet", "--python", sys.executable, "env", folder=folder)
    assert made.returncode == 0, made.stderr
    done = _run(uv, "pip", "install", "--quiet", "--python", "env/bin/python", *packages, folder=folder)
    if done.returncode != 0 and _NO_INDEX.search(done.stderr):
        pytest.skip(f"not installed: {', '.join(map(str, packages))}, for no package index answers")
    assert done.returncode == 0, done.stderr
    return folder / "env" / "bin"


@SLOW
def test_the_extra_of_rtx_alone_builds_the_digits(wheel: Path, tmp_path: Path) -> None:
    programs = environment(tmp_path, f"ddm-rt[tensorrt-rtx] @ {wheel.as_uri()}")
    absent = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)"
    assert _run(programs / "python", "-c", absent, folder=tmp_path).returncode == 0, "torch is no part of it"
    line = ("build", "digits", "--backend", "tensorrt-rtx", "--sm", "89", "--out", "copy")
    done = _run(programs / "ddm-rt", *line, folder=tmp_path)
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
    done = _run(programs / "ddm-rt", "build", "digits", "--backend", "tensorrt", "--out", "copy", folder=tmp_path)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "the package tensorrt is not installed; pip install 'ddm-rt[tensorrt]' on a machine that reaches" in said
    assert not (tmp_path / "copy").exists()
