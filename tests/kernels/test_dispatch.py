"""The kernel table: explicit choices are met or refused, `auto` takes what can run."""

import importlib.util
from typing import Any

import pytest

from ddm_rt.kernels import dispatch


@pytest.mark.parametrize("op", list(dispatch.TABLE))
def test_every_op_has_a_reference_that_loads(op: str) -> None:
    assert dispatch.unavailable(op, "reference") is None
    assert callable(dispatch.load(op, "reference"))


@pytest.mark.parametrize("op", list(dispatch.TABLE))
def test_auto_loads_something(op: str) -> None:
    assert callable(dispatch.load(op))


@pytest.mark.parametrize("op", list(dispatch.TABLE))
def test_every_flavour_is_of_the_known_ones(op: str) -> None:
    assert set(dispatch.TABLE[op]) <= set(dispatch.IMPLEMENTATIONS)


def test_unknown_op_and_flavour_list_the_choices() -> None:
    with pytest.raises(ValueError, match=r"op 'softmax' is unknown; ops: indicator_attention, guided_step"):
        dispatch.load("softmax", "reference")
    with pytest.raises(ValueError, match=r"flavour 'cuda' of guided_step is unknown; flavours: reference, triton"):
        dispatch.load("guided_step", "cuda")


def test_explicit_flavour_that_is_not_shipped_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch.TABLE, "op", {"reference": "math:sqrt"})
    with pytest.raises(RuntimeError, match="triton op is not available: no triton implementation of op is shipped"):
        dispatch.load("op", "triton")
    assert dispatch.load("op")(4) == 2


def test_a_reference_without_its_package_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None)
    assert dispatch.unavailable("indicator_attention", "reference") == "the package torch is not installed"
    assert dispatch.unavailable("guided_step", "reference") is None, "numpy alone"


def test_triton_without_its_package_is_refused_and_auto_passes_it_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find_spec = importlib.util.find_spec

    def without_triton(name: str, *args: Any) -> Any:
        return None if name == "triton" else find_spec(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", without_triton)
    monkeypatch.setitem(dispatch.TABLE, "op", {"reference": "math:sqrt", "triton": "math:exp"})
    with pytest.raises(RuntimeError, match="the package triton is not installed"):
        dispatch.load("op", "triton")
    assert dispatch.load("op")(4) == 2
