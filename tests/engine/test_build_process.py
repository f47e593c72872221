"""One graph in a build's own process: refusals, crashes, limits, interrupts; the real TensorRT-RTX where it can be.

A build is no run: nothing here executes a plan.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from patience import PATIENCE_S

from ddm_rt.engine.tensorrt import build_process, flavours, graph_header
from ddm_rt.engine.tensorrt.build_worker import Request, _open_timing_cache, set_flags
from ddm_rt.errors import DdmError

pytest.importorskip("tensorrt_rtx")
onnx = pytest.importorskip("onnx")

RTX = flavours.TABLE["tensorrt-rtx"]
PROFILES = (dict.fromkeys(("batch", "height", "width", "tokens"), (1, 2, 4)),)


def graph_of(folder: Path, *nodes: object, opset: int = 18, shape: tuple = ("batch", 4), **opsets: int) -> Path:
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    sides = ([make.make_tensor_value_info(name, float32, shape)] for name in "xy")
    imports = [make.make_opsetid("", opset), *(make.make_opsetid(name, version) for name, version in opsets.items())]
    onnx.save(
        make.make_model(make.make_graph(nodes, "g", *sides), opset_imports=imports, ir_version=10), folder / "g.onnx"
    )
    return folder / "g.onnx"


def node(op: str, **attributes: object) -> object:
    return onnx.helper.make_node(op, ["x"], ["y"], f"the_{op}", **attributes)


def request_of(graph: Path, **changes: object) -> Request:
    fields = {"module": "tensorrt_rtx", "architecture": "sm_89", "plugins_for": None, "timing_cache": None}
    return Request(**fields | {"graph": graph, "plan": graph.with_name("g.plan"), "profiles": PROFILES} | changes)


def silent(text: str) -> None:
    """Progress that nobody looks at."""


def run(request: Request, memory_gib: float | None = None, progress: Callable[[str], None] = silent) -> object:
    return build_process.run(request, "tensorrt-rtx", memory_gib, progress)


def test_an_unsupported_operator_is_named(tmp_path: Path) -> None:
    with pytest.raises(DdmError, match=r"g\.onnx: .* operator Det \(node 'the_Det'\) is not supported"):
        run(request_of(graph_of(tmp_path, node("Det"))))


def test_a_refusal_by_the_builder_brings_its_words(tmp_path: Path) -> None:
    weight = onnx.helper.make_node(
        "Constant", [], ["w"], value=onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32))
    )
    product = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    with pytest.raises(DdmError, match=r"gave no plan: .*FP32 GEMM is not supported"):
        run(request_of(graph_of(tmp_path, weight, product), architecture="sm_75"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "sm_90"}, "this version doesn't build for sm_90"),
        ({"profiles": ({"height": (1, 1, 1)},)}, r"input x: axis 0 is free \(batch\); expected one of height"),
        ({"profiles": ({"batch": (2, 1, 4)},)}, r"refused"),
        ({"plan": Path("absent/g.plan")}, r"could not be written: absent/g\.plan: No such file or directory"),
    ],
)
def test_a_request_that_cannot_be_met(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(DdmError, match=words):
        run(request_of(graph_of(tmp_path, node("Relu")), **change))


def test_an_opset_that_is_too_new_names_both(tmp_path: Path) -> None:
    with pytest.raises(DdmError, match=r"g\.onnx: ONNX opset 40; tensorrt-rtx takes opsets up to 22"):
        graph_header.check_graph(graph_of(tmp_path, node("Relu"), opset=40), RTX)


def test_a_plugin_is_refused_where_there_are_none(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, node("IndicatorAttention", domain="ddm_rt"), ddm_rt=1)
    with pytest.raises(
        DdmError, match="node 'the_IndicatorAttention' is the plugin IndicatorAttention; tensorrt-rtx takes"
    ):
        graph_header.check_graph(graph, RTX)
    with pytest.raises(DdmError, match="operator IndicatorAttention"):
        run(request_of(graph))


def test_too_little_memory_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = r"g\.onnx: building it for tensorrt-rtx holds 0\.\d+ GiB of memory; the limit is 0\.06 GiB "
    request = request_of(graph_of(tmp_path, node("Relu")))
    with pytest.raises(DdmError, match=rf"{held}\(--memory-gib\); a larger --memory-gib raises it"):
        run(request, memory_gib=0.06)
    monkeypatch.setattr(build_process, "allowance", lambda: (0.06 * 2**30, "half of what was available"))
    with pytest.raises(DdmError, match=rf"{held}\(half of what was available\); a larger --memory-gib raises it"):
        run(request)


MIB = 2**20
_OURS = {1: "4:memory:/a/b", 2: "0::/a/b"}  # /proc/self/cgroup of either version
_PLACE = {1: "memory/{}/memory.limit_in_bytes", 2: "{}/memory.max"}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limits", "expected", "words"),
    [
        ({}, 500, "half of what was available"),
        ({"a/b": 800}, 400, "control group"),
        ({"a": 800}, 400, "control group"),
        ({".": 800, "a": 600, "a/b": 900}, 300, "control group"),
        ({"a/b": 1200}, 500, "half of what was available"),
        ({"other": 1}, 500, "half of what was available"),
    ],
)
def test_a_build_may_hold_what_the_machine_and_its_control_group_allow(
    tmp_path: Path, version: int, limits: dict[str, int], expected: int, words: str
) -> None:
    files = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {1000 * 1024} kB\n"}
    files["proc/self/cgroup"] = f"5:cpu:/other\n{_OURS[version]}\n"
    files |= {f"sys/fs/cgroup/{_PLACE[version].format(group)}": str(n * MIB) for group, n in limits.items()}
    if version == 2:
        files.setdefault("sys/fs/cgroup/memory.max", "max")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found, said = build_process.allowance(tmp_path)
    assert found == expected * MIB
    assert words in said


@pytest.mark.parametrize(("version", "held"), [(1, "memory.usage_in_bytes"), (2, "memory.current")])
def test_what_a_control_group_holds_already_is_not_left(tmp_path: Path, version: int, held: str) -> None:
    limit = tmp_path / "sys/fs/cgroup" / _PLACE[version].format("a/b")
    limit.parent.mkdir(parents=True)
    limit.write_text(str(800 * MIB))
    (limit.parent / held).write_text(str(700 * MIB))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{_OURS[version]}\n")
    assert build_process.allowance(tmp_path)[0] == 50 * MIB


def test_where_the_system_tells_nothing_a_build_has_no_limit(tmp_path: Path) -> None:
    assert build_process.allowance(tmp_path)[0] == float("inf")


def test_every_plan_is_built_to_be_captured_and_without_tf32() -> None:
    """In a process of its own, as a builder's destructor may crash."""
    code = """if True:
        import os, tensorrt_rtx as trt
        from ddm_rt.engine.tensorrt.build_worker import set_flags
        config = trt.Builder(trt.Logger()).create_builder_config()
        set_flags(trt, config)
        print(*(config.get_flag(getattr(trt.BuilderFlag, name)) for name in ("REQUIRE_USER_ALLOCATION", "TF32")))
        os._exit(0) if not os.sys.stdout.flush() else None
    """
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_a_flavour_without_that_flag_is_built_without_it() -> None:
    class BuilderFlag:
        TF32 = "TF32"

    class Config:
        cleared: str

        def clear_flag(self, flag: str) -> None:
            self.cleared = flag

    trt, config = SimpleNamespace(BuilderFlag=BuilderFlag), Config()
    set_flags(trt, config)
    assert config.cleared == "TF32"


