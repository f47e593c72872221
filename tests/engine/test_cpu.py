"""ONNX Runtime and OpenVINO on the CPU: the contract, equality with torch, determinism, refusals."""

import dataclasses
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tolerances import EXPORT_FP32_ABS, IMAGE_GREY_LEVELS

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine import backends
from ddm_rt.engine.backends import load
from ddm_rt.engine.contract import Engine, usable_cores
from ddm_rt.engine.cpu.ort import OrtEngine
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.schedule import step_table

Float32 = NDArray[np.float32]
Open = Callable[..., Engine]  # open_engine(bundle, threads=None)


@pytest.fixture(params=["onnxruntime", "openvino"])
def open_engine(request: pytest.FixtureRequest) -> Open:
    """Opens a bundle on one of the backends, whatever its files hold."""
    pytest.importorskip(request.param)
    (row,) = (row for row in backends.TABLE if (row.backend, row.device) == (request.param, "cpu"))
    module, name = row.engine.split(":")
    return getattr(import_module(module), name)


def inputs(batch: int, size: tuple[int, int] = (8, 8), tokens: int = 1) -> dict[str, NDArray]:
    rng = np.random.default_rng(batch)
    return {
        "context": rng.standard_normal((batch, tokens, 16), np.float32),
        "code": np.arange(batch) % 5 - 1,
        "indicator_scale": np.linspace(0, 2, batch, dtype=np.float32),
        "x_t": rng.standard_normal((batch, 4, *size), np.float32),
        "t": rng.uniform(0, 999, batch).astype(np.float32),
    }


def forward(engine: Engine, given: dict[str, NDArray]) -> tuple[Float32, Float32]:
    """The denoiser's output and the image that the decoder makes of it, both on the host."""
    cond = engine.conditioner(given["context"], given["code"], given["indicator_scale"], {})
    out = engine.denoiser(engine.array(given["x_t"]), engine.array(given["t"]), cond)
    return np.asarray(out), engine.decoder(out)


@pytest.mark.parametrize(("batch", "size", "tokens"), [(1, (8, 8), 1), (5, (6, 10), 3), (17, (4, 2), 1)])
def test_agrees_with_torch(
    tiny_bundle: Bundle, open_engine: Open, batch: int, size: tuple[int, int], tokens: int
) -> None:
    given = inputs(batch, size, tokens)
    ours, images = forward(open_engine(tiny_bundle, 1), given)
    theirs, expected = forward(load(tiny_bundle, "torch", 1), given)
    assert ours.dtype == theirs.dtype == images.dtype == np.float32
    assert images.shape == (batch, 1, 2 * size[0], 2 * size[1])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXPORT_FP32_ABS)
    np.testing.assert_allclose(images, expected, rtol=0, atol=EXPORT_FP32_ABS)


def test_a_whole_guided_trajectory_agrees_with_torch(tiny_bundle: Bundle, open_engine: Open) -> None:
    def trajectory(engine: Engine) -> Float32:
        rng = np.random.default_rng(0)
        table = step_table(tiny_bundle.schedule, tiny_bundle.config.sampling.sampler, 4)
        x = engine.array(rng.standard_normal((2, 4, 8, 8), np.float32) * np.float32(table.init_scale))
        x0 = engine.array(np.zeros((2, 4, 8, 8), np.float32))
        context, scale = np.zeros((2, 1, 16), np.float32), np.ones(2, np.float32)
        branches = [engine.conditioner(context, code, scale, {}) for code in (np.array([-1, -1]), np.array([0, 3]))]
        for i, row in enumerate(table.rows()):
            t = engine.array(np.full(2, table.timesteps[i], np.float32))
            outputs = [engine.denoiser(x, t, cond) for cond in branches]
            guidance = engine.array(np.full((2, 1), 2.0, np.float32))
            x, x0 = engine.guided_step(outputs, guidance, engine.array(np.stack([row, row])), x, x0, None, None)
        return engine.decoder(x)

    ours, theirs = trajectory(open_engine(tiny_bundle, 1)), trajectory(load(tiny_bundle, "torch", 1))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXPORT_FP32_ABS)


def test_images_with_options_of_guidance_agree_with_torch(tiny_bundle: Bundle, open_engine: Open) -> None:
    request: dict[str, Any] = {"n": 6, "codes": [-1, 0, 1, 2, 3, -1], "num_steps": 5, "indicator_guidance_scale": 4.0}
    pipelines = [
        Pipeline(tiny_bundle, engine) for engine in (open_engine(tiny_bundle, 1), load(tiny_bundle, "torch", 1))
    ]
    plain = pipelines[0].generate(**request).images
    for options in ({"guidance_interval": (0.2, 0.8)}, {"apg": (1.0, 0.25)}):
        ours, theirs = (pipeline.generate(**request, **options).images for pipeline in pipelines)
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= IMAGE_GREY_LEVELS
        np.testing.assert_array_equal(ours[[0, 5]], plain[[0, 5]])  # of one branch
        assert (ours[1:5] != plain[1:5]).any(axis=(1, 2, 3)).all()


def test_a_bundle_without_codes_takes_the_null_code(plain_bundle: Bundle, open_engine: Open) -> None:
    given = inputs(3)
    engine = open_engine(plain_bundle, 1)
    given["code"] = np.full(3, -1)
    assert forward(engine, given)[1].shape == (3, 1, 16, 16)
    with pytest.raises(DdmError, match="code is 0; this bundle has 0 codes"):
        engine.conditioner(given["context"], np.zeros(3, np.int64), given["indicator_scale"], {})


