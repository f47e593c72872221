"""The ONNX Runtime engine for CUDA devices over a fake driver: the real engine, sessions and binding, with ONNX Runtime
on the CPU in the provider's place. Nothing here is a run on a device.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from fake_cuda import FakeDriver
from fake_tensorrt import write_fake_pack
from patience import PATIENCE_S

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.cpu.ort import OrtEngine
from ddm_rt.engine.devices import CUDA_DEVICE
from ddm_rt.engine.ort import engine, sessions
from ddm_rt.engine.ort.engine import OrtCudaEngine
from ddm_rt.engine.tensorrt import cuda
from ddm_rt.errors import BackendUnavailable, DdmError
from ddm_rt.export.precision.convert import convert
from ddm_rt.sample.pipeline import Pipeline

GPU = "Fake GPU"


class Opened:
    """Sessions on the CPU where the engine asks for ones on a device; what they were opened and run with."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.runs: list[tuple[str, str, tuple[int, ...]]] = []
        self.threads: set[int] = set()  # that ran one
        self.not_captured: set[str] = set()  # graphs whose capture fails

    def __call__(self, path: Path, provider: str, ordinal: int, stream: int, *, graphs: bool, half: bool) -> Any:
        self.asked.append({"path": path.name, "provider": provider, "stream": stream, "graphs": graphs, "half": half})
        fails = graphs and path.name in self.not_captured
        return _Session(sessions.open_session(path, 1), path.name, self.runs, self.threads, fails)


class _Session:
    """ONNX Runtime's, whose bindings take device addresses: the fake driver's are the host's own."""

    def __init__(
        self, session: ort.InferenceSession, name: str, runs: list[Any], threads: set[int], fails: bool
    ) -> None:
        self._session, self.name, self.runs = session, name, runs
        self.threads, self.fails = threads, fails
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

    def io_binding(self) -> "_Binding":
        return _Binding(self._session.io_binding())

    def run_with_iobinding(self, bound: "_Binding", options: ort.RunOptions) -> None:
        graph = options.get_run_config_entry("gpu_graph_id")
        if graph != "-1" and self.fails:
            raise RuntimeError("error 900: operation not permitted when stream is capturing")
        self.runs.append((self.name, graph, tuple(sorted(bound.addresses))))
        self.threads.add(threading.get_ident())
        self._session.run_with_iobinding(bound.real, ort.RunOptions())


class _Binding:
    def __init__(self, real: Any) -> None:
        self.real = real
        self.inputs: dict[str, int] = {}  # the addresses that are bound
        self.outputs: dict[str, int] = {}
        self.get_outputs = real.get_outputs

    @property
    def addresses(self) -> list[int]:
        return [*self.inputs.values(), *self.outputs.values()]

    def clear_binding_inputs(self) -> None:
        self.real.clear_binding_inputs()
        self.inputs.clear()

    def clear_binding_outputs(self) -> None:
        self.real.clear_binding_outputs()
        self.outputs.clear()

    def bind_input(self, name: str, device: str, ordinal: int, *rest: Any) -> None:
        assert (device, ordinal) == ("cuda", 0)
        self.inputs[name] = rest[-1]
        self.real.bind_input(name, "cpu", 0, *rest)

    def bind_output(self, name: str, device: str, ordinal: int, *rest: Any) -> None:
        assert (device, ordinal) == ("cuda", 0)
        if rest:
            self.outputs[name] = rest[-1]
        self.real.bind_output(name, "cpu", 0, *rest)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Opened:
    driver, found = FakeDriver(eager=True), Opened()
    monkeypatch.setattr(cuda, "load", lambda: driver)
    monkeypatch.setattr(sessions, "open_on_device", found)
    monkeypatch.setattr(sessions, "device_provider", lambda: sessions.CUDA_PROVIDER)
    monkeypatch.setattr(sessions, "cannot_start", lambda provider, ordinal: None)
    write_fake_pack(tmp_path / "kernels", "sm_89")
    monkeypatch.setattr(engine, "kernels_for", lambda architecture: tmp_path / "kernels")
    return found


@pytest.fixture
def made(opened: Opened, tiny_bundle: Bundle) -> Iterator[OrtCudaEngine]:
    made = OrtCudaEngine(tiny_bundle)
    yield made
    made.close()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++2m"])
def test_images_on_a_fake_driver_are_those_of_the_cpu_to_the_bit(
    made: OrtCudaEngine, tiny_bundle: Bundle, sampler: str
) -> None:
    request: dict[str, Any] = {"n": 11, "seed": 5, "sampler": sampler, "num_steps": 5, "indicator_guidance_scale": 2.5}
    ours, theirs = Pipeline(tiny_bundle, made), Pipeline(tiny_bundle, OrtEngine(tiny_bundle, threads=1))
    np.testing.assert_array_equal(ours.generate(**request).images, theirs.generate(**request).images)


def test_each_set_of_shapes_is_a_graph_over_fixed_addresses(opened: Opened, made: OrtCudaEngine) -> None:
    pipeline = Pipeline(made._bundle, made)
    pipeline.generate(n=3, num_steps=4)
    runs = [run for run in opened.runs if run[0] == "denoiser.onnx" and run[1] != "-1"]
    addresses = {graph: {places for name, number, places in runs if number == graph} for _, graph, _ in runs}
    assert all(len(places) == 1 for places in addresses.values())
    assert {graph for name, graph, _ in opened.runs if name == "conditioner.onnx"} == {"-1"}


