"""The native side: configured, built and tested by CMake, with the address and undefined-behaviour sanitizers.

The driver is a fake that reads each argument as the PTX declares it; nothing here runs on a device.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toolchain import LOADER, needs

ROOT = Path(__file__).parents[2]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
pytestmark = needs(*LOADER)


def run(*command: str | Path, folder: Path) -> str:
    """The command's output; fails the test with it where the command failed. Kernels are compiled, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    options = {
        "DDM_RT_BUILD_LIBRARY": "OFF",  # which has tests of its own
        "DDM_RT_SANITIZE": "ON",
        "DDM_RT_KERNEL_ARCHITECTURES": "sm_80",
        "DDM_RT_KERNEL_OPS": "guided_step",
        "DDM_RT_KERNEL_JOBS": "1",
        "Python3_EXECUTABLE": sys.executable,
    }
    run("cmake", "-S", ROOT, "-B", folder, *(f"-D{name}={value}" for name, value in options.items()), folder=folder)
    run("cmake", "--build", folder, folder=folder)
    return folder


def launch_all_on_a_fake_driver(build: Path, pack: Path) -> int:
    """Launches every kernel of `pack`, whose PTX stands in for its cubins: that is what the fake can read."""
    manifest = json.loads((pack / "manifest.json").read_text())
    for kernel in manifest["kernels"]:
        kernel["cubin"] = kernel["ptx"]
    readable = shutil.copytree(pack, pack.with_name(f"{pack.name}-ptx"))
    (readable / "manifest.json").write_text(json.dumps(manifest))
    tests = build / "tests" / "csrc"
    return int(run(tests / "launch_all", readable, tests / "libfake_cuda.so", folder=build))


def test_host_tests_pass_under_sanitizers_on_a_fake_driver(build: Path) -> None:
    assert "100% tests passed" in run("ctest", "--output-on-failure", folder=build)


@pytest.mark.slow(reason="compiles kernels")
@needs_triton
def test_the_kernels_target_makes_a_pack_that_the_library_launches_on_a_fake_driver(build: Path) -> None:
    run("cmake", "--build", build, "--target", "kernels", folder=build)
    assert launch_all_on_a_fake_driver(build, build / "kernel-pack") == 6


@needs_triton
def test_attention_is_launched_on_a_fake_driver(build: Path, tmp_path: Path) -> None:
    program = (
        "from ddm_rt.kernels.aot import write_pack\n"
        "write_pack('pack', ['sm_90'], ['indicator_attention'], head_dims=[40, 160], dtypes=['bf16'])"
    )
    run(sys.executable, "-c", program, folder=tmp_path)
    assert launch_all_on_a_fake_driver(build, tmp_path / "pack") == 2


def test_an_architecture_that_is_no_name_is_refused(tmp_path: Path) -> None:
    command = ["cmake", "-S", ROOT, "-B", tmp_path / "b", "-DDDM_RT_KERNEL_ARCHITECTURES=native"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "expected names such as sm_90" in " ".join(done.stderr.split())
