"""Every shipped configuration compiles, and is what its manifest says. Compiled, never run: no device is involved.

The default run compiles two head dims for sm_90 in fp16 and one for sm_100 in bf16, and the sampler's step for one
architecture; the slow tests compile everything that ships.
"""

import ast
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from ddm_rt.kernels import aot
from ddm_rt.kernels.guided_step.table import variants
from ddm_rt.kernels.indicator_attention.table import ARCHITECTURES, DTYPES, HEAD_DIMS, tactics
from ddm_rt.kernels.pack import STEP_OPS, Kernel, Pack, read_pack
from ddm_rt.kernels.projected_guidance.table import BRANCHES

KERNELS = Path(__file__).parents[2] / "kernels"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

# What one block may use, from NVIDIA's table of compute capabilities.
SHARED_KIB = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}

# One fresh process for all of the default run: the tests' own has Triton's interpreter in the compiler's place.
PROGRAM = """
import json
from ddm_rt.kernels.aot import write_pack
from ddm_rt.kernels.compiled import AotError, compile_guided_step, compile_indicator_attention
from ddm_rt.kernels.pack import STEP_OPS

attention = ["indicator_attention"]
write_pack("near", ["sm_90"], attention, head_dims=[40, 160], dtypes=["fp16"])
write_pack("far", ["sm_100"], attention, head_dims=[160], dtypes=["bf16"])
write_pack("step", ["sm_90"], STEP_OPS)
try:
    compile_guided_step(1, False, "sm_80", ptx_version=99)
except AotError as error:
    refusal = str(error)
older = compile_guided_step(1, False, "sm_80", ptx_version=70)
tactic = compile_indicator_attention(64, "fp16", "sm_80", TACTIC)
facts = {"refusal": refusal, "older": older.kernel.ptx_version, "text": older.ptx}
print(json.dumps(facts | {"tile": tactic.kernel.tile, "warps": tactic.kernel.num_warps}))
"""


def compile_apart(*arguments: str, folder: Path, **variables: str) -> str:
    """Runs Python with `arguments` in `folder`, without the interpreter's variable; returns its output."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder with the default run's three packs, and facts that the program prints."""
    folder = tmp_path_factory.mktemp("packs")
    tactic = (
        f"__import__('ddm_rt.kernels.indicator_attention.table', fromlist=['Tile']).{tactics(64, 'fp16', 'sm_80')[1]!r}"
    )
    output = compile_apart("-c", PROGRAM.replace("TACTIC", tactic), folder=folder)
    return folder, json.loads(output.splitlines()[-1])


def declared(op: str) -> list[str]:
    """The arguments of the op's kernel in its source, without those that are fixed at compilation."""
    tree = ast.parse((KERNELS / op / "fused.py").read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "_kernel")
    return [argument.arg for argument in function.args.args if argument.annotation is None]


def check_gates(pack: Pack, kernels: Iterable[Kernel]) -> None:
    """Rung L2: spills, shared memory, tensor cores and the parameter list of each kernel."""
    for kernel in kernels:
        assert kernel.spill_bytes == 0, f"{kernel.name} spills {kernel.spill_bytes} bytes"
        assert kernel.shared_bytes <= SHARED_KIB[kernel.architecture] * 1024, kernel.name
        assert (kernel.tensor_core is not None) == (kernel.op == "indicator_attention"), kernel.name
        text = (pack.path / kernel.ptx.file).read_text(encoding="utf-8")
        start = text.index(".visible .entry")
        head = text[start : text.index("{", start)]
        types = re.findall(r"\.param \.(\w+)", head)
        kinds = {"pointer": "u64", "scratch": "u64", "i32": "u32"}
        assert types == [kinds[argument.kind] for argument in kernel.arguments], kernel.name
        given = [argument for argument in kernel.arguments if argument.kind != "scratch"]
        assert [argument.name for argument in given] == declared(kernel.op), kernel.name
        assert [argument.name for argument in given if argument.kind == "i32"] == [
            name for name in declared(kernel.op) if name.startswith("n_")
        ]
        # A null scratch pointer is only right where nothing reads it.
        for index in range(len(given), len(kernel.arguments)):
            assert f"[{kernel.entry}_param_{index}]" not in text, kernel.name
        assert f".reqntid {32 * kernel.num_warps}\n" in head, kernel.name


# Names of tensor-core instructions.
INSTRUCTIONS = {"sm_80": "HMMA", "sm_90": "HMMA|HGMMA", "sm_100": "UTCHMMA", "sm_120": "HMMA"}


def check_machine_code(kernels: Pack, architecture: str) -> None:
    """The cubin itself holds tensor-core instructions and the registers that the manifest names."""
    import triton

    kernel = next(kernel for kernel in kernels.kernels if (kernel.architecture, kernel.head_dim) == (architecture, 160))
    cubin = kernels.path / kernel.cubin.file
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def show(tool: str, *options: str) -> str:
        return subprocess.run([tools / tool, *options, cubin], capture_output=True, text=True, check=True).stdout

    assert re.search(rf"\b(?:{INSTRUCTIONS[architecture]})\b", show("nvdisasm", "-c"))
    assert f"REG:{kernel.registers} " in show("cuobjdump", "-res-usage")


@needs_triton
def test_shipped_kernels_pass_the_gates(compiled: tuple[Path, dict]) -> None:
    folder, _ = compiled
    packs = [read_pack(folder / name) for name in ("near", "far", "step")]
    assert [len(pack.kernels) for pack in packs] == [2, 1, len(variants()) + len(BRANCHES)]
    for pack in packs:
        check_gates(pack, pack.kernels)