def test_sessions_queue_on_the_engines_own_stream(opened: Opened, made: OrtCudaEngine) -> None:
    assert {asked["stream"] for asked in opened.asked} == {made._stream.handle}
    assert {asked["path"]: asked["graphs"] for asked in opened.asked} == {
        "conditioner.onnx": False,
        "denoiser.onnx": True,
        "decoder.onnx": True,
    }


def test_one_thread_makes_all_calls(opened: Opened, made: OrtCudaEngine) -> None:
    """ONNX Runtime keeps a graph for the thread that captured it."""
    pipeline = Pipeline(made._bundle, made)
    with ThreadPoolExecutor(1) as another:
        another.submit(pipeline.generate, n=1, num_steps=2).result()
    pipeline.generate(n=1, num_steps=2)
    assert len(opened.threads) == 1


def test_what_can_not_be_captured_is_launched_with_a_warning(
    opened: Opened, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    opened.not_captured.add("denoiser.onnx")
    made = OrtCudaEngine(tiny_bundle)
    found = Pipeline(tiny_bundle, made).generate(n=3, num_steps=3).images
    wanted = Pipeline(tiny_bundle, OrtEngine(tiny_bundle, threads=1)).generate(n=3, num_steps=3).images
    np.testing.assert_array_equal(found, wanted)
    assert caplog.text.count("denoiser.onnx: no CUDA graph, its calls are launched one by one: error 900") == 1
    made.close()


def test_only_halves_may_be_rounded_as_tf32_is(opened: Opened, tiny_bundle: Bundle, tmp_path: Path) -> None:
    half = convert(tiny_bundle, tmp_path / "half", Precision.FP16)
    for bundle in (tiny_bundle, half):
        OrtCudaEngine(bundle).close()
    assert [asked["half"] for asked in opened.asked] == [False] * 3 + [True] * 3


def test_several_processes_compile_the_kernels_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each finds a whole pack; what somebody else put there is not taken."""
    monkeypatch.setenv("DDM_RT_CACHE", str(tmp_path))
    ready = threading.Barrier(3)

    def write(out: Path, *_: Any) -> None:
        write_fake_pack(out, "sm_89")
        ready.wait(PATIENCE_S)

    monkeypatch.setattr(engine, "write_pack", write)
    with ThreadPoolExecutor(3) as workers:
        places = {one.result() for one in [workers.submit(engine.kernels_for, "sm_89") for _ in range(3)]}
    (place,) = places
    assert engine.kernels_for("sm_89") == place
    (place / "manifest.json").write_text("{}")
    ready = threading.Barrier(1)
    assert (engine.kernels_for("sm_89") / "manifest.json").read_text() != "{}"
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_what_the_manifest_says(made: OrtCudaEngine) -> None:
    manifest = Pipeline(made._bundle, made).generate(num_steps=1).manifest
    assert (manifest["backend"], manifest["precision"]) == ("onnxruntime", "fp32")
    said = {name: manifest["versions"][name] for name in ("onnxruntime", "provider", "cuda", "gpu")}
    assert said == {"onnxruntime": ort.__version__, "provider": sessions.CUDA_PROVIDER, "cuda": "13.1", "gpu": GPU}


def test_beyond_so_many_shapes_calls_are_launched(
    opened: Opened, made: OrtCudaEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "_MOST_CALLS", 1)
    pipeline = Pipeline(made._bundle, made)
    pipeline.generate(n=1, num_steps=2)
    assert "others are launched" in caplog.text
    assert {graph for name, graph, _ in opened.runs if name == "denoiser.onnx"} <= {"-1", "1"}


def test_shapes_that_a_graph_does_not_take(made: OrtCudaEngine) -> None:
    with pytest.raises(DdmError, match=r"decoder.onnx refused its inputs \(x0 \[1, 3, 2\]\)"):
        made.decoder(made.array(np.zeros((1, 3, 2), np.float32)))


def test_a_provider_that_does_not_start_is_no_silent_fallback(
    opened: Opened, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real session: onnxruntime without CUDA takes the CPU, and says so in a log line alone."""
    monkeypatch.undo()
    driver = FakeDriver(eager=True)
    monkeypatch.setattr(cuda, "load", lambda: driver)
    with pytest.raises(DdmError, match=r"ONNX Runtime took CPUExecutionProvider; expected CUDAExecutionProvider"):
        sessions.open_on_device(tiny_bundle.graphs["decoder"], sessions.CUDA_PROVIDER, 0, 1, graphs=False, half=False)


def test_why_it_is_unavailable(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle) -> None:
    assert sessions.device_provider() is None
    reason = OrtCudaEngine.unavailable(tiny_bundle, CUDA_DEVICE)
    assert reason is not None
    assert "this build of onnxruntime is for CPUs" in reason
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in reason
    with pytest.raises(BackendUnavailable, match="is for CPUs"):
        OrtCudaEngine(tiny_bundle)
    monkeypatch.setattr(sessions, "_is_installed", lambda wheel: True)
    reason = OrtCudaEngine.unavailable(tiny_bundle, CUDA_DEVICE)
    assert reason is not None
    assert "are both installed and overwrite each other's files" in reason
