"""One deserialized TensorRT engine (text encoder, conditioner, denoiser or decoder): for every set of input shapes an
execution context of its own, with fixed arrays and a captured CUDA graph.
"""

import logging
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddm_rt.engine.tensorrt import flavours
from ddm_rt.engine.tensorrt.buffers import Arrays, Buffer, Shape
from ddm_rt.engine.tensorrt.cuda import Graph, Stream
from ddm_rt.engine.tensorrt.runtime_cache import RuntimeCache
from ddm_rt.errors import DdmError

_MOST_CALLS = 32  # sets of shapes kept ready; seven batch sizes at a few resolutions

_log = logging.getLogger(__name__)


class Runtime:
    """A flavour's runtime, with the last error that its library logged."""

    def __init__(self, trt: Any, driver: str) -> None:
        """Raises DdmError where it doesn't start on this `driver`, a version of CUDA."""
        self.trt = trt
        self.errors = deque[str](maxlen=1)
        try:
            self._runtime = flavours.construct(trt, trt.Runtime, flavours.logger(trt, self.errors.append))
        except DdmError as error:
            raise self.failure(str(error), f"(the driver here is of CUDA {driver})") from error

    def deserialize(self, plan: bytes, name: str) -> Any:
        """The engine in `plan`. Raises DdmError calling it `name`."""
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.failure(name, "can't be deserialized")
        return engine

    def close(self) -> None:
        """Destroy the runtime, after its engines."""
        self._runtime = None

    def failure(self, name: str, what: str) -> DdmError:
        """An error with what the library said last."""
        said = f": {self.errors[-1]}" if self.errors else ""
        return DdmError(f"{name} {what}{said}")


