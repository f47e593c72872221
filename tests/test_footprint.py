"""What the package costs before it does anything: CPU time of the import, and the size of a serving installation."""

import subprocess
import sys

import footprint
import pytest
from pages.speed import FOOTPRINT

# CPU time, not wall time: other processes on the machine don't count.
_IMPORT = "import time; start = time.process_time(); import ddm_rt; print(time.process_time() - start)"


@pytest.mark.idle(reason="neighbours on the same processor cost a process processor time too")
def test_the_import_is_cheap() -> None:
    command = [sys.executable, "-P", "-c", _IMPORT]
    seconds = min(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3))
    assert seconds <= FOOTPRINT["import_s"][1]


def test_a_serving_installation_is_small_and_has_no_torch() -> None:
    serving = footprint.closure("ddm-rt", frozenset({"serve"}))
    assert {"fastapi", "uvicorn", "onnxruntime", "tokenizers"} <= serving
    assert not serving & {"torch", "diffusers", "transformers", "onnx", "scipy", "openvino"}
    assert footprint.megabytes(serving) <= FOOTPRINT["serving_mb"][1]
