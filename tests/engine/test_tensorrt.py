"""The TensorRT engines on a fake driver and a fake TensorRT: host logic, never a run. The fake runs the bundle's ONNX
graphs through ONNX Runtime on its own memory, so that images must be ONNX Runtime's to the bit.
"""

import dataclasses
import importlib.util
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("cuda") is None:
    pytest.skip("needs cuda-bindings", allow_module_level=True)

import cuda.bindings.driver as real
from conftest import has_cuda
from fake_cuda import FakeDriver
from fake_tensorrt import (
    MAX_BATCH,
    RTX,
    Machine,
    Specialization,
    reference,
    step_arguments,
    with_fake_plan,
)
from tolerances import IMAGE_GREY_LEVELS

from ddm_rt.bundle import Bundle
from ddm_rt.engine import backends, user_cache
from ddm_rt.engine.tensorrt import build, cuda, flavours, plans
from ddm_rt.engine.tensorrt.engine import TensorRTEngine, TensorRTRtxEngine
from ddm_rt.engine.tensorrt.network import Runtime
from ddm_rt.errors import BackendUnavailable, BundleError, DdmError
from ddm_rt.files import sha256
from ddm_rt.kernels.guided_step.table import variants
from ddm_rt.kernels.pack import read_pack
from ddm_rt.kernels.projected_guidance.table import BRANCHES
from ddm_rt.sample.pipeline import Pipeline

GPU = "Fake GPU"