def test_a_builder_that_gives_nothing_says_which_driver_it_needs(fake_builder: Callable[[str], Request]) -> None:
    source = (
        "__version__ = '1.7'\nclass ILogger: pass\n"
        "def Builder(logger): raise TypeError('pybind11::init(): factory function returned nullptr')"
    )
    words = r"fake_builder 1\.7 doesn't start here: it needs an NVIDIA driver of CUDA 13, which is R580, or newer"
    with pytest.raises(DdmError, match=words):
        run(fake_builder(source))


def test_every_profile_is_built_and_told(tmp_path: Path) -> None:
    batches = ((1, 2, 8), (2, 8, 32))
    profiles = tuple(PROFILES[0] | {"batch": sizes} for sizes in batches)
    result = run(request_of(graph_of(tmp_path, node("Relu")), profiles=profiles))
    assert [found["x"] for found in result.profiles] == [tuple((n, 4) for n in sizes) for sizes in batches]


def test_a_builder_that_really_crashes_is_a_reported_failure(tmp_path: Path) -> None:
    """Two Attention nodes that share a scaled query end TensorRT-RTX 1.7.1's builder with a segmentation fault."""
    make, half = onnx.helper, onnx.TensorProto.FLOAT16
    lengths = {"q": 64, "k": 16, "v": 16, "k_ind": 4, "v_ind": 4}
    inputs = [make.make_tensor_value_info(name, half, ["batch", 4, n, 64]) for name, n in lengths.items()]
    nodes = [
        make.make_node("Mul", ["q", "s"], ["scaled"]),
        make.make_node("Attention", ["scaled", "k", "v"], ["text"], scale=1.0),
        make.make_node("Attention", ["scaled", "k_ind", "v_ind"], ["indicator"], scale=1.0),
        make.make_node("Add", ["text", "indicator"], ["y"]),
    ]
    outputs = [make.make_tensor_value_info("y", half, ["batch", 4, 64, 64])]
    graph = make.make_graph(nodes, "g", inputs, outputs, [onnx.numpy_helper.from_array(np.float16(0.125), "s")])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "g.onnx")
    with pytest.raises(DdmError, match=r"g\.onnx: the builder of tensorrt-rtx crashed \(SIGSEGV\) in build"):
        run(request_of(tmp_path / "g.onnx"))
    assert not (tmp_path / "g.plan").exists()


