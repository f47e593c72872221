"""A fake TensorRT over `fake_cuda`: its "plans" name an ONNX graph, which ONNX Runtime runs on the fake's memory.
Nothing here is a run of TensorRT.
"""

import hashlib
import importlib.machinery
import json
import sys
import types
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeDriver, fake_cubin

from ddm_rt.bundle import Bundle, add_directory
from ddm_rt.config import Backend
from ddm_rt.engine.cpu.ort import OrtEngine, open_session
from ddm_rt.engine.tensorrt import cuda, flavours, plans
from ddm_rt.kernels.guided_step.table import GUIDED_STEP_BLOCK, GUIDED_STEP_WARPS, POINTEES, variants
from ddm_rt.kernels.pack import STEP_OPS
from ddm_rt.kernels.projected_guidance.table import (
    BRANCHES,
    POINTERS,
    PROJECTED_GUIDANCE_BLOCK,
    PROJECTED_GUIDANCE_WARPS,
)

RTX = flavours.TABLE[Backend.TENSORRT_RTX]
MAX_BATCH = 8  # of a fake plan
DECODER_BATCH = 2  # of its decoder
BATCHES = (1, 2, 4), (2, 4, MAX_BATCH)  # profiles of its denoiser: min, opt, max

PLAN = b"fake plan\0"
WORKSPACE_BYTES = 4096  # for each tensor, so that no two networks need the same

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]