@pytest.mark.parametrize("code", [-2, 4, 99])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_a_code_outside_the_bundle_is_refused(tiny_bundle: Bundle, backend: str, code: int) -> None:
    context, scale = np.zeros((2, 1, 16), np.float32), np.ones(2, np.float32)
    with pytest.raises(DdmError, match=f"code is {code}; this bundle has 4 codes"):
        load(tiny_bundle, backend).conditioner(context, np.array([0, code]), scale, {})


def test_repeats_bit_for_bit_and_across_instances(tiny_bundle: Bundle, open_engine: Open) -> None:
    given = inputs(8)
    first = forward(open_engine(tiny_bundle, 1), given)[0]
    engine = open_engine(tiny_bundle, 1)
    for _ in range(3):
        np.testing.assert_array_equal(forward(engine, given)[0], first)


def test_guided_step_is_the_reference(tiny_bundle: Bundle, open_engine: Open) -> None:
    rng = np.random.default_rng(0)
    a, b, x, x0 = (rng.standard_normal((3, 4, 2, 2), np.float32) for _ in range(4))
    rows = rng.standard_normal((3, 9), np.float32)
    rows[:, 7:] = -1, 1
    scales = rng.standard_normal((3, 1), np.float32)
    seeds, counters = np.array([0, 2**64 - 1, 5], np.uint64), np.array([0, 7, 7])
    engine = open_engine(tiny_bundle, 1)
    found = engine.guided_step([a, b], scales, rows, x, x0, engine.array(seeds), engine.array(counters))
    for got, want in zip(found, guided_step([a, b], scales, rows, x, x0, seeds, counters), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_take_and_concat(tiny_bundle: Bundle, backend: str) -> None:
    engine = load(tiny_bundle, backend)
    host = np.arange(12, dtype=np.float32).reshape(4, 3)
    host.setflags(write=False)
    index = np.array([3, 0, 0])
    array = engine.array(host)
    np.testing.assert_array_equal(np.asarray(engine.take(array, index)), host[index])
    joined = engine.concat([array, engine.take(array, index)])
    np.testing.assert_array_equal(np.asarray(joined), np.concatenate([host, host[index]]))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_says_what_computes(tiny_bundle: Bundle, backend: str) -> None:
    threads = usable_cores() + 1  # not what it takes by itself
    engine = load(tiny_bundle, backend, threads)
    assert (engine.backend, engine.precision, engine.threads) == (backend, "fp32", threads)
    assert engine.versions.keys() == {backend, "numpy"}
    assert load(tiny_bundle, backend).threads == usable_cores()


def test_the_precision_of_onnx_runtime_is_the_bundles(tiny_bundle: Bundle) -> None:
    """Of a bundle that says so; that graphs of such a precision run is shown in tests/cli/test_precision.py."""

    def said(precision: Precision) -> Bundle:
        return dataclasses.replace(tiny_bundle, config=tiny_bundle.config.model_copy(update={"precision": precision}))

    for precision in Precision:
        reason = OrtEngine.unavailable(said(precision))
        if precision is Precision.BF16:
            assert reason == "ONNX Runtime has no bf16 operators on the CPU, and this bundle is bf16"
        else:
            assert reason is None
            assert OrtEngine(said(precision), 1).precision == precision


def test_wrong_shapes_become_one_clear_error(tiny_bundle: Bundle, open_engine: Open) -> None:
    engine = open_engine(tiny_bundle, 1)
    given = inputs(2)
    cond = engine.conditioner(given["context"], given["code"], given["indicator_scale"], {})
    with pytest.raises(DdmError, match=r"denoiser\.onnx refused its inputs \(x_t \[2, 5, 8, 8\], t \[2\]"):
        engine.denoiser(np.zeros((2, 5, 8, 8), np.float32), given["t"], cond)
    with pytest.raises(DdmError, match=r"conditioner\.onnx refused its inputs"):
        engine.conditioner(given["context"][..., :3], given["code"], given["indicator_scale"], {})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_non_finite_images_are_refused(tiny_bundle: Bundle, backend: str, value: float) -> None:
    engine = load(tiny_bundle, backend)
    x0 = np.zeros((1, 4, 8, 8), np.float32)
    x0[0, 1, 2, 3] = value
    with pytest.raises(DdmError, match="tiny: produced non-finite values"):
        engine.decoder(engine.array(x0))


def unverified(bundle: Bundle, path: Path, graph: str, content: bytes) -> Bundle:
    """`bundle` copied to `path` with one graph replaced, as if it had been exported so."""
    shutil.copytree(bundle.path, path)
    (path / graph).write_bytes(content)
    return dataclasses.replace(bundle, path=path)


def test_what_is_not_a_graph_is_named(tiny_bundle: Bundle, open_engine: Open, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"denoiser\.onnx: not a graph"):
        open_engine(unverified(tiny_bundle, tmp_path / "b", "denoiser.onnx", b"not a protocol buffer"), 1)


def test_a_foreign_graph_is_named(tiny_bundle: Bundle, open_engine: Open, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["sample"], ["out"])],
        "foreign",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    with pytest.raises(BundleError, match=r"denoiser\.onnx: inputs are sample; the bundle says x_t, t, text"):
        open_engine(unverified(tiny_bundle, tmp_path / "b", "denoiser.onnx", model.SerializeToString()), 1)
