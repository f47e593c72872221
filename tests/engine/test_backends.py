"""The backend table: choices, reasons, no silent fallback, and no heavy import before a choice is made."""

import dataclasses
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from ddm_rt.bundle import Bundle, add_directory
from ddm_rt.config import Backend, Precision
from ddm_rt.engine import backends, devices, gates
from ddm_rt.engine.devices import Device
from ddm_rt.engine.tensorrt import cuda
from ddm_rt.errors import BackendUnavailable, DdmError
from ddm_rt.files import write_json

SEEN = cuda.DeviceInfo("Fake GPU", "sm_90", "13.0", 2**36)
UNSEEN = "no CUDA driver: libcuda.so.1 was not found"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """table(...) puts rows of the test's own in place of the shipped ones: name, kind of device, class, precisions."""

    def replace(*rows: tuple[Any, ...]) -> None:
        monkeypatch.setattr(backends, "TABLE", tuple(backends.Row(*row) for row in rows))

    monkeypatch.setitem(sys.modules, "fake_engines", sys.modules[__name__])
    return replace


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """gpu(True) lets this process see a fake GPU, gpu(False) none."""

    def show(seen: bool) -> None:
        monkeypatch.setattr(devices, "invisible", lambda: None if seen else UNSEEN)
        monkeypatch.setattr(devices, "visible_name", lambda: SEEN.name)

    return show


class Works:
    def __init__(self, bundle: Bundle, threads: int | None, device: Device) -> None:
        self.bundle, self.threads, self.device = bundle, threads, device

    @staticmethod
    def unavailable(bundle: Bundle | None, device: Device) -> str | None:
        return f"no CUDA device {device.ordinal}: torch finds 2" if device.ordinal > 1 else None


class Rounds(Works):
    def __init__(self, bundle: Bundle, threads: int | None, device: Device, precision: Precision) -> None:
        super().__init__(bundle, threads, device)
        self.precision = precision

    @staticmethod
    def unavailable(bundle: Bundle | None, device: Device, precision: Precision | None = None) -> str | None:
        return None


class Refuses(Works):
    @staticmethod
    def unavailable(bundle: Bundle | None, device: Device) -> str | None:
        return "no such device" if bundle is None else "no plan for this device"


FAST = ("fast", "cuda", "fake_engines:Refuses")
BOTH = (("both", "cuda", "fake_engines:Works"), ("plain", "cpu", "fake_engines:Works"))


def test_the_backends_of_every_machine_are_available_here(tiny_bundle: Bundle) -> None:
    for found in (backends.availability(), backends.availability(tiny_bundle)):
        assert (found["onnxruntime on cpu"], found["torch on cpu"]) == (None, None)
    assert set(backends.names()) == set(Backend) - {Backend.AUTO}


def test_the_order_of_auto() -> None:
    assert [(row.backend, row.device) for row in backends.TABLE] == [
        ("tensorrt", "cuda"),
        ("tensorrt-rtx", "cuda"),
        ("torch", "cuda"),
        ("onnxruntime", "cuda"),
        ("openvino", "cpu"),
        ("onnxruntime", "cpu"),
        ("torch", "cpu"),
    ]


