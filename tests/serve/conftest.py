"""What several tests of serving need."""

from collections.abc import Iterator

import pytest
from gated_engine import GatedEngine

from ddm_rt.sample.pipeline import Pipeline


@pytest.fixture
def digits_pipeline() -> Pipeline:
    """The shipped bundle on ONNX Runtime with one thread, and a ledger of its own."""
    return Pipeline.load("digits", backend="onnxruntime", threads=1)


@pytest.fixture
def engine() -> Iterator[GatedEngine]:
    """Its gates are open at the end, so that no thread waits for ever."""
    engine = GatedEngine()
    yield engine
    engine.go.set()
    engine.decoding.set()
