"""The kernel table: explicit choices are met or refused, `auto` takes what can run."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ddm_rt.kernels import dispatch


@pytest.fixture(autouse=True)
def _nothing_said() -> Iterator[None]:
    dispatch._say.cache_clear()
    yield
    dispatch._say.cache_clear()


@pytest.fixture
def mock_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a CUDA device and triton."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(dispatch, "has_cuda_device", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: name == "triton" or find_spec(name, *a))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.parametrize("op", list(dispatch.TABLE))
def test_every_op_has_a_reference_that_loads(op: str) -> None:
    assert dispatch.unavailable(op, "reference") is None
    assert callable(dispatch.load(op, "reference"))


@pytest.mark.parametrize("op", list(dispatch.TABLE))
def test_auto_loads_something(op: str) -> None:
    assert callable(dispatch.load(op))


@pytest.mark.parametrize("op", list(dispatch.TABLE))
def test_every_op_has_every_flavour(op: str) -> None:
    assert set(dispatch.TABLE[op]) == set(dispatch.IMPLEMENTATIONS)


def test_unknown_op_and_flavour_list_the_choices() -> None:
    with pytest.raises(ValueError, match=r"op 'softmax' is unknown; ops: indicator_attention, guided_step"):
        dispatch.load("softmax", "reference")
    with pytest.raises(ValueError, match=r"flavour 'cuda' of guided_step is unknown; flavours: reference, triton"):
        dispatch.load("guided_step", "cuda")


def test_a_reference_without_its_package_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None)
    assert dispatch.unavailable("indicator_attention", "reference") == "the package torch is not installed"
    assert dispatch.unavailable("guided_step", "reference") is None, "numpy alone"


@pytest.mark.parametrize("device", [False, True])
def test_triton_without_its_package_is_refused_and_auto_passes_it_over_aloud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: bool
) -> None:
    find_spec = importlib.util.find_spec

    def without_triton(name: str, *args: Any) -> Any:
        return None if name == "triton" else find_spec(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", without_triton)
    monkeypatch.setattr(dispatch, "has_cuda_device", lambda: device)
    monkeypatch.setitem(dispatch.TABLE, "op", {"reference": "math:sqrt", "triton": "math:exp"})
    with pytest.raises(RuntimeError, match="the package triton is not installed"):
        dispatch.load("op", "triton")
    with caplog.at_level("INFO", logger=dispatch.__name__):
        assert dispatch.load("op")(4) == 2
        assert dispatch.load("op")(9) == 3
    (record,) = caplog.records
    assert "the package triton is not installed" in record.getMessage()
    assert record.levelname == ("WARNING" if device else "INFO"), "a device left unused is worth a warning"


@pytest.mark.usefixtures("mock_device")
def test_with_a_mock_device_auto_takes_triton_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(dispatch.TABLE, "op", {"reference": "math:sqrt", "triton": "math:exp"})
    with caplog.at_level("INFO", logger=dispatch.__name__):
        assert dispatch.load("op")(0) == dispatch.load("op")(0) == 1
    assert [record.getMessage() for record in caplog.records] == ["op: triton"]
    assert dispatch.load("op", "reference")(4) == 2


@pytest.mark.usefixtures("mock_device")
def test_with_a_mock_device_the_interpreter_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(dispatch.TABLE, "op", {"reference": "math:sqrt", "triton": "math:exp"})
    assert dispatch.load("op")(4) == 2
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set, which is for tests"):
        dispatch.load("op", "triton")


@pytest.mark.parametrize("op", list(dispatch.TABLE))
def test_without_a_device_triton_is_refused(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(dispatch, "has_cuda_device", lambda: False)
    assert dispatch.unavailable(op, "triton") == "no CUDA device"
    assert dispatch.load(op) is dispatch.load(op, "reference")


def test_dispatch_and_tiles_import_without_torch_and_triton() -> None:
    script = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
        "import ddm_rt.kernels.dispatch, ddm_rt.kernels.indicator_attention.table\n"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True)
