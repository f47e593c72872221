"""What several tests of serving need."""

import pytest

from ddm_rt.sample.pipeline import Pipeline


@pytest.fixture
def digits_pipeline() -> Pipeline:
    """The shipped bundle on ONNX Runtime with one thread, and a ledger of its own."""
    return Pipeline.load("digits", backend="onnxruntime", threads=1)