class Network:
    """Callable on device arrays. Input names, dtypes and shape ranges are the engine's own.

    `workspace` is the activations' memory, shared with other networks: everything runs on one stream, so no two
    contexts use it at once. The CUDA graphs hold its address.
    """

    def __init__(
        self, name: str, engine: Any, runtime: Runtime, cache: RuntimeCache, arrays: Arrays, stream: Stream
    ) -> None:
        """`name` is what errors call it. Raises DdmError for a tensor of a type that isn't known here."""
        self.name = name
        self._engine, self._runtime, self._arrays, self._stream = engine, runtime, arrays, stream
        self._config = _context_config(runtime.trt, engine)
        cache.share(self._config)
        trt, names = runtime.trt, [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        dtypes = {tensor: _dtype(trt, engine.get_tensor_dtype(tensor), f"{name}: {tensor}") for tensor in names}
        is_input = {tensor: engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT for tensor in names}
        self.inputs = {tensor: dtypes[tensor] for tensor in names if is_input[tensor]}
        self.outputs = {tensor: dtypes[tensor] for tensor in names if not is_input[tensor]}
        # Per optimization profile: input -> its least, its best and its largest shape.
        self._profiles = [
            {tensor: engine.get_tensor_profile_shape(tensor, profile) for tensor in self.inputs}
            for profile in range(engine.num_optimization_profiles)
        ]
        self.prepared = 0  # contexts so far: each may have had kernels compiled
        self._calls: OrderedDict[tuple[Shape, ...], _Call] = OrderedDict()
        self._workspace: Buffer | None = None

    @property
    def workspace_bytes(self) -> int:
        """Activation memory that a context needs, over all profiles."""
        return int(self._engine.device_memory_size_v2)

    def use(self, workspace: Buffer) -> None:
        """The activations' memory, at least `workspace_bytes`; before the first call."""
        self._workspace = workspace

    def __call__(self, feeds: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Outputs of one run, arrays of their own. Queued; doesn't wait, but for the first call with these shapes.

        Raises DdmError naming the input whose name, type or shape the engine doesn't take.
        """
        self._check(feeds)
        shapes = tuple(feeds[tensor].shape for tensor in self.inputs)
        call = self._calls.get(shapes)
        if call is None:
            self._make_room()
            call = self._calls[shapes] = self._prepare(dict(zip(self.inputs, shapes, strict=True)))
        self._calls.move_to_end(shapes)
        call.fill(self._arrays, feeds)
        if not call.captured:
            self._warm_up(call)
        if call.graph is not None:
            self._stream.replay(call.graph)
        else:
            self._enqueue(call)
        results = {}
        for tensor, fixed in call.outputs.items():
            results[tensor] = self._arrays.empty(fixed.shape, fixed.dtype)
            self._arrays.copy(results[tensor].pointer, fixed)
        return results

    def end_calls(self) -> None:
        """Destroy graphs and contexts; the stream must have come to an end."""
        while self._calls:
            self._calls.popitem()[1].close()

    def close(self) -> None:
        """Destroy the engine, after `end_calls`."""
        self._config = self._engine = self._workspace = None

    def _check(self, feeds: Mapping[str, Buffer]) -> None:
        if sorted(feeds) != sorted(self.inputs):
            raise DdmError(f"{self.name}: inputs are {', '.join(self.inputs)}; given were {', '.join(feeds)}")
        for tensor, dtype in self.inputs.items():
            if feeds[tensor].dtype != dtype:
                raise DdmError(f"{self.name}: input {tensor} is {feeds[tensor].dtype}; expected {dtype}")

    def _profile(self, shapes: Mapping[str, Shape]) -> int:
        """Of the optimization profiles that take the shapes, the one whose best batch size is nearest."""
        fitting = {
            number: sum(abs(shape[0] - ranges[tensor][1][0]) for tensor, shape in shapes.items())
            for number, ranges in enumerate(self._profiles)
            if all(_within(shape, *ranges[tensor]) for tensor, shape in shapes.items())
        }
        if fitting:
            return min(fitting, key=fitting.__getitem__)
        for tensor, shape in shapes.items():
            if not any(_within(shape, *ranges[tensor]) for ranges in self._profiles):
                taken = " or ".join(
                    f"{list(low)} to {list(high)}" for low, _, high in (r[tensor] for r in self._profiles)
                )
                raise DdmError(
                    f"{self.name}: input {tensor} has shape {list(shape)}; the plan takes {taken}, "
                    "as `ddm-rt build` was told"
                )
        listed = ", ".join(f"{tensor} {list(shape)}" for tensor, shape in shapes.items())
        raise DdmError(f"{self.name}: no profile of the plan takes these shapes together: {listed}")

    def _prepare(self, shapes: Mapping[str, Shape]) -> "_Call":
        """A context for these shapes, with every tensor at a fixed address."""
        profile = self._profile(shapes)
        self.prepared += 1
        context = self._engine.create_execution_context(self._config)
        if context is None or self._workspace is None:
            raise self._runtime.failure(self.name, "gave no execution context")
        if self.workspace_bytes:
            context.set_device_memory(self._workspace.pointer, self._workspace.nbytes)
        accepted = context.set_optimization_profile_async(profile, self._stream.handle)
        inputs = {tensor: self._arrays.empty(shape, self.inputs[tensor]) for tensor, shape in shapes.items()}
        for tensor, fixed in inputs.items():
            accepted = accepted and context.set_input_shape(tensor, fixed.shape)
            accepted = accepted and context.set_tensor_address(tensor, fixed.pointer)
        if not accepted or (missing := context.infer_shapes()):
            said = "" if not accepted else f" (not specified: {', '.join(missing)})"
            raise self._runtime.failure(self.name, f"refused its input shapes{said}")
        outputs = {}
        for tensor, dtype in self.outputs.items():
            outputs[tensor] = self._arrays.empty(tuple(context.get_tensor_shape(tensor)), dtype)
            context.set_tensor_address(tensor, outputs[tensor].pointer)
        return _Call(context, inputs, outputs)

    def _warm_up(self, call: "_Call") -> None:
        """Run once outside a graph, as TensorRT does work after a change of shapes that can't be captured; capture."""
        self._enqueue(call)
        self._stream.synchronize()
        call.captured = True
        capturable: Callable[[int], bool] | None = getattr(call.context, "is_stream_capturable", None)  # TensorRT-RTX
        try:
            if capturable is None or capturable(self._stream.handle):
                call.graph = self._stream.capture(lambda: self._enqueue(call))
                return
            why = "TensorRT says that it isn't capturable"
        except DdmError as error:
            why = str(error)
        # The same kernels in the same order: slower to launch, and the same bytes.
        _log.warning("%s: no CUDA graph, each call is enqueued by TensorRT: %s", self.name, why)

    def _enqueue(self, call: "_Call") -> None:
        if not call.context.execute_async_v3(self._stream.handle):
            raise self._runtime.failure(self.name, "failed to run")

    def _make_room(self) -> None:
        if len(self._calls) >= _MOST_CALLS:
            _, oldest = self._calls.popitem(last=False)
            self._stream.synchronize()  # a context must outlive its work
            oldest.close()


class _Call:
    """One set of input shapes: a context and its graph, both bound to fixed arrays."""

    def __init__(self, context: Any, inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> None:
        self.context, self.inputs, self.outputs = context, inputs, outputs
        self.captured = False  # whether capture was tried
        self.graph: Graph | None = None
        self._filled: dict[str, weakref.ref[Buffer]] = {}

    def fill(self, arrays: Arrays, feeds: Mapping[str, Buffer]) -> None:
        """Copy inputs into place; what is there from the last call (`cond`, in a loop) isn't copied again."""
        for tensor, given in feeds.items():
            last = self._filled.get(tensor)
            if last is None or last() is not given:
                arrays.copy(self.inputs[tensor].pointer, given)
                self._filled[tensor] = weakref.ref(given)

    def close(self) -> None:
        if self.graph is not None:
            self.graph.close()
        self.graph = self.context = None
        self.inputs, self.outputs = {}, {}


def _context_config(trt: Any, engine: Any) -> Any:
    """What contexts of the engine are made with."""
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    specialization = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if specialization is not None:
        # TensorRT-RTX by default compiles kernels for a shape in the background and swaps them in when they are ready:
        # an image's bytes would depend on when it was made.
        config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
    return config


def _dtype(trt: Any, found: Any, name: str) -> np.dtype[Any]:
    known = {
        trt.DataType.FLOAT: np.float32,
        trt.DataType.HALF: np.float16,
        trt.DataType.INT64: np.int64,
        trt.DataType.INT32: np.int32,
        trt.DataType.BOOL: np.bool_,
    }
    if found not in known:
        raise DdmError(f"{name} is {found}; expected float32, float16, int64, int32 or bool")
    return np.dtype(known[found])


def _within(shape: Shape, low: Shape, _: Shape, high: Shape) -> bool:
    return len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
