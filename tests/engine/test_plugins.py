"""The TensorRT plugin. Its contract is exercised over the lean runtime: real bindings, no builder, nothing runs."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toolchain
from hypothesis import example, given
from hypothesis import strategies as st

from ddm_rt.engine.tensorrt import cuda, plugins
from ddm_rt.errors import DdmError
from ddm_rt.kernels.indicator_attention.table import ARCHITECTURES
from ddm_rt.kernels.ptx import read_entry, version

LEAN = Path(__file__).with_name("lean")
ARCHITECTURE = "sm_90"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")

# The package `tensorrt` on PyPI re-exports the bindings, and needs the full libraries beside them.
TENSORRT = """
import tensorrt_bindings
from tensorrt_bindings import *
from tensorrt_bindings import __version__
__path__ = list(tensorrt_bindings.__path__)
"""

SWEEP = """
from ddm_rt.engine.tensorrt import plugins
from ddm_rt.kernels.indicator_attention.table import ARCHITECTURES, HEAD_DIMS, tactics
for architecture in ARCHITECTURES:
    for head_dim in HEAD_DIMS:
        plugins.offered(head_dim, "fp16", plugins.Target(architecture))
        # Elements of bf16 are as large: the same tiles take the same memory.
        if tactics(head_dim, "bf16", architecture) != tactics(head_dim, "fp16", architecture):
            plugins.offered(head_dim, "bf16", plugins.Target(architecture))
"""

WITHOUT_SCRATCH = """
from pathlib import Path
from ddm_rt.engine.tensorrt import plugins
from ddm_rt.kernels.compiled import compile_indicator_attention
from ddm_rt.kernels.indicator_attention.table import ARCHITECTURES
for architecture in ARCHITECTURES:
    made = compile_indicator_attention(40, "fp16", architecture)
    Path(architecture).write_text(plugins.without_scratch(made.ptx))
"""

HEADER = """//
.version 8.8
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry _kernel(
{parameters}
)
.reqntid 128
{{
	.reg .b64 	%rd<2>;
	ld.param.b64 	%rd1, [_kernel_param_{read}];
	ret;
}}
"""
POINTER, INTEGER = ".param .u64 .ptr .global .align 1", ".param .u32"
CONTRACT = pytest.mark.slow(reason="compiles kernels in a process of its own")
EXPECTED = [POINTER] * 6 + [INTEGER] * 4 + [POINTER]


def folder_of(package: str) -> Path | None:
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent if found is not None and found.origin is not None else None


def ptx(kinds: list[str], read: int = 0) -> str:
    lines = (f"\t{kind} _kernel_param_{i}" for i, kind in enumerate(kinds))
    return HEADER.format(parameters=",\n".join(lines), read=read)


def in_a_process(command: list[str | Path], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in `folder` that compiles kernels, where other tests of this process may interpret them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `tensorrt`, for PYTHONPATH, and the libraries it wants, for LD_LIBRARY_PATH."""
    libraries = folder_of("tensorrt_lean_libs")
    for package in ("tensorrt_bindings", "tensorrt_lean_libs", "triton"):
        if folder_of(package) is None:
            pytest.skip(f"needs the package {package}")
    if toolchain.missing("gcc"):
        pytest.skip(toolchain.reason("gcc"))
    assert libraries is not None
    folder = tmp_path_factory.mktemp("lean")
    runtime = next(libraries.glob("libnvinfer_lean.so.*"))
    major = runtime.name.rsplit(".", 1)[1]
    for name in LIBRARIES:
        soname = f"lib{name}.so.{major}"
        command = ["cc", "-shared", "-fPIC", LEAN / "stub.c", "-o", folder / soname, f"-Wl,-soname,{soname}"]
        if name == "nvinfer":
            command += ["-Wl,--no-as-needed", runtime, f"-Wl,-rpath,{libraries}"]
        subprocess.run(command, check=True)
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.py").write_text(TENSORRT, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def lean(bindings: Path) -> dict[str, Any]:
    """What the bindings over the lean runtime answered in a process of their own."""
    command = [LEAN / "drive.py", ARCHITECTURE, bindings / "report.json"]
    done = in_a_process(command, bindings, LD_LIBRARY_PATH=str(bindings), PYTHONPATH=str(bindings))
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((bindings / "report.json").read_text(encoding="utf-8"))
    return report


def assemble(text: str, folder: Path) -> None:
    """Raises where triton's own ptxas refuses the PTX for the architecture that it names."""
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"^\.target sm_(\d+)(a?)$", text, re.MULTILINE)
    assert target is not None
    (folder / "kernel.ptx").write_text(text, encoding="utf-8")
    command = [
        get_ptxas(int(target[1])).path,
        f"--gpu-name=sm_{target[1]}{target[2]}",
        "kernel.ptx",
        "-o",
        "kernel.cubin",
    ]
    subprocess.run(command, cwd=folder, check=True)


