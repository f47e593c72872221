"""TensorRT in two flavours, on plans that `ddm-rt build` put into the bundle: a captured CUDA graph for each set of
shapes.
"""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.config import Backend
from ddm_rt.engine.contract import check_names
from ddm_rt.engine.devices import CUDA_DEVICE, Device
from ddm_rt.engine.tensorrt import cuda, flavours, plans
from ddm_rt.engine.tensorrt.buffers import Buffer
from ddm_rt.engine.tensorrt.network import Network, Runtime
from ddm_rt.engine.tensorrt.on_device import OnDevice, step_kernels
from ddm_rt.engine.tensorrt.runtime_cache import RuntimeCache
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.kernels.pack import PackError


class TensorRTEngine(OnDevice):
    """`engine.contract.Engine` on TensorRT. The graphs' precision is the bundle's."""

    backend: ClassVar[str] = Backend.TENSORRT.value
    _networks: Mapping[str, Network]

    def _open(self, resources: ExitStack, device: Device) -> None:
        """Raises DdmError for a plan that TensorRT doesn't take and for one whose tensors aren't those that the bundle
        names.
        """
        flavour, info = flavours.flavour(self.backend), self._device.info
        plan = _find(self._bundle, flavour, info)
        trt = flavours.load(flavour)
        self.precision = str(self._bundle.config.precision)
        options = plan.key.parts.options
        self.max_batch, self._decoder_rows = options.batch[-1].max, options.decoder_batch[-1].max
        if options.batch[0].min > 1:  # it takes no single image: then the sizes that it is tuned for
            self.batch_sizes = tuple(sorted({axis.opt for axis in options.batch}))
        self.versions = {
            flavour.name: str(trt.__version__),
            "cuda": info.driver_version,
            "gpu": info.name,
            "plan": _plan_id(plan, self._bundle.graphs),
        }
        try:
            self._kernels = step_kernels(self._device, plan.path / plans.KERNELS, resources)
        except PackError as error:
            raise BundleError(f"plan {plan.name}: {error}") from error
        runtime = Runtime(trt, info.driver_version)
        resources.callback(runtime.close)
        self._cache, self._kept = RuntimeCache(self.versions["plan"], info.name, info.driver_version), 0
        self._networks = networks = {
            name: Network(
                f"{plan.name}/{plan.engine(name).name}",
                runtime.deserialize(plan.read(name), str(plan.engine(name))),
                runtime,
                self._cache,
                self._arrays,
                self._stream,
            )
            for name in self._bundle.graphs
        }
        most = max(network.workspace_bytes for network in networks.values())
        workspace = self._arrays.empty((most,), np.dtype(np.uint8))
        # Contexts end first, then the cache that they share, then the engines that it was made by.
        for network in networks.values():
            resources.callback(network.close)
            network.use(workspace)
        resources.callback(self._cache.close)
        for network in networks.values():
            resources.callback(network.end_calls)
        resources.callback(self._stream.synchronize)
        resources.callback(self._device.activate)
        _check_tensors(self._bundle, networks)

    @classmethod
    def unavailable(cls, bundle: Bundle | None, device: Device = CUDA_DEVICE) -> str | None:
        """Why this backend can't run (`bundle`) here, or None. Cheap where there is no package or no driver."""
        flavour = flavours.flavour(cls.backend)
        if find_spec(flavour.module) is None:
            return flavours.unavailable(flavour)
        try:
            info = cuda.device_info(ordinal=device.ordinal)
            if (reason := flavours.unavailable(flavour)) is not None:
                return reason
            if bundle is not None:
                _find(bundle, flavour, info)
        except DdmError as error:
            return str(error)
        return None

    def decoder(self, x0: Buffer) -> NDArray[np.float32]:
        """In calls of as many rows as the plan's decoder takes; which rows meet in one follows from their number."""
        decode, rows = super().decoder, x0.shape[0]
        starts = range(0, rows, self._decoder_rows)
        images = [decode(x0.rows(start, min(self._decoder_rows, rows - start))) for start in starts]
        self._keep_kernels()
        return np.concatenate(images)

    def _keep_kernels(self) -> None:
        """For the next process, what was compiled since the last time. The decoder is the last network to meet a new
        batch size or image size, in a probe and in a request.
        """
        prepared = sum(network.prepared for network in self._networks.values())
        if prepared != self._kept:
            with self._on_device():
                self._cache.keep()
            self._kept = prepared


class TensorRTRtxEngine(TensorRTEngine):
    """The same on TensorRT-RTX."""

    backend = Backend.TENSORRT_RTX.value


def _find(bundle: Bundle, flavour: flavours.Flavour, info: cuda.DeviceInfo) -> plans.Plan:
    """The plan for this device, with its kernels. Raises DdmError saying what doesn't fit."""
    plan = plans.find(bundle, flavour, flavours.version(flavour), info.architecture, info.name)
    if plan.key.kernels is not None:
        raise DdmError(f"plan {plan.name} has no guided_step kernel: {plan.key.kernels}")
    return plan


def _plan_id(plan: plans.Plan, engines: Iterable[str]) -> str:
    """Of the serialized engines: a second build from the same inputs may choose other tactics, so other bytes."""
    hashes = "".join(plan.key.engines[name].sha256 for name in engines)
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


def _check_tensors(bundle: Bundle, networks: Mapping[str, Network]) -> None:
    """Raises BundleError where tensors aren't those of the bundle, or don't fit from one network to the next."""
    for name, network in sorted(networks.items()):  # the text encoder last: it is least often to blame
        check_names(bundle.config, name, network.name, network.inputs, network.outputs)
    conditioner, denoiser, decoder = (networks[name] for name in plans.ENGINES)
    for network in (denoiser, decoder):
        if len(network.outputs) != 1:
            raise BundleError(f"{network.name}: outputs are {', '.join(network.outputs)}; expected one")
    state = {f"denoiser {name}": dtype for name, dtype in denoiser.outputs.items()}
    state |= {
        "denoiser x_t": denoiser.inputs["x_t"],
        "denoiser t": denoiser.inputs["t"],
        "decoder x0": decoder.inputs["x0"],
    }
    for name, dtype in state.items():
        if dtype != np.float32:
            raise BundleError(f"{bundle.path}: {name} is {dtype}; expected float32, which the sampler computes in")
    for name in conditioner.outputs:
        if conditioner.outputs[name] != denoiser.inputs[name]:
            raise BundleError(
                f"{bundle.path}: cond {name} is {conditioner.outputs[name]} from the conditioner and "
                f"{denoiser.inputs[name]} for the denoiser"
            )