DataType = Enum("DataType", "FLOAT HALF BF16 INT64 INT32 BOOL")
TensorIOMode = Enum("TensorIOMode", "INPUT OUTPUT")
Allocation = Enum("Allocation", "STATIC USER_MANAGED")
Specialization = Enum("Specialization", "LAZY EAGER NONE")
_TYPES = {"tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF, "tensor(int64)": DataType.INT64}


class ILogger:
    Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")


def fake_plan(graph: Path, profiles: list[Profile]) -> bytes:
    return PLAN + json.dumps({"graph": str(graph), "profiles": profiles}).encode()


def fake_tensorrt(name: str, driver: FakeDriver) -> Any:
    """The module. `contexts` collects what is made, and `compiled` what no runtime cache held; `refuse` names a
    capability that it pretends not to have.
    """
    module: Any = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__version__ = "1.0-fake"
    module.DataType, module.TensorIOMode, module.ILogger = DataType, TensorIOMode, ILogger
    module.ExecutionContextAllocationStrategy = Allocation
    module.DynamicShapesKernelSpecializationStrategy = Specialization
    module.contexts, module.compiled, module.refuse = [], [], set()
    module.Runtime = lambda logger: _runtime(module, driver, logger)
    return module


class Machine:
    """A fake driver and a fake TensorRT-RTX, put in the place of the real ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **driver: Any) -> None:
        self.driver = FakeDriver(**driver)
        self.trt = fake_tensorrt(RTX.module, self.driver)
        monkeypatch.setattr(cuda, "load", lambda: self.driver)
        monkeypatch.setitem(sys.modules, RTX.module, self.trt)


def reference(bundle: Bundle) -> OrtEngine:
    """ONNX Runtime with the batch sizes of a fake plan: its images are the fake's to the bit."""
    engine = OrtEngine(bundle, threads=1)
    engine.max_batch = MAX_BATCH  # type: ignore[assignment]
    return engine


def _runtime(module: Any, driver: FakeDriver, logger: Any) -> "_Runtime":
    if "driver" in module.refuse:
        logger.log(ILogger.Severity.ERROR, "the fake's driver is too old")
        raise TypeError("pybind11::init(): factory function returned nullptr")
    return _Runtime(module, driver, logger)


class _Runtime:
    def __init__(self, module: Any, driver: FakeDriver, logger: Any) -> None:
        self.module, self.driver, self.logger = module, driver, logger

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        if not plan.startswith(PLAN):
            self.logger.log(ILogger.Severity.ERROR, "the fake knows no such plan")
            return None
        return _Engine(self, **json.loads(plan.removeprefix(PLAN)))


class _Cache:
    """Kernels that were compiled, by the graph and the shapes that they are for."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver, self.entries = driver, set[str]()

    def serialize(self) -> bytes:
        return json.dumps([self.driver.name, sorted(self.entries)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        name, entries = json.loads(blob)
        assert self.driver.has_context(), "the real one looks at the device"
        if name == self.driver.name:
            self.entries |= set(entries)
        return bool(name == self.driver.name)


class _Config:
    def __init__(self, runtime: _Runtime) -> None:
        self.strategy = Allocation.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY
        self.runtime, self.cache = runtime, _Cache(runtime.driver)

    def create_runtime_cache(self) -> _Cache:
        return _Cache(self.runtime.driver)

    def set_runtime_cache(self, cache: _Cache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class _Engine:
    def __init__(self, runtime: _Runtime, graph: str, profiles: list[dict[str, Any]]) -> None:
        self.runtime, self.graph, self.profiles = runtime, Path(graph).name, profiles
        self.num_optimization_profiles = len(profiles)
        self.session = open_session(Path(graph), 1)
        self.tensors = {node.name: (node, TensorIOMode.INPUT) for node in self.session.get_inputs()}
        self.tensors |= {node.name: (node, TensorIOMode.OUTPUT) for node in self.session.get_outputs()}
        self.num_io_tensors = len(self.tensors)
        self.device_memory_size_v2 = WORKSPACE_BYTES * self.num_io_tensors

    def get_tensor_name(self, number: int) -> str:
        return list(self.tensors)[number]

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType.BF16 if name in self.runtime.module.refuse else _TYPES[self.tensors[name][0].type]

    def get_tensor_mode(self, name: str) -> Any:
        return self.tensors[name][1]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Any]:
        return list(self.profiles[profile][name])

    def create_runtime_config(self) -> _Config:
        return _Config(self.runtime)

    def create_execution_context(self, config: _Config) -> Any:
        self.runtime.module.contexts.append(_Context(self, config))
        return self.runtime.module.contexts[-1]


class _Context:
    def __init__(self, engine: _Engine, config: _Config) -> None:
        assert config.strategy is Allocation.USER_MANAGED
        self.engine, self.config = engine, config
        self.driver = engine.runtime.driver
        self.profile = -1
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.workspace: tuple[int, int] | None = None
        self.enqueued: list[bool] = []  # for each: whether it was captured

    def set_device_memory(self, pointer: int, count: int) -> None:
        assert count >= self.engine.device_memory_size_v2
        self.workspace = pointer, count

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return 0 <= profile < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        low, _, high = self.engine.profiles[self.profile][name]
        self.shapes[name] = shape
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def infer_shapes(self) -> list[str]:
        inputs = {node.name: node for node in self.engine.session.get_inputs()}
        if missing := [name for name in inputs if name not in self.shapes]:
            return missing
        zeros = {name: np.zeros(self.shapes[name], _dtype(node)) for name, node in inputs.items()}
        outputs = self.engine.session.get_outputs()
        for node, value in zip(outputs, self.engine.session.run(None, zeros), strict=True):
            self.shapes[node.name] = value.shape
        return []

    def get_tensor_shape(self, name: str) -> Shape:
        return self.shapes[name]

    def is_stream_capturable(self, stream: int) -> bool:
        return "capture" not in self.engine.runtime.module.refuse

    def execute_async_v3(self, stream: int) -> bool:
        captured = self.driver.capturing(stream)
        if captured and not self.enqueued:
            self.engine.runtime.logger.log(ILogger.Severity.ERROR, "captured before a warm-up")
            return False
        if "run" in self.engine.runtime.module.refuse:
            self.engine.runtime.logger.log(ILogger.Severity.ERROR, "the fake was told to fail")
            return False
        self.enqueued.append(captured)
        wanted = f"{self.engine.graph} {self.shapes}"
        if wanted not in self.config.cache.entries:
            self.engine.runtime.module.compiled.append(wanted)
            self.config.cache.entries.add(wanted)
        self.driver.queue(stream, self._run)
        return True

    def _run(self) -> None:
        assert self.workspace is not None
        self.driver.view(*self.workspace)[:] = 0xEE  # activations: nobody else's memory
        session = self.engine.session
        feeds = {node.name: self._array(node).copy() for node in session.get_inputs()}
        for node, value in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            self._array(node)[:] = value

    def _array(self, node: Any) -> np.ndarray[Any, Any]:
        shape, dtype = self.shapes[node.name], _dtype(node)
        count = int(np.prod(shape)) * dtype.itemsize
        return self.driver.view(self.addresses[node.name], count).view(dtype).reshape(shape)


def _dtype(node: Any) -> np.dtype[Any]:
    return np.dtype({"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}[node.type])


def step_arguments() -> dict[str, list[tuple[str, str, int]]]:
    """Of a step's kernels by op, with the scratch pointers that Triton appends."""
    return {
        "guided_step": _arguments(list(POINTEES), "x_next"),
        "projected_guidance": _arguments(POINTERS, "combined"),
    }


def _arguments(pointers: Sequence[str], behind: str) -> list[tuple[str, str, int]]:
    named = [(name, "pointer", 8) for name in pointers]
    named.insert(pointers.index(behind), ("n_elements", "i32", 4))
    return [*named, ("global_scratch", "scratch", 8), ("profile_scratch", "scratch", 8)]


def write_fake_pack(folder: Path, architecture: str, ops: Sequence[str] = STEP_OPS) -> None:
    folder.mkdir()
    kernels = []
    tiles = {
        "guided_step": (GUIDED_STEP_BLOCK, GUIDED_STEP_WARPS),
        "projected_guidance": (PROJECTED_GUIDANCE_BLOCK, PROJECTED_GUIDANCE_WARPS),
    }
    every = [("guided_step", *variant) for variant in variants()]
    every += [("projected_guidance", branches, None) for branches in BRANCHES]
    for op, branches, noise in [each for each in every if each[0] in ops]:
        arguments, (block, warps) = step_arguments()[op], tiles[op]
        name = f"{op}-{architecture}-fp32-b{branches}{'-noise' if noise else ''}"
        files = {}
        shared = 4096 if noise else 0
        cubin = fake_cubin(branches, noise, block, shared, arguments, warps)
        for kind, content in (("cubin", cubin), ("ptx", b"// fake")):
            (folder / f"{name}.{kind}").write_bytes(content)
            files[kind] = {"file": f"{name}.{kind}", "sha256": hashlib.sha256(content).hexdigest()}
        kernels.append(
            {"name": name, "op": op, "entry": "_kernel", "architecture": architecture, "dtype": "fp32"}
            | {"head_dim": None, "branches": branches, "noise": noise, "tile": {"block": block}}
            | {"num_warps": warps, "shared_bytes": shared, "registers": 32, "spill_bytes": 0}
            | {"tensor_core": None, "ptx_version": 87, "alignment": 16, **files}
            | {"arguments": [dict(zip(("name", "kind", "bytes"), argument, strict=True)) for argument in arguments]}
        )
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "triton": "fake", "kernels": kernels}))


