"""The backend table: choices, reasons, no silent fallback, and no heavy import before a choice is made."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from ddm_rt.bundle import Bundle
from ddm_rt.config import Backend
from ddm_rt.engine import backends, cuda
from ddm_rt.errors import BackendUnavailable, DdmError


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A table of the test's own in place of the shipped one."""
    own: dict[str, str] = {}
    monkeypatch.setattr(backends, "TABLE", own)
    return own


class Works:
    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.bundle, self.threads = bundle, threads

    @staticmethod
    def unavailable(bundle: Bundle | None) -> str | None:
        return None


class Refuses(Works):
    @staticmethod
    def unavailable(bundle: Bundle | None) -> str | None:
        return "no such device" if bundle is None else "no plan for this device"


def test_the_backends_of_every_machine_are_available_here(tiny_bundle: Bundle) -> None:
    for found in (backends.availability(), backends.availability(tiny_bundle)):
        assert (found["onnxruntime"], found["torch"]) == (None, None)
        assert found.keys() == set(Backend) - {Backend.AUTO}


def test_tensorrt_needs_a_driver_then_a_plan_that_fits(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")

    def no_device() -> cuda.DeviceInfo:
        raise DdmError("no CUDA driver: libcuda.so.1 was not found")

    monkeypatch.setattr(cuda, "device_info", no_device)
    assert backends.unavailable("tensorrt-rtx", tiny_bundle) == "no CUDA driver: libcuda.so.1 was not found"
    monkeypatch.setattr(cuda, "device_info", lambda: cuda.DeviceInfo("RTX 4090", "sm_89", "13.0", 2**34))
    reason = backends.unavailable("tensorrt-rtx", tiny_bundle)
    assert reason is not None
    assert reason.startswith("no plan of tensorrt-rtx for sm_89; `ddm-rt build ")
    assert backends.load(tiny_bundle).backend == "onnxruntime"
    with pytest.raises(BackendUnavailable, match="no plan of tensorrt-rtx for sm_89"):
        backends.load(tiny_bundle, "tensorrt-rtx")


def test_torch_needs_weights_and_says_how_to_get_them(plain_bundle: Bundle) -> None:
    reason = backends.availability(plain_bundle)["torch"]
    assert reason is not None
    assert "--with-weights" in reason
    with pytest.raises(BackendUnavailable, match=r"available here: (openvino, )?onnxruntime") as caught:
        backends.load(plain_bundle, "torch")
    assert caught.value.available[-1] == "onnxruntime"


def test_unknown_backend_lists_the_choices(tiny_bundle: Bundle) -> None:
    choices = "auto, tensorrt, tensorrt-rtx, openvino, onnxruntime, torch"
    with pytest.raises(DdmError, match=f"'cuda' is unknown; backends: {choices}"):
        backends.load(tiny_bundle, "cuda")


@pytest.mark.parametrize("threads", [0, -3])
def test_fewer_than_one_thread_is_refused(tiny_bundle: Bundle, threads: int) -> None:
    with pytest.raises(DdmError, match=f"threads is {threads}; expected at least 1"):
        backends.load(tiny_bundle, "onnxruntime", threads)


def test_auto_takes_the_first_that_runs_and_logs_it(
    tiny_bundle: Bundle,
    table: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "fake_engines", sys.modules[__name__])
    table |= {
        "missing": "absent_package.x:X",
        "refuses": "fake_engines:Refuses",
        "works": "fake_engines:Works",
    }
    with caplog.at_level(logging.INFO, "ddm_rt.engine.backends"):
        engine = backends.load(tiny_bundle, threads=3)
    assert isinstance(engine, Works)
    assert (engine.bundle, engine.threads) == (tiny_bundle, 3)
    assert caplog.messages == [
        "backend auto: works; not missing: the package absent_package is not installed; "
        "not refuses: no plan for this device"
    ]


def test_auto_with_nothing_available_gives_every_reason(
    tiny_bundle: Bundle, table: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fake_engines", sys.modules[__name__])
    table |= {"missing": "absent_package.x:X", "refuses": "fake_engines:Refuses"}
    with pytest.raises(BackendUnavailable, match="available here: none") as caught:
        backends.load(tiny_bundle)
    assert "absent_package is not installed" in caught.value.reason
    assert "no plan for this device" in caught.value.reason


def test_explicit_choice_never_falls_back(
    tiny_bundle: Bundle, table: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fake_engines", sys.modules[__name__])
    table |= {"works": "fake_engines:Works", "refuses": "fake_engines:Refuses"}
    with pytest.raises(BackendUnavailable, match=r"'refuses' is not available: no plan.*available here: works"):
        backends.load(tiny_bundle, "refuses")


def test_a_missing_module_of_ours_is_a_bug_and_not_a_reason(table: dict[str, str]) -> None:
    table["broken"] = "ddm_rt.engine.absent:Absent"
    with pytest.raises(ModuleNotFoundError):
        backends.availability()


def test_a_library_that_does_not_load_is_a_reason(
    table: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_engine.py").write_text("raise ImportError('libcuda.so.1: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    table["broken"] = "broken_engine:Broken"
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
