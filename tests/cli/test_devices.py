"""`--device`, and `-v`, which says why a backend was taken."""

from pathlib import Path

import pytest
from conftest import has_cuda

from ddm_rt.bundle import Bundle


def test_why_a_backend_was_taken_is_said_to_those_who_ask(
    ddm_rt, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = ("sample", bundle.path, "-n", 1, "--out")
    assert ddm_rt(*line, tmp_path / "quiet").code == 0
    assert not [message for message in caplog.messages if "backend" in message]
    assert ddm_rt("-v", *line, tmp_path / "verbose").code == 0
    (said,) = [message for message in caplog.messages if "backend" in message]
    assert said.startswith("backend auto: onnxruntime on cpu in fp32; not tensorrt: ")


@pytest.mark.skipif(has_cuda(), reason="is about machines without a GPU")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "gpu"), "device 'gpu' is unknown; expected cpu, cuda, or cuda:N with the number of a device"),
        (("--device", "cuda"), "backend 'auto' is not available: tensorrt: no CUDA driver: libcuda.so.1 was not found"),
        (("--device", "cuda:1", "--backend", "torch"), "'torch' is not available: no CUDA driver"),
        (("--device", "cuda", "--backend", "onnxruntime"), "'onnxruntime' is not available: no CUDA driver"),
        (("--device", "cuda", "--backend", "openvino"), "'openvino' is not available: it doesn't run on cuda:0"),
        (("--device", "cpu", "--backend", "tensorrt"), "'tensorrt' is not available: it doesn't run on cpu"),
    ],
)
def test_a_device_that_is_not_there(ddm_rt, bundle: Bundle, tmp_path: Path, options: tuple, message: str) -> None:
    assert message in ddm_rt("sample", bundle.path, *options, "--out", tmp_path / "out").refusal()
    assert not (tmp_path / "out").exists()


def test_shards_have_no_device_of_their_own(ddm_rt, bundle: Bundle, tmp_path: Path) -> None:
    said = ddm_rt("sample", bundle.path, "--shards", tmp_path / "shards", "--device", "cuda").refusal()
    assert (
        "--device: this option can't go with --shards; each worker takes what Ray gives it and the bundle says" in said
    )


def test_replicas_have_no_device_of_their_own(ddm_rt) -> None:
    said = ddm_rt("serve", "digits", "--replicas", 1, "--device", "cuda").refusal()
    assert "--device: this option can't go with replicas; each takes what Ray gives it and the bundle says" in said
