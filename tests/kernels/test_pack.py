"""Packs and PTX as text: what is read back, and what is refused. Needs neither triton nor torch."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddm_rt.kernels.pack import PackError, parse_manifest, read_pack
from ddm_rt.kernels.ptx import Argument, name_arguments, read_entry, tensor_core, version

PTX = """\
.version 8.0
.target sm_80
.visible .entry _kernel(
\t.param .u64 .ptr .global .align 1 _kernel_param_0,
\t.param .u32 _kernel_param_1,
\t.param .u64 .ptr .global .align 1 _kernel_param_2
)
.reqntid 128
{
\tmma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 ...
}
"""


def kernel(name: str, **changes: Any) -> dict[str, Any]:
    files = {"cubin": b"code", "ptx": PTX.encode()}
    return {
        "name": name,
        "op": "indicator_attention",
        "entry": "_kernel",
        "architecture": "sm_80",
        "dtype": "fp16",
        "head_dim": 64,
        "branches": None,
        "noise": None,
        "tile": {"block_m": 64, "block_n": 32, "num_stages": 2},
        "num_warps": 4,
        "shared_bytes": 1024,
        "registers": 100,
        "spill_bytes": 0,
        "tensor_core": "mma.sync",
        "ptx_version": 80,
        "alignment": 16,
        "arguments": [
            {"name": "q", "kind": "pointer", "bytes": 8},
            {"name": "n", "kind": "i32", "bytes": 4},
            {"name": "global_scratch", "kind": "scratch", "bytes": 8},
        ],
        **{
            kind: {"file": f"{name}.{kind}", "sha256": hashlib.sha256(content).hexdigest()}
            for kind, content in files.items()
        },
        **changes,
    }


GUIDED = {"op": "guided_step", "dtype": "fp32", "head_dim": None, "branches": 2, "noise": True, "tensor_core": None}
MANIFEST = {"schema": 1, "triton": "3.9.0", "kernels": [kernel("a"), kernel("b", **GUIDED)]}
TEXT = json.dumps(MANIFEST).encode()


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    for name in ("a", "b"):
        (tmp_path / f"{name}.cubin").write_bytes(b"code")
        (tmp_path / f"{name}.ptx").write_text(PTX)
    return tmp_path


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value below `tree`."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, value in children for found in [(*path, key), *places(value, (*path, key))]]


def replaced(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    tree: Any = copy.deepcopy(MANIFEST)
    at = tree
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return tree


def test_a_pack_reads_back(pack: Path) -> None:
    found = read_pack(pack)
    attention = found.find("indicator_attention", "sm_80", dtype="fp16", head_dim=64)
    assert (attention.name, attention.num_warps, attention.arguments[1]) == ("a", 4, Argument("n", "i32", 4))
    assert found.find("guided_step", "sm_80", branches=2, noise=True).name == "b"
    assert found.cubin(attention) == b"code"


@pytest.mark.parametrize(
    "wanted",
    [{"architecture": "sm_90"}, {"architecture": "sm_80", "head_dim": 40}, {"architecture": "sm_80", "dtype": "bf16"}],
)
def test_a_kernel_that_is_not_there_is_named(pack: Path, wanted: dict[str, Any]) -> None:
    with pytest.raises(PackError, match=r"0 kernels fit indicator_attention .*the pack has a$"):
        read_pack(pack).find("indicator_attention", **wanted)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("schema",), 2, "schema"),
        (("kernels",), [], "kernels"),
        (("kernels", 0, "registers"), 100.0, "kernels.0.registers"),
        (("kernels", 0, "num_warps"), True, "kernels.0.num_warps"),
        (("kernels", 0, "arguments", 1, "kind"), "f64", "kernels.0.arguments.1.kind"),
        (("kernels", 0, "arguments", 1, "bytes"), 8, "argument n is a i32 of 8 bytes"),
        (("kernels", 0, "arguments", 1, "name"), "q", "two arguments share a name"),
        (("kernels", 0, "cubin", "file"), "../a.cubin", "kernels.0.cubin.file"),
        (("kernels", 0, "cubin", "size"), 4, "kernels.0.cubin.size"),
        (("kernels", 0, "head_dim"), None, "head_dim, branches and noise don't fit"),
        (("kernels", 1, "name"), "a", "two kernels are called a"),
    ],
)
def test_a_bad_field_is_named(path: tuple[Any, ...], value: Any, said: str) -> None:
    with pytest.raises(PackError, match=f"^manifest.json: .*{said}"):
        parse_manifest(json.dumps(replaced(path, value)).encode())


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([]) | st.just({})


@given(path=st.sampled_from(places(MANIFEST)), value=JSON)
def test_a_corrupt_field_is_one_clear_error_or_no_harm(path: tuple[Any, ...], value: Any) -> None:
    said = "manifest.json: "
    try:
        parse_manifest(json.dumps(replaced(path, value)).encode())
    except PackError as error:
        said = str(error)
    assert said.startswith("manifest.json: ")
    assert "\n" not in said


@given(content=st.binary(max_size=200) | st.integers(0, len(TEXT) - 1).map(lambda n: TEXT[:n]))
def test_bytes_that_are_no_manifest_are_one_clear_error(content: bytes) -> None:
    with pytest.raises(PackError, match=r"^manifest\.json: "):
        parse_manifest(content)


def test_an_altered_or_missing_file_is_named(pack: Path) -> None:
    found = read_pack(pack)
    (pack / "a.cubin").write_bytes(b"codE")
    with pytest.raises(PackError, match=r"a\.cubin was altered"):
        read_pack(pack)
    with pytest.raises(PackError, match=r"a\.cubin was altered"):
        found.cubin(found.kernels[0])
    (pack / "a.cubin").unlink()
    with pytest.raises(PackError, match=r"a\.cubin can't be read: No such file"):
        read_pack(pack)
    with pytest.raises(PackError, match=r"manifest\.json can't be read"):
        read_pack(pack / "no-such-folder")


def test_an_entry_is_read_and_its_arguments_named() -> None:
    entry = read_entry(PTX)
    assert (entry.name, entry.threads) == ("_kernel", 128)
    assert entry.parameters == (("pointer", 8), ("i32", 4), ("pointer", 8))
    assert name_arguments(entry, (("q", "pointer"), ("n", "i32"))) == (
        Argument("q", "pointer", 8),
        Argument("n", "i32", 4),
        Argument("global_scratch", "scratch", 8),
    )
    assert (version(PTX), tensor_core(PTX), tensor_core("")) == (80, "mma.sync", None)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ((("n", "i32"), ("q", "pointer")), "argument n is a pointer in the PTX"),
        ((("q", "pointer"),), "ends with a parameter that is a i32"),
        ((), "has 3 parameters, its source declares 0"),
        ((("q", "pointer"), ("n", "i32"), ("out", "pointer"), ("m", "i32")), "has 3 parameters, its source declares 4"),
    ],
)
def test_a_parameter_list_that_does_not_fit_is_refused(declared: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        name_arguments(read_entry(PTX), declared)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (".u32", ".f64", "parameters of type f64"),
        (".param .u32 _kernel_param_1", ".param .align 64 .b8 _kernel_param_1[128]", "form that isn't known"),
        (".visible .entry", ".visible .func", "0 entries"),
    ],
)
def test_ptx_of_another_form_is_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_entry(PTX.replace(old, new))