@needs_triton
@pytest.mark.parametrize(("pack", "architecture"), [("near", "sm_90"), ("far", "sm_100")])
def test_machine_code_agrees_with_the_manifest(compiled: tuple[Path, dict], pack: str, architecture: str) -> None:
    check_machine_code(read_pack(compiled[0] / pack), architecture)


@pytest.mark.slow(reason="compiles kernels twice")
@needs_triton
def test_a_pack_is_the_same_bytes_again_and_names_no_folder(compiled: tuple[Path, dict], tmp_path: Path) -> None:
    """Through the command, over two processes and with variables that sway Triton: equal input, equal pack."""
    command = [
        "-m",
        "ddm_rt.kernels.aot",
        "--arch",
        "sm_90",
        "--ops",
        ",".join(STEP_OPS),
        "--out",
        "again",
        "--jobs",
        "2",
    ]
    variables = {"TRITON_OVERRIDE_ARCH": "sm80", "TRITON_DEFAULT_FP_FUSION": "0"}
    assert compile_apart(*command, folder=tmp_path, **variables) == "again\n"
    first = sorted((compiled[0] / "step").iterdir())
    again = sorted((tmp_path / "again").iterdir())
    assert [path.name for path in first] == [path.name for path in again]
    for one, other in zip(first, again, strict=True):
        content = one.read_bytes()
        assert hashlib.sha256(content).digest() == hashlib.sha256(other.read_bytes()).digest(), one.name
        assert str(KERNELS.parent).encode() not in content
        assert str(compiled[0]).encode() not in content
    assert list(tmp_path.iterdir()) == [tmp_path / "again"]


@needs_triton
def test_a_ptx_version_is_taken_or_refused(compiled: tuple[Path, dict]) -> None:
    facts = compiled[1]
    assert facts["older"] == 70
    assert ".version 7.0\n" in facts["text"]
    assert facts["refusal"].startswith("ptxas refused a kernel for sm_80: Unsupported .version 9.9")


@needs_triton
def test_a_tactic_is_compiled_as_asked(compiled: tuple[Path, dict]) -> None:
    tile = tactics(64, "fp16", "sm_80")[1]
    expected = {"block_m": tile.block_m, "block_n": tile.block_n, "num_stages": tile.num_stages}
    assert (compiled[1]["tile"], compiled[1]["warps"]) == (expected, tile.num_warps)


@pytest.mark.slow
@needs_triton
def test_everything_that_ships_passes_the_gates(tmp_path: Path) -> None:
    """Slow: 144 compilations, a minute of processor time."""
    command = ["-m", "ddm_rt.kernels.aot", "--arch", ",".join(ARCHITECTURES), "--out", "pack", "--jobs", "2"]
    compile_apart(*command, folder=tmp_path)
    pack = read_pack(tmp_path / "pack")
    assert len(pack.kernels) == len(ARCHITECTURES) * (len(HEAD_DIMS) * len(DTYPES) + len(variants()) + len(BRANCHES))
    check_gates(pack, pack.kernels)
    for architecture in INSTRUCTIONS:
        check_machine_code(pack, architecture)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arch", "sm_75"], "architecture sm_75: not shipped; choices: sm_80, sm_86, sm_89, sm_90, sm_100, sm_120"),
        (["--arch", "native"], "architecture native: not shipped"),
        (["--arch", ","], "architecture is empty"),
        (["--arch", "sm_80", "--ops", "softmax"], "op softmax: not shipped; choices: indicator_attention, guided_step"),
        (["--arch", "sm_100", "--ptx-version", "80"], "ptx_version 80 is not for sm_100; expected 86 (PTX 8.6) to 99"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert aot.main([*arguments, "--out", str(tmp_path / "deep" / "pack")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--arch", "sm_80"], ["--arch", "sm_80", "--out", "x", "--jobs", "0"]])
def test_a_malformed_command_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        aot.main(arguments)
    assert "error: " in capsys.readouterr().err


def test_choices_are_listed() -> None:
    with pytest.raises(ValueError, match="head_dim 48 has no tile; choices: 16, 32, 40"):
        aot.compile_indicator_attention(48, "fp16", "sm_80")
    with pytest.raises(ValueError, match=r"\(branches, noise\) \(4, True\) is not shipped; choices: \(1, False\)"):
        aot.compile_guided_step(4, True, "sm_80")
    with pytest.raises(ValueError, match="branches 1 is not shipped; choices: 2, 3"):
        aot.compile_projected_guidance(1, "sm_80")


@needs_triton
def test_the_interpreter_is_not_taken_for_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(aot.AotError, match="TRITON_INTERPRET is set"):
        aot.write_pack(tmp_path / "pack", ["sm_80"])
    assert not list(tmp_path.iterdir())


def test_an_occupied_folder_stays_as_it_is_with_a_mocked_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(aot, "check_compiler", lambda: None)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ValueError, match="exists; expected a new or empty folder"):
        aot.write_pack(tmp_path, ["sm_80"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failure_half_way_leaves_nothing_with_a_mocked_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        assert len(list(tmp_path.iterdir())) == 1
        raise aot.AotError("ptxas died")

    monkeypatch.setattr(aot, "check_compiler", lambda: None)
    monkeypatch.setattr(aot, "compile_indicator_attention", fail)
    with pytest.raises(aot.AotError, match="ptxas died"):
        aot.write_pack(tmp_path / "pack", ["sm_80"])
    assert not list(tmp_path.iterdir())