# A module of the test's own in the builder's place, for endings that the real one can't be brought to.


@pytest.fixture
def fake_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Request]:
    """fake_builder(source) makes a request that imports `source` in place of TensorRT."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(source: str) -> Request:
        (tmp_path / "fake_builder.py").write_text(f"import os, signal, sys, time\n{source}\n")
        return request_of(graph_of(tmp_path, node("Relu")), module="fake_builder")

    return make


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "print('assertion failed: p', file=sys.stderr); os.abort()",
            r"crashed \(SIGABRT\) in load; last words: asser",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"was killed \(SIGKILL; out of memory, if nobody did it\)"),
        ("os._exit(7)", "ended with exit code 7 in load; last words: it said nothing"),
        ("os._exit(0)", "ended with exit code 0"),
        ("raise RuntimeError('no such option')", "ended with exit code 1 .*RuntimeError: no such option"),
        ("raise MemoryError", r"could not be written: g\.plan: out of memory"),
    ],
)
def test_a_fake_builder_that_dies_is_a_reported_failure(
    fake_builder: Callable[[str], Request], source: str, words: str
) -> None:
    with pytest.raises(DdmError, match=words) as caught:
        run(fake_builder(source))
    assert "\n" not in str(caught.value)


def test_ctrl_c_ends_a_fake_builder_that_hangs(fake_builder: Callable[[str], Request], tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    request = fake_builder(f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)")

    def interrupt(_: str) -> None:
        if pid.exists() and pid.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(request, progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_fake_builder_that_hangs_ends_with_the_process_that_started_it(
    fake_builder: Callable[[str], Request],
) -> None:
    request = fake_builder("time.sleep(600)")
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "ddm_rt.engine.tensorrt.build_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with worker:
        assert worker.stdin is not None
        worker.stdin.write(request.model_dump_json() + "\n")
        worker.stdin.close()
        assert worker.wait(timeout=PATIENCE_S) == 1


def test_a_timing_cache_is_written_and_read_again(tmp_path: Path) -> None:
    """Through TensorRT-RTX, whose caches hold nothing: the calls are those of the flavour that keeps one."""
    cache = tmp_path / "timing.cache"
    request = request_of(graph_of(tmp_path, node("Relu")), timing_cache=cache)
    run(request)
    kept = cache.read_bytes()
    assert kept
    run(request)
    assert cache.read_bytes() == kept
    request.plan.unlink()
    cache.write_bytes(b"no cache")
    # A version may ignore what it doesn't know, and write a whole one; or refuse it, and write nothing.
    refusal = ""
    try:
        run(request)
    except DdmError as error:
        refusal = str(error)
    assert refusal == "" or f"timing cache {cache} is of another device or version" in refusal
    assert cache.read_bytes() == (b"no cache" if refusal else kept)
    assert request.plan.exists() is not bool(refusal)


def test_a_timing_cache_that_the_builder_refuses_is_named(tmp_path: Path) -> None:
    class Config:
        given: bytes

        def create_timing_cache(self, content: bytes) -> str:
            self.given = content
            return "a cache"

        def set_timing_cache(self, cache: str, ignore_mismatch: bool) -> bool:
            assert (cache, ignore_mismatch) == ("a cache", False)
            return self.given == b""

    config, cache = Config(), tmp_path / "timing.cache"
    assert _open_timing_cache(config, None) is None
    assert _open_timing_cache(config, cache) == "a cache"
    cache.write_bytes(b"of another card")
    with pytest.raises(DdmError, match=r"timing\.cache is of another device or version; name another file"):
        _open_timing_cache(config, cache)
    assert config.given == b"of another card"


def test_the_progress_line_goes_on_while_the_builder_is_silent(
    fake_builder: Callable[[str], Request], tmp_path: Path
) -> None:
    said: list[str] = []
    enough = tmp_path / "enough"

    def hear(text: str) -> None:
        said.append(text)
        if len(said) == 5:
            enough.touch()

    with pytest.raises(DdmError):
        run(fake_builder(f"while not os.path.exists({str(enough)!r}): time.sleep(0.01)\nos._exit(1)"), progress=hear)
    assert len(said) >= 5


# The kernels beside a plan.


def test_where_there_are_no_kernels_the_key_says_why(tmp_path: Path) -> None:
    assert build_process.kernels(tmp_path / "k", "sm_75", print) == "no kernels are shipped for sm_75"
    assert list(tmp_path.iterdir()) == []


def test_kernels_that_cannot_be_compiled_are_a_reported_failure(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "occupied").write_text("x")
    with pytest.raises(DdmError, match=r"kernels of sm_89: the compiler ended with exit code 2; last words: .*k"):
        build_process.kernels(tmp_path / "k", "sm_89", print)