def test_without_a_gpu_auto_takes_what_runs_on_the_cpu_and_says_nothing(
    tiny_bundle: Bundle, gpu: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    gpu(False)
    with caplog.at_level(logging.INFO, "ddm_rt"):
        assert backends.load(tiny_bundle).backend == "onnxruntime"
    assert caplog.messages == []
    reasons = backends.choose(tiny_bundle).reasons
    assert reasons["torch on cuda"] == reasons["tensorrt-rtx"] == UNSEEN


def test_torch_on_a_patched_gpu_comes_before_every_backend_of_the_cpu(tiny_bundle: Bundle, torch_gpu: None) -> None:
    choice = backends.choose(tiny_bundle)
    assert (choice.row.backend, choice.row.device) == ("torch", "cuda")
    assert "tensorrt" in choice.reasons
    assert backends.choose(tiny_bundle, Device("cpu")).row.backend == "onnxruntime"


@pytest.fixture
def torch_gpu(gpu: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake GPU that torch finds, too."""
    torch = pytest.importorskip("torch")
    gpu(True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(cuda, "device_info", lambda driver=None, ordinal=0: SEEN)


def passed(bundle: Bundle, folder: Path, **changes: Any) -> Bundle:
    """A copy of the bundle with a record that bf16 on the fake GPU passed its gates, but for `changes`."""
    copy = Bundle.load(shutil.copytree(bundle.path, folder))
    gate: dict[str, Any] = {
        "bundle_id": bundle.bundle_id,
        "backend": "torch",
        "version": metadata.version("torch"),
        "precision": "bf16",
        "processor": SEEN.name,
        "threads": 1,
        "against": bundle.bundle_id,
        "against_backend": "torch",
        "judge": "1" * 64,
        "groups": ("3", "8"),
        "n": 1000,
        "seed": 0,
        "decision": "equivalent",
        "margin": 0.03,
        "fd": 0.01,
        "frechet": (10.0, 11.0),
        "seconds_per_image": (0.02, 0.01),
        **changes,
    }
    place = gates.place("torch", Precision.BF16)
    return add_directory(copy, place, lambda folder: write_json(folder / "gate.json", gate))


def test_a_patched_gpu_computes_in_half_precision_where_a_gate_says_that_it_may(
    tiny_bundle: Bundle, torch_gpu: None, tmp_path: Path
) -> None:
    choice = backends.choose(passed(tiny_bundle, tmp_path / "own"))
    assert (choice.row.name, choice.precision) == ("torch on cuda", "bf16")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"decision": "drift"}, "it didn't pass its gates here: the drift gate said drift"),
        ({"processor": "Another GPU"}, "its gate is recorded for processor Another GPU; this is Fake GPU"),
        ({"version": "2.0"}, "its gate is recorded for version 2.0; this is "),
    ],
    ids=["drift", "another GPU", "another torch"],
)
def test_a_patched_gpu_computes_in_float32_where_the_gate_says_otherwise(
    tiny_bundle: Bundle, torch_gpu: None, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    choice = backends.choose(passed(tiny_bundle, tmp_path / "own", **changes))
    assert (choice.row.name, choice.precision) == ("torch on cuda", "fp32")
    assert choice.reasons["torch in bf16"].startswith(why)


def test_a_patched_gpu_without_a_gate_computes_in_float32_and_names_the_command_that_records_one(
    tiny_bundle: Bundle,
    gpu: Callable[[bool], None],
    table: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu(True)
    monkeypatch.setattr(cuda, "device_info", lambda driver=None, ordinal=0: SEEN)
    table(("torch", "cuda", "fake_engines:Rounds", (Precision.BF16, Precision.FP16)))
    assert backends.load(tiny_bundle).precision is Precision.FP32
    (said,) = caplog.messages
    assert said == (
        "the GPU computes in float32: torch in bf16: no gate is recorded for it here; "
        f"`ddm-rt compare {tiny_bundle.path} {tiny_bundle.path}@backend=torch,precision=bf16 --record` records it; "
        "--precision fp32 silences this"
    )
    caplog.clear()
    assert backends.load(tiny_bundle, precision="fp32").precision is Precision.FP32
    assert backends.load(tiny_bundle, precision="bf16").precision is Precision.BF16
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("version", "why"),
    [
        (None, "is built without CUDA"),
        ("13.0", "no CUDA device 0: torch finds 0"),
    ],
)
def test_a_patched_gpu_that_stays_unused_is_one_warning_with_the_reason(
    tiny_bundle: Bundle,
    gpu: Callable[[bool], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    why: str,
) -> None:
    torch = pytest.importorskip("torch")
    gpu(True)
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert backends.load(tiny_bundle).backend == "onnxruntime"
    (said,) = caplog.messages
    assert said.startswith("the GPU (Fake GPU) is not used: ")
    assert said.endswith("; --device cpu silences this")
    assert why in said
    caplog.clear()
    assert backends.load(tiny_bundle, device="cpu").backend == "onnxruntime"
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("absent_package.x:X", "the package absent_package is not installed"),
        ("fake_engines:Refuses", "no plan for this"),
    ],
)
def test_the_warning_is_about_the_row_that_asks_for_least(
    tiny_bundle: Bundle, table: Any, gpu: Any, caplog: pytest.LogCaptureFixture, module: str, said: str
) -> None:
    gpu(True)
    table(FAST, ("torch", "cuda", module), ("plain", "cpu", "fake_engines:Works"))
    backends.load(tiny_bundle)
    (message,) = caplog.messages
    assert f"(Fake GPU) is not used: {said}" in message


def test_a_device_is_handed_on_and_must_be_there(tiny_bundle: Bundle, table: Any, gpu: Any) -> None:
    table(FAST, *BOTH)
    gpu(True)
    assert backends.load(tiny_bundle, device="cuda:1").device == Device("cuda", 1)  # type: ignore[attr-defined]
    assert backends.load(tiny_bundle, "both").device == Device("cuda", 0)  # type: ignore[attr-defined]
    with pytest.raises(BackendUnavailable, match="no CUDA device 7: torch finds 2"):
        backends.load(tiny_bundle, "both", device="cuda:7")
    with pytest.raises(BackendUnavailable, match="'plain' is not available: it doesn't run on cuda:0"):
        backends.load(tiny_bundle, "plain", device="cuda")
    gpu(False)
    with pytest.raises(BackendUnavailable, match="no CUDA driver"):
        backends.load(tiny_bundle, device="cuda")


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1", "", "CUDA"])
def test_a_device_that_is_none_is_refused(tiny_bundle: Bundle, text: str) -> None:
    with pytest.raises(DdmError, match="is unknown; expected cpu, cuda, or cuda:N"):
        backends.load(tiny_bundle, device=text)


@pytest.mark.parametrize(("status", "count", "seen"), [(0, 1, True), (0, 0, False), (100, 0, False)])
def test_without_cuda_bindings_a_fake_driver_library_says_whether_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, status: int, count: int, seen: bool
) -> None:
    class FakeLibrary:
        def cuInit(self, flags: int) -> int:
            return status

        def cuDeviceGetCount(self, out: Any) -> int:
            out._obj.value = count
            return 0

    monkeypatch.setattr(cuda, "has_bindings", lambda: False)
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: FakeLibrary())
    assert devices.invisible() == (None if seen else "the CUDA driver shows no device")
    assert devices.visible_name() == "NVIDIA"


def test_without_cuda_bindings_and_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(cuda, "has_bindings", lambda: False)
    monkeypatch.setattr(devices.ctypes, "CDLL", absent)
    assert devices.invisible() == UNSEEN


def test_tensorrt_needs_a_driver_then_a_plan_that_fits(
    tiny_bundle: Bundle, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    gpu(False)
    assert backends.unavailable("tensorrt-rtx", tiny_bundle) == UNSEEN
    gpu(True)
    monkeypatch.setattr(
        cuda, "device_info", lambda driver=None, ordinal=0: cuda.DeviceInfo("RTX 4090", "sm_89", "13.0", 2**34)
    )
    reason = backends.unavailable("tensorrt-rtx", tiny_bundle)
    assert reason is not None
    assert reason.startswith("no plan of tensorrt-rtx for sm_89; `ddm-rt build ")
    with pytest.raises(BackendUnavailable, match="no plan of tensorrt-rtx for sm_89"):
        backends.load(tiny_bundle, "tensorrt-rtx")


def of_int8(bundle: Bundle) -> Bundle:
    """Says so, and is still float32: what refuses it looks no further."""
    return dataclasses.replace(bundle, config=bundle.config.model_copy(update={"precision": Precision.INT8}))


def test_torch_says_what_it_computes_in(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendUnavailable, match=r"is int8; torch computes in fp32, bf16, fp16; .*: (openvino, )?onnx"):
        backends.load(of_int8(tiny_bundle), "torch")


def test_torch_alone_rounds_an_fp32_bundle(tiny_bundle: Bundle) -> None:
    engine = backends.load(tiny_bundle, "auto", 1, "cpu", "bf16")
    assert (engine.backend, engine.precision) == ("torch", "bf16")
    with pytest.raises(BackendUnavailable, match=r"own precision, fp32; `ddm-rt export .* --precision bf16 --out DIR`"):
        backends.load(tiny_bundle, "onnxruntime", precision="bf16")
    with pytest.raises(BackendUnavailable, match="the bundle is int8; rounding it to bf16 would be rounding twice"):
        backends.load(of_int8(tiny_bundle), "torch", precision="bf16")
    with pytest.raises(DdmError, match="precision 'bf8' is unknown; expected one of: fp32, fp16, bf16, int8, fp8"):
        backends.load(tiny_bundle, precision="bf8")


def test_unknown_backend_lists_the_choices(tiny_bundle: Bundle) -> None:
    with pytest.raises(DdmError, match="backends: auto, tensorrt, tensorrt-rtx, torch, onnxruntime, openvino"):
        backends.load(tiny_bundle, "cuda")


@pytest.mark.parametrize("threads", [0, -3])
def test_fewer_than_one_thread_is_refused(tiny_bundle: Bundle, threads: int) -> None:
    with pytest.raises(DdmError, match=f"threads is {threads}; expected at least 1"):
        backends.load(tiny_bundle, "onnxruntime", threads)


def test_auto_takes_the_first_that_runs_and_says_why_where_that_is_asked_for(
    tiny_bundle: Bundle, table: Any, gpu: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gpu(False)
    table(
        ("missing", "cpu", "absent_package.x:X"),
        ("refuses", "cpu", "fake_engines:Refuses"),
        ("works", "cpu", "fake_engines:Works"),
    )
    with caplog.at_level(logging.INFO, "ddm_rt.engine.backends"):
        engine = backends.load(tiny_bundle, threads=3)
    assert caplog.messages == []
    with caplog.at_level(logging.DEBUG, "ddm_rt.engine.backends"):
        backends.load(tiny_bundle, threads=3)
    assert isinstance(engine, Works)
    assert (engine.bundle, engine.threads) == (tiny_bundle, 3)
    assert caplog.messages == [
        "backend auto: works in fp32; not missing: the package absent_package is not installed; "
        "not refuses: no plan for this device"
    ]


def test_auto_with_nothing_available_gives_every_reason(tiny_bundle: Bundle, table: Any) -> None:
    table(("missing", "cpu", "absent_package.x:X"), ("refuses", "cpu", "fake_engines:Refuses"))
    with pytest.raises(BackendUnavailable, match="available here: none") as caught:
        backends.load(tiny_bundle)
    assert "absent_package is not installed" in caught.value.reason
    assert "no plan for this device" in caught.value.reason


def test_explicit_choice_never_falls_back(tiny_bundle: Bundle, table: Any) -> None:
    table(("works", "cpu", "fake_engines:Works"), ("refuses", "cpu", "fake_engines:Refuses"))
    with pytest.raises(BackendUnavailable, match=r"'refuses' is not available: no plan.*available here: works"):
        backends.load(tiny_bundle, "refuses")


def test_a_missing_module_of_ours_is_a_bug_and_not_a_reason(table: Any) -> None:
    table(("broken", "cpu", "ddm_rt.engine.absent:Absent"))
    with pytest.raises(ModuleNotFoundError):
        backends.availability()


def test_a_library_that_does_not_load_is_a_reason(table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_engine.py").write_text("raise ImportError('libcuda.so.1: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    table(("broken", "cpu", "broken_engine:Broken"))
    assert backends.availability() == {"broken": "import failed: libcuda.so.1: cannot open"}


def test_importing_the_table_imports_no_backend(tiny_bundle: Bundle) -> None:
    script = (
        "import sys; import ddm_rt.engine.backends as b; from ddm_rt.bundle import Bundle;"
        "heavy = {'torch', 'onnxruntime', 'openvino', 'diffusers', 'onnx', 'tensorrt_rtx', 'triton'};"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys();"
        "engine = b.load(Bundle.load(sys.argv[1]));"
        "assert engine.backend == 'onnxruntime', engine;"
        "heavy = {'torch', 'openvino', 'diffusers', 'onnx', 'triton'};"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script, str(tiny_bundle.path)], check=True)
