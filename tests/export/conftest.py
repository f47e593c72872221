"""What the tests of export variants and precisions share."""

from collections.abc import Callable, Container
from pathlib import Path

import numpy as np
import pytest
from denoiser_calls import denoiser_call
from known_graphs import trace_knowing
from made_once import made_once
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.export import graph
from ddm_rt.export.precision import quantize


@pytest.fixture
def known_graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """known_graphs(bundle, fresh=()): exports take graphs of that bundle for traced, which takes seconds."""

    def know(bundle: Bundle, fresh: Container[str] = ()) -> None:
        monkeypatch.setattr(graph, "trace", trace_knowing(bundle, fresh))

    return know


@pytest.fixture(scope="session")
def plugin_bundle(tiny_run: Path, tiny_bundle: Bundle, shared_folder: Path) -> Bundle:
    """The bundle of `tiny_run` with the plugin variant. Read-only. What `tiny_bundle` traced isn't traced again."""
    from ddm_rt.export.run import export_run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", trace_knowing(tiny_bundle, ()))
        place = shared_folder / "bundles" / "plugin"
        return Bundle.load(made_once(place, lambda place: export_run(tiny_run, place, plugin=True)))


@pytest.fixture(scope="session")
def calls() -> list[dict[str, NDArray[np.float32]]]:
    """Calls to calibrate the tiny denoiser with."""
    return [denoiser_call(seed) for seed in range(4)]


@pytest.fixture(scope="session")
def ranges(tiny_bundle: Bundle, calls: list[dict[str, NDArray[np.float32]]]) -> quantize.Ranges:
    return quantize.measure(tiny_bundle.graphs["denoiser"], calls)