@CONTRACT
def test_contract_over_the_lean_runtime_the_output_is_like_q(lean: dict[str, Any]) -> None:
    assert lean["unavailable"] is None
    for name, case in lean["cases"].items():
        dtype, head_dim = name.split("-")
        theirs = {"fp16": "HALF", "bf16": "BF16"}[dtype]
        assert case["output"] == [[2, 37, 3, int(head_dim)], [8, 4096, 3, int(head_dim)]]
        assert case["types"] == [*[theirs] * 5, "FLOAT", theirs]
        assert case["formats"] == ["LINEAR"]


@CONTRACT
def test_contract_over_the_lean_runtime_offers_tiles_of_the_table_as_tactics(lean: dict[str, Any]) -> None:
    for name, case in lean["cases"].items():
        assert case["tactics"], name
        assert set(case["tactics"]) <= set(range(1, lean["table"][name] + 1)), "0 is TensorRT's own"
        shared = {kernel["launch"][0]["shared_mem"] for kernel in case["kernels"].values()}
        assert max(shared) <= plugins.MAX_SHARED_BYTES
    assert max(len(case["tactics"]) for case in lean["cases"].values()) > 1
    names = [kernel["entry"] for case in lean["cases"].values() for kernel in case["kernels"].values()]
    assert len(set(names)) == len(names)