def with_fake_plan(
    bundle: Bundle,
    version: str = "1.0-fake",
    architecture: str = "sm_89",
    kernels: str | None = None,
    batches: tuple[tuple[int, int, int], ...] = BATCHES,
    ops: Sequence[str] = STEP_OPS,
) -> Bundle:
    """The bundle with a plan of the fake, for batches of 1 to MAX_BATCH and latents up to twice the training size, in
    several profiles.
    """
    config = bundle.config
    side, tokens = config.latent_shape[1], max([1, *(spec.max_length for spec in config.text)])
    ranges = {"x_t": [config.latent_shape[0], (side, 2 * side), (side, 2 * side)]}
    ranges |= {"x0": ranges["x_t"], "t": [], "code": [], "indicator_scale": []}
    ranges |= {"context": [tokens, config.context_shape[1]], **{spec.input: [spec.max_length] for spec in config.text}}
    for spec in (*config.cond, *config.added):
        ranges[spec.name] = [side if isinstance(side, int) else tokens for side in spec.shape]
    codes = ["code", "indicator_scale"] if config.num_codes else []
    inputs = {
        "text_encoder": [spec.input for spec in config.text],
        "conditioner": ["context", *codes, *(spec.name for spec in config.added)],
        "denoiser": ["x_t", "t", *(spec.name for spec in config.cond)],
        "decoder": ["x0"],
    }

    def shape(name: str, batch: int, which: int) -> tuple[int, ...]:
        return (batch, *(side[which] if isinstance(side, tuple) else side for side in ranges[name]))

    sides = plans.Range(min=side, opt=side, max=2 * side)
    options = plans.Options(
        batch=tuple(plans.Range(min=low, opt=best, max=high) for low, best, high in batches),
        decoder_batch=(plans.Range(min=1, opt=1, max=DECODER_BATCH),),
        height=sides,
        width=sides,
        tokens=plans.Range(min=tokens, opt=tokens, max=tokens),
        precision=bundle.config.precision,
        plain=False,
    )

    def fill(folder: Path) -> None:
        engines = {}
        for engine in bundle.graphs:
            profiles = [
                {
                    name: (shape(name, batch.min, 0), shape(name, batch.opt, 0), shape(name, batch.max, 1))
                    for name in inputs[engine]
                }
                for batch in options.batches(engine)
            ]
            content = fake_plan(bundle.graphs[engine], profiles)
            (folder / f"{engine}.plan").write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            engines[engine] = plans.EngineFile(
                file=f"{engine}.plan", sha256=digest, bytes=len(content), profiles=tuple(profiles)
            )
        parts = plans.Parts(
            bundle_id=bundle.bundle_id,
            graphs=plans.graph_files(bundle, RTX),
            options=options,
            flavour=RTX.name,
            version=version,
            gpu=plans.NO_GPU,
            architecture=architecture,
        )
        key = plans.Key(key=plans.digest(parts), parts=parts, engines=engines, kernels=kernels)
        (folder / plans.KEY).write_text(key.model_dump_json())
        if kernels is None:
            write_fake_pack(folder / plans.KERNELS, architecture, ops)

    return add_directory(bundle, f"plans/{plans.directory_name(RTX.name, architecture, plans.NO_GPU)}", fill)