def _copy(bundle: Bundle, folder: Path) -> Bundle:
    return Bundle.load(shutil.copytree(bundle.path, folder / "bundle"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(user_cache.CACHE, str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def planned(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """tiny_bundle with a fake plan for sm_89. Read-only."""
    return with_fake_plan(_copy(tiny_bundle, tmp_path_factory.mktemp("planned")))


@pytest.fixture(params=[False, True], ids=["lazy", "eager"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch, eager=request.param)


@pytest.fixture
def engine(machine: Machine, planned: Bundle) -> Iterator[TensorRTRtxEngine]:
    made = TensorRTRtxEngine(planned)
    yield made
    made.close()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++2m"])
def test_images_on_a_fake_driver_are_onnx_runtimes_to_the_bit(
    engine: TensorRTRtxEngine, planned: Bundle, sampler: str
) -> None:
    """One and two branches, noise, x0_prev, several calls of one size per step, null codes among others."""
    request: dict[str, Any] = {"n": 11, "seed": 5, "sampler": sampler, "num_steps": 5}
    ours, theirs = Pipeline(planned, engine), Pipeline(planned, reference(planned))
    assert ours.buckets == theirs.buckets
    projected = {"apg": (2.0, 0.25), "guidance_interval": (0.2, 0.8), "indicator_guidance_scale": 4.0}
    for settings in (projected, {"indicator_guidance_scale": 2.5}, {"codes": [-1, 0, 1, 2, 3, -1, 0, 1, 2, 3, -1]}):
        made, expected = ours.generate(**request, **settings), theirs.generate(**request, **settings)
        np.testing.assert_array_equal(made.images, expected.images)
        assert len(np.unique(made.images)) > 2


def test_other_sizes_and_a_bundle_without_codes(
    machine: Machine, engine: TensorRTRtxEngine, planned: Bundle, plain_bundle: Bundle, tmp_path: Path
) -> None:
    size = 2 * planned.config.image_size
    made = Pipeline(planned, engine).generate(n=2, num_steps=2, height=size)
    expected = Pipeline(planned, reference(planned)).generate(n=2, num_steps=2, height=size)
    np.testing.assert_array_equal(made.images, expected.images)
    with pytest.raises(DdmError, match=r"denoiser.plan: input x_t has shape \[1, 4, 24, 8\]; the plan takes \[1, 4, 8"):
        Pipeline(planned, engine).generate(height=3 * planned.config.image_size)
    plain = with_fake_plan(_copy(plain_bundle, tmp_path))
    other = TensorRTRtxEngine(plain)
    made = Pipeline(plain, other).generate(n=2, num_steps=2)
    np.testing.assert_array_equal(made.images, Pipeline(plain, reference(plain)).generate(n=2, num_steps=2).images)
    other.close()


def test_what_the_manifest_says(engine: TensorRTRtxEngine, planned: Bundle) -> None:
    manifest = Pipeline(planned, engine).generate(num_steps=1).manifest
    assert (manifest["backend"], manifest["precision"], manifest["threads"]) == ("tensorrt-rtx", "fp32", 1)
    plan = manifest["versions"].pop("plan")
    assert len(plan) == 16
    assert manifest["versions"] == {"tensorrt-rtx": "1.0-fake", "cuda": "13.1", "gpu": GPU}


def test_the_probe_stays_within_the_plans_batch(engine: TensorRTRtxEngine, planned: Bundle) -> None:
    assert max(Pipeline(planned, engine).buckets) <= MAX_BATCH


def test_a_driver_that_is_too_old_is_told_with_what_is_needed(machine: Machine, planned: Bundle) -> None:
    machine.trt.refuse.add("driver")
    words = (
        r"^tensorrt_rtx 1\.0-fake doesn't start here: it needs an NVIDIA driver of CUDA 13, which is R580, or newer "
        r"\(the driver here is of CUDA 13\.1\): the fake's driver is too old$"
    )
    with pytest.raises(DdmError, match=words):
        TensorRTRtxEngine(planned)
    assert machine.driver.memory == {}


def test_a_plan_is_hashed_once_in_a_start(
    machine: Machine, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, hashed = with_fake_plan(_copy(tiny_bundle, tmp_path)), []
    monkeypatch.setattr("ddm_rt.bundle.sha256", lambda path: hashed.append(path.name) or sha256(path))
    assert backends.load(bundle).backend == "tensorrt-rtx"
    assert hashed.count("denoiser.plan") == 1


def test_the_loop_waits_for_nothing_and_allocates_nothing(machine: Machine, planned: Bundle) -> None:
    """Between two steps, once shapes are warm; on a device that keeps up, page-locked memory doesn't grow either."""
    engine, driver = TensorRTRtxEngine(planned), machine.driver
    pipeline = Pipeline(planned, engine)
    marks: list[int] = []
    for _ in range(2):
        marks.clear()
        pipeline.generate(
            n=12, num_steps=6, sampler="ddpm", on_step=lambda done, total: marks.append(len(driver.trace))
        )
    loop = driver.trace[marks[0] : marks[5]]
    grows = [] if driver.eager else ["cuMemHostAlloc", "cuEventCreate"]
    assert "cuGraphLaunch" in loop
    assert loop.count("cuLaunchKernel") == 5
    waits = {"cuStreamSynchronize", "cuEventSynchronize", "cuMemAlloc", "cuMemFree", "cuMemcpyDtoHAsync"}
    assert [name for name in loop if name in waits or (name in {"cuMemHostAlloc", "cuEventCreate"} - {*grows})] == []
    pipeline.generate(n=12, num_steps=20, sampler="ddpm")  # the tables of its steps are larger
    held = len(driver.memory)
    pipeline.generate(n=12, num_steps=20, sampler="ddpm")
    assert len(driver.memory) == held
    engine.close()


def test_one_context_per_captured_graph(machine: Machine, engine: TensorRTRtxEngine, planned: Bundle) -> None:
    pipeline = Pipeline(planned, engine)
    pipeline.generate(n=3, num_steps=2)
    driver, contexts = machine.driver, machine.trt.contexts
    assert len({(id(context.engine), str(context.shapes)) for context in contexts}) == len(contexts)
    # Each was run once outside a graph, then captured once, and never enqueued again.
    assert [context.enqueued for context in contexts] == [[False, True]] * len(contexts)
    assert driver.live["executable"] == len(contexts)
    assert set(driver.capture_modes) == {real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL}
    assert len({context.workspace for context in contexts}) == 1
    # Kernels that TensorRT-RTX swaps in later would change bytes.
    assert {c.config.dynamic_shapes_kernel_specialization_strategy for c in contexts} == {Specialization.EAGER}
    made = len(contexts)
    pipeline.generate(n=3, num_steps=2)
    assert len(contexts) == made


def test_contexts_are_bounded(machine: Machine, planned: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddm_rt.engine.tensorrt.network._MOST_CALLS", 2)
    engine = TensorRTRtxEngine(planned)
    made = Pipeline(planned, engine).generate(n=11, num_steps=3)
    assert machine.driver.live["executable"] <= 2 * 3
    expected = Pipeline(planned, reference(planned)).generate(n=11, num_steps=3)
    np.testing.assert_array_equal(made.images, expected.images)
    engine.close()


@pytest.mark.parametrize("how", ["TensorRT", "driver"])
def test_an_engine_that_cant_be_captured_says_so_once_and_gives_the_same(
    machine: Machine, planned: Bundle, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    if how == "TensorRT":
        machine.trt.refuse.add("capture")
    else:
        machine.driver.fail["cuStreamEndCapture"] = real.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    engine = TensorRTRtxEngine(planned)
    made = Pipeline(planned, engine).generate(n=3, num_steps=3)
    said = [record.getMessage() for record in caplog.records if "no CUDA graph" in record.getMessage()]
    assert len(said) == len(machine.trt.contexts)
    assert ("STREAM_CAPTURE_INVALIDATED" if how == "driver" else "isn't capturable") in said[0]
    expected = Pipeline(planned, reference(planned)).generate(n=3, num_steps=3)
    np.testing.assert_array_equal(made.images, expected.images)
    engine.close()


def test_everything_is_freed_on_close_and_when_forgotten(machine: Machine, planned: Bundle) -> None:
    for way in ("close", "forget"):
        engine: TensorRTRtxEngine | None = TensorRTRtxEngine(planned)
        assert engine is not None
        Pipeline(planned, engine).generate(n=2, num_steps=2)
        if way == "close":
            engine.close()
        engine = None  # no cycle keeps it
        assert machine.driver.memory == machine.driver.pinned == {}
        assert set(machine.driver.live.values()) == {0}


def test_a_failed_start_frees_what_it_made(machine: Machine, planned: Bundle) -> None:
    machine.driver.fail["cuModuleGetFunction"] = real.CUresult.CUDA_ERROR_NOT_FOUND
    with pytest.raises(DdmError, match="cuModuleGetFunction"):
        TensorRTRtxEngine(planned)
    assert machine.driver.memory == {}
    assert set(machine.driver.live.values()) == {0}


def test_errors_carry_the_librarys_words(machine: Machine, engine: TensorRTRtxEngine, planned: Bundle) -> None:
    machine.trt.refuse.add("run")
    with pytest.raises(DdmError, match=r"conditioner\.plan failed to run: the fake was told to fail"):
        Pipeline(planned, engine).generate()
    machine.trt.refuse.clear()
    machine.driver.fail["cuGraphLaunch"] = real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(DdmError, match="CUDA driver: cuGraphLaunch: the fake's text for CUDA_ERROR_ILLEGAL_ADDRESS"):
        Pipeline(planned, engine).generate()


def test_wrong_inputs_are_refused(engine: TensorRTRtxEngine, planned: Bundle) -> None:
    cond = engine.conditioner(np.zeros((1, 1, 16), np.float32), np.array([0]), np.ones(1, np.float32), {})
    x = engine.array(np.zeros((1, *planned.config.latent_shape), np.float32))
    with pytest.raises(DdmError, match="input t is float64; expected float32"):
        engine.denoiser(x, engine.array(np.zeros(1)), cond)
    with pytest.raises(DdmError, match=r"given were x_t, t$"):
        engine.denoiser(x, engine.array(np.zeros(1, np.float32)), {})
    with pytest.raises(DdmError, match="code is 4; this bundle has 4 codes"):
        engine.conditioner(np.zeros((1, 1, 16), np.float32), np.array([4]), np.ones(1, np.float32), {})
    with pytest.raises(DdmError, match="produced non-finite values"):
        engine.decoder(engine.array(np.full((1, *planned.config.latent_shape), np.nan, np.float32)))
    row = np.zeros((1, 9), np.float32)
    scales = engine.array(np.zeros((1, 0), np.float32))
    with pytest.raises(ValueError, match=r"rows has shape \(2, 9\); expected \(1, 9\)"):
        engine.guided_step([x], scales, engine.array(np.repeat(row, 2, axis=0)), x, x, None, None)
    with pytest.raises(DdmError, match="rows is float64; expected float32"):
        engine.guided_step([x], scales, engine.array(row.astype(np.float64)), x, x, None, None)


def test_a_tensor_of_an_unknown_type_is_refused(machine: Machine, planned: Bundle) -> None:
    machine.trt.refuse.add("x_t")
    with pytest.raises(DdmError, match=r"denoiser\.plan: x_t is DataType\.BF16; expected float32, float16"):
        TensorRTRtxEngine(planned)


def test_tensors_that_the_bundle_doesnt_name_are_refused(machine: Machine, planned: Bundle) -> None:
    cond = tuple(spec.model_copy(update={"name": f"{spec.name}_2"}) for spec in planned.config.cond)
    other = dataclasses.replace(planned, config=planned.config.model_copy(update={"cond": cond}))
    with pytest.raises(BundleError, match=r"conditioner\.plan: outputs are .*; the bundle says .*_2"):
        TensorRTRtxEngine(other)


def test_engines_in_two_threads_share_no_stream_or_context(machine: Machine, planned: Bundle) -> None:
    made: dict[int, Any] = {}

    def work(seed: int) -> None:
        engine = TensorRTRtxEngine(planned)
        made[seed] = Pipeline(planned, engine).generate(n=2, seed=seed, num_steps=3).images, engine

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({int(stream) for stream in machine.driver.streams}) == 2
    assert len({id(context.engine) for context in machine.trt.contexts}) == 6
    theirs = Pipeline(planned, reference(planned))
    for seed, (images, engine) in made.items():
        np.testing.assert_array_equal(images, theirs.generate(n=2, seed=seed, num_steps=3).images)
        engine.close()


def test_an_engine_works_in_a_thread_that_didnt_make_it(engine: TensorRTRtxEngine, planned: Bundle) -> None:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(Pipeline(planned, engine).generate(num_steps=2).images))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(made[0], Pipeline(planned, reference(planned)).generate(num_steps=2).images)


@pytest.mark.skipif(has_cuda(), reason="this machine has a driver")
def test_without_a_driver_the_backend_is_refused_by_name(planned: Bundle) -> None:
    pytest.importorskip(RTX.module)
    reason = "no CUDA driver: libcuda.so.1 was not found"
    assert TensorRTRtxEngine.unavailable(planned) == reason
    with pytest.raises(BackendUnavailable, match=f"^backend 'tensorrt-rtx' is not available: {reason}"):
        TensorRTRtxEngine(planned)


def test_without_the_package_the_backend_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddm_rt.engine.tensorrt.engine.find_spec", lambda name: None)
    monkeypatch.setattr(flavours, "find_spec", lambda name: None)
    for engine in (TensorRTEngine, TensorRTRtxEngine):
        assert "is not installed; pip install" in str(engine.unavailable(None))


def test_only_a_fitting_plan_is_taken(
    machine: Machine, planned: Bundle, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TensorRTRtxEngine.unavailable(planned) is None
    assert backends.unavailable("tensorrt-rtx", planned) is None
    assert "no plan of tensorrt-rtx for sm_89" in str(TensorRTRtxEngine.unavailable(tiny_bundle))
    stale = with_fake_plan(_copy(tiny_bundle, tmp_path), version="0.9")
    assert "built by version 0.9; 1.0-fake is installed" in str(TensorRTRtxEngine.unavailable(stale))
    bare = with_fake_plan(stale, kernels="triton was not installed")
    assert "has no guided_step kernel: triton was not installed" in str(TensorRTRtxEngine.unavailable(bare))
    Machine(monkeypatch, architecture=(12, 0))
    with pytest.raises(BackendUnavailable, match="it is for sm_89; this GPU is sm_120"):
        TensorRTRtxEngine(planned)


def test_auto_takes_it_where_a_plan_fits(machine: Machine, planned: Bundle, tiny_bundle: Bundle) -> None:
    assert backends.load(planned).backend == "tensorrt-rtx"
    assert backends.load(tiny_bundle).backend == "onnxruntime"


def test_an_altered_kernel_is_refused(machine: Machine, planned: Bundle, tmp_path: Path) -> None:
    bundle = _copy(planned, tmp_path)
    cubin = next(bundle.path.glob("plans/*/kernels/*.cubin"))
    cubin.write_bytes(cubin.read_bytes() + b" ")
    with pytest.raises(BackendUnavailable, match=r"is refused: .*cubin"):
        TensorRTRtxEngine(bundle)


_RUNTIME_NAMES = {
    "ICudaEngine": "create_execution_context create_runtime_config device_memory_size_v2 get_tensor_dtype "
    "get_tensor_mode get_tensor_name get_tensor_profile_shape num_io_tensors num_optimization_profiles",
    "IExecutionContext": "execute_async_v3 get_tensor_shape infer_shapes is_stream_capturable set_device_memory "
    "set_input_shape set_optimization_profile_async set_tensor_address",
    "IRuntimeConfig": "create_runtime_cache dynamic_shapes_kernel_specialization_strategy "
    "set_execution_context_allocation_strategy set_runtime_cache",
    "IRuntimeCache": "deserialize serialize",
    "Runtime": "deserialize_cuda_engine",
    "DataType": "BOOL FLOAT HALF INT32 INT64",
    "TensorIOMode": "INPUT OUTPUT",
    "ExecutionContextAllocationStrategy": "USER_MANAGED",
    "DynamicShapesKernelSpecializationStrategy": "EAGER",
}


def test_the_real_tensorrt_rtx_has_every_name_that_the_runtime_uses() -> None:
    trt = pytest.importorskip(RTX.module)
    for name, members in _RUNTIME_NAMES.items():
        assert [member for member in members.split() if not hasattr(getattr(trt, name), member)] == []


@pytest.mark.skipif(has_cuda(), reason="this machine has a driver")
def test_the_real_tensorrt_rtx_without_a_driver_says_why_it_takes_no_plan() -> None:
    runtime = Runtime(pytest.importorskip(RTX.module), "none")
    with pytest.raises(DdmError, match=r"^x\.plan can't be deserialized: .*CUDA driver"):
        runtime.deserialize(b"something" * 100, "x.plan")
    runtime.close()


def test_a_really_built_plan_is_one_that_the_runtime_finds(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built for real, found on a fake driver; running it needs a device."""
    pytest.importorskip("triton")
    monkeypatch.setattr(cuda, "load", FakeDriver)
    assert TensorRTRtxEngine.unavailable(built) is None
    pack = read_pack(next(built.path.glob("plans/*/kernels")))
    declared = {(kernel.op, *((a.name, a.kind, a.bytes) for a in kernel.arguments)) for kernel in pack.kernels}
    assert declared == {(op, *arguments) for op, arguments in step_arguments().items()}  # as this file's fakes do
    assert len(pack.kernels) == len(variants()) + len(BRANCHES)


@pytest.mark.gpu
def test_a_real_plan_on_a_device_gives_onnx_runtimes_images(tiny_bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip(RTX.module)
    architecture = cuda.device_info().architecture
    if architecture not in RTX.architectures:
        pytest.skip(f"TensorRT-RTX builds nothing for {architecture}")
    bundle = _copy(tiny_bundle, tmp_path)
    settings = build.options(bundle.config, [plans.Range(min=1, opt=4, max=MAX_BATCH)])
    build.build(bundle, RTX, build.Target(architecture, plans.NO_GPU), settings)
    bundle = Bundle.load(bundle.path)
    engine = TensorRTRtxEngine(bundle)
    for sampler in ("ddim", "ddpm"):
        request: dict[str, Any] = {"n": 11, "sampler": sampler, "num_steps": 5}
        made = Pipeline(bundle, engine).generate(**request).images
        np.testing.assert_array_equal(made, Pipeline(bundle, engine).generate(**request).images)
        expected = Pipeline(bundle, reference(bundle)).generate(**request).images
        assert np.abs(made.astype(int) - expected.astype(int)).max() <= IMAGE_GREY_LEVELS
    engine.close()