@CONTRACT
def test_contract_over_the_lean_runtime_the_kernel_takes_what_tensorrt_passes(lean: dict[str, Any]) -> None:
    """Inputs, 32-bit integers, output: kinds and number as the final PTX declares them."""
    for case in lean["cases"].values():
        for kernel in case["kernels"].values():
            entry = read_entry(kernel["ptx"])
            passed = [("pointer", 8)] * len(plugins.INPUTS) + [("i32", bits // 8) for bits in kernel["bits"]]
            assert list(entry.parameters) == [*passed, ("pointer", 8)]
            assert entry.name == kernel["entry"]
            assert entry.threads == kernel["launch"][0]["block_x"]
            assert kernel["integers"] == [[37, 5, 4, 3], [4096, 77, 16, 3]], "queries, text, indicator, heads"


@CONTRACT
def test_contract_over_the_lean_runtime_the_grid_covers_queries_and_heads(lean: dict[str, Any]) -> None:
    for case in lean["cases"].values():
        for kernel in case["kernels"].values():
            small, large = kernel["launch"]
            block_m = 4096 // large["grid_x"]
            assert 4096 % large["grid_x"] == 0
            assert small["grid_x"] == -(-37 // block_m)
            assert (small["grid_y"], large["grid_y"]) == (2 * 3, 8 * 3)
            assert {small[axis] for axis in ("grid_z", "block_y", "block_z")} == {1}


@CONTRACT
def test_contract_over_the_lean_runtime_every_kernel_assembles(lean: dict[str, Any], tmp_path: Path) -> None:
    """A compile check, not a run: without the scratch parameters."""
    for case in lean["cases"].values():
        for kernel in case["kernels"].values():
            assemble(kernel["ptx"], tmp_path)
    assert {version(text) for text in lean["older"].values()} == {87}


@CONTRACT
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("float32", "dtype float32 is not float16 or bfloat16; the bundle needs a plan with plain operators"),
        ("mixed", "dtypes bfloat16, float16 are mixed"),
        ("head dim", "head dim 48 is not one of 16, 32,"),
        ("dynamic head dim", "head dim of q is not known"),
        ("indicator tokens", "indicator tokens is 17, not 1 to 16"),
        ("grid", "batch times heads is 65538, not 1 to 65535"),
        ("rank", "q has 3 axes, expected 4"),
        ("tactic", "tactic 99 was not offered; expected one of [1"),
        ("just in time", "JIT implementation requested, but not defined"),
        ("architecture", "architecture 'sm_70' is not shipped; choices: sm_80,"),
        ("ptx version", "ptx_version 50 is not for sm_90"),
        ("second target", "in a process of its own"),
        ("signature", "is not consistent with the expected input arg schema (q, k, v, k_ind, v_ind, scale, outputs)"),
    ],
)
def test_contract_over_the_lean_runtime_refuses(lean: dict[str, Any], what: str, words: str) -> None:
    assert words in lean["refused"][what]


@pytest.mark.parametrize("surplus", [0, 1, 2])
def test_unread_scratch_parameters_are_taken_from_the_ptx(surplus: int) -> None:
    stripped = plugins.without_scratch(ptx([*EXPECTED, *[POINTER] * surplus]))
    assert stripped == ptx(EXPECTED)


def test_a_scratch_parameter_that_is_read_is_refused() -> None:
    with pytest.raises(ValueError, match="reads its scratch parameter _kernel_param_12"):
        plugins.without_scratch(ptx([*EXPECTED, POINTER, POINTER], read=12))


@given(kinds=st.lists(st.sampled_from([POINTER, INTEGER]), min_size=1, max_size=14), read=st.integers(0, 13))
@example(kinds=[*EXPECTED[:6], POINTER, *EXPECTED[6:]], read=0)
@example(kinds=EXPECTED[:-1], read=0)
def test_what_remains_is_what_tensorrt_passes_or_the_ptx_is_refused(kinds: list[str], read: int) -> None:
    text = ptx(kinds, read)
    if kinds[:11] == EXPECTED and (read < 11 or read >= len(kinds)):
        assert plugins.without_scratch(text) == ptx(EXPECTED, read)
    else:
        with pytest.raises(ValueError, match=r"TensorRT (passes pointer|doesn't pass)"):
            plugins.without_scratch(text)


@pytest.mark.parametrize("driver", ["11.8", "12.0", "12.5", "12.6", "12.7", "12.9", "13.0", "13.1"])
def test_the_newest_ptx_of_a_driver_is_what_nvidias_own_table_says(driver: str) -> None:
    utils = pytest.importorskip("cuda.bindings.utils")
    major, minor = map(int, driver.split("."))

    def least_driver(ptx: int) -> int:
        return utils.get_minimal_required_cuda_ver_from_ptx_ver(f"{ptx // 10}.{ptx % 10}")

    newest = plugins.newest_ptx(driver)
    assert least_driver(newest) <= 1000 * major + 10 * minor
    following = 10 * (newest // 10 + 1) if newest in (78, 88) else newest + 1
    assert least_driver(following) > 1000 * major + 10 * minor


def test_a_fake_drivers_version_limits_the_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    device = cuda.DeviceInfo(name="fake", architecture="sm_90", driver_version="12.8", memory_bytes=0)
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(cuda, "device_info", lambda: device)
    assert plugins.driver_ptx() == 87
    monkeypatch.setattr(cuda, "unavailable", lambda: "no CUDA driver")
    assert plugins.driver_ptx() is None


@pytest.mark.parametrize("driver", ["", "13", "10.2", "13.0.1", "new"])
def test_a_driver_version_that_is_none_is_named(driver: str) -> None:
    with pytest.raises(DdmError, match=r"of the driver: expected 11\.0 or later"):
        plugins.newest_ptx(driver)


def test_the_node_that_export_writes_is_this_plugin() -> None:
    onnx = pytest.importorskip("onnx")
    from ddm_rt.export import plugin_node

    (function,) = plugin_node.spelled_out(onnx.ModelProto()).functions
    assert (function.domain, function.name) == (plugins.NAMESPACE, plugins.NAME)
    assert tuple(function.input) == plugins.INPUTS
    assert {"plugin_namespace", "aot"} == set(function.attribute)


def test_bindings_without_their_libraries_are_a_plain_reason(bindings: Path) -> None:
    script = "from ddm_rt.engine.tensorrt import plugins; print(plugins.unavailable())"
    done = in_a_process(["-c", script], bindings, PYTHONPATH=str(bindings), LD_LIBRARY_PATH="")
    assert re.fullmatch(r"tensorrt.plugin doesn't import: libnv\w+\.so.*\n", done.stdout), done.stdout + done.stderr


def test_without_tensorrt_the_reason_is_plain() -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed here")
    assert "needs the package tensorrt" in (plugins.unavailable() or "")
    with pytest.raises(DdmError, match="needs the package tensorrt"):
        plugins.register(ARCHITECTURE)


@pytest.mark.slow  # compiles the whole table, several tiles each
def test_every_head_dim_has_a_tile_that_a_plugin_can_launch(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    done = in_a_process(["-c", SWEEP], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # compiles for six architectures; over the lean runtime the same is shown of one
def test_every_architectures_kernel_assembles(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    done = in_a_process(["-c", WITHOUT_SCRATCH], tmp_path)
    assert done.returncode == 0, done.stderr
    for architecture in ARCHITECTURES:
        text = (tmp_path / architecture).read_text(encoding="utf-8")
        assert f".target {architecture}" in text
        assert [kind for kind, _ in read_entry(text).parameters] == list(plugins.PARAMETERS)
        assemble(text, tmp_path)
