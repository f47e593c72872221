"""`engine.contract.Engine` in torch."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.composed import OfNetworks, aligned
from ddm_rt.engine.contract import CPU_PIXELS, Index, Update, check_finite
from ddm_rt.engine.devices import CPU, CPU_DEVICE, CUDA, Device
from ddm_rt.engine.torch import packages
from ddm_rt.engine.torch.graphs import Graphs, captured_on
from ddm_rt.engine.torch.networks import DTYPES, Networks
from ddm_rt.errors import BackendUnavailable, DdmError
from ddm_rt.kernels import dispatch

# Memory of a GPU for each pixel that a call of the VAE makes: it sets how many pixels a call may make. An estimate: a
# VAE holds about four tensors of 256 channels at full size, and the rest of the model gets as much again. The limit
# follows from the device's whole memory, not from what is free: batch sizes may decide bytes.
_VALUES_PER_PIXEL = 2 * 4 * 256
_ALIGNMENT = 16  # bytes, of each array of a series
_KEPT_INDICES = 256


class TorchEngine(OfNetworks):
    """Arrays are torch tensors on the engine's device, float32 whatever the engine computes in.

    In float32 it shows what exported graphs should give. In half precision weights and activations are half, and what
    `ddm_rt.half` names stays float32. On a CUDA device `guided_step`, `projected_guidance` and, in half precision,
    indicator attention are the fused kernels, where triton is installed.

    torch has one thread count per process: each call of an engine sets it to the engine's own.
    """

    backend = "torch"
    max_batch = None
    max_pixels: int | None = CPU_PIXELS

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        device: Device | None = None,
        precision: Precision | None = None,
    ) -> None:
        """Raises BackendUnavailable where `unavailable` says why, BundleError for weights that don't fit or aren't
        finite.

        `threads` None takes torch's present count, `device` None the first CUDA device where torch finds one,
        `precision` None the bundle's own.
        """
        where = device or Device(CUDA if torch.cuda.is_available() else CPU)
        reason = self.unavailable(bundle, where, precision)
        if reason is not None:
            raise BackendUnavailable(self.backend, reason, ())
        self._open(bundle, _networks(bundle, precision or bundle.config.precision, where), threads)

    @classmethod
    def of_networks(cls, bundle: Bundle, networks: Networks, threads: int | None = None) -> "TorchEngine":
        """Networks that are open already, behind the contract, on their own device and as they are.

        Of `bundle` its configuration is used, and its path in messages; files of it needn't exist.
        """
        engine = cls.__new__(cls)
        engine._open(bundle, networks, threads)
        return engine

    def _open(self, bundle: Bundle, networks: Networks, threads: int | None) -> None:
        self._bundle, self._networks, self.device = bundle, networks, networks.device
        self.precision, self.batch_sizes = networks.precision.value, networks.sizes
        self.cond = networks.cond
        self.threads = threads or torch.get_num_threads()
        self.versions = {"torch": torch.__version__, **networks.versions}
        # A layout of a batch takes the same rows at each step.
        self._indices: OrderedDict[bytes, Tensor] = OrderedDict()
        flavour = "auto" if self.device.type == "cuda" else "reference"
        self._guided_step, self._projected_guidance = (
            dispatch.load(op, flavour) for op in ("guided_step", "projected_guidance")
        )
        self._fitted: dict[str, int] = {}  # the most rows of a network's call so far
        self._graphs: Graphs | None = None
        if self.device.type == "cuda":  # bytes depend on them too
            self._graphs = Graphs(captured_on(self.device))
            memory = torch.cuda.get_device_properties(self.device).total_memory
            self.max_pixels = memory // (_VALUES_PER_PIXEL * DTYPES[networks.precision].itemsize)
            self.versions |= {"cuda": str(torch.version.cuda), "device": torch.cuda.get_device_name(self.device)}
            if dispatch.unavailable("guided_step", "triton") is None:
                self.versions["triton"] = version("triton")

    @staticmethod
    def unavailable(
        bundle: Bundle | None, device: Device = CPU_DEVICE, precision: Precision | None = None
    ) -> str | None:
        """Why this backend can't run `bundle` on the device in that precision, or None."""
        if device.kind == CUDA:
            if torch.version.cuda is None:
                return (
                    f"torch {torch.__version__} is built without CUDA; "
                    "`pip install --force-reinstall torch` brings the one of PyPI, which has it on Linux"
                )
            if device.ordinal >= torch.cuda.device_count():
                return f"no CUDA device {device.ordinal}: torch finds {torch.cuda.device_count()}"
        if bundle is None:
            return None
        own = bundle.config.precision
        if own not in DTYPES:
            return f"the bundle is {own}; torch computes in {', '.join(DTYPES)}"
        if bundle.index.provenance.get("decoder"):
            return "the bundle's decoder took the place of the checkpoint's VAE; torch builds only the latter"
        if bundle.index.provenance.get("decoder_tile"):
            return "the bundle's decoder works in tiles; torch builds the VAE's whole decoder"
        try:
            if packages.find(bundle, precision or own, device) is None:
                bundle.model  # noqa: B018  (raises where training.json is missing or of another version)
        except DdmError as error:
            return str(error)
        return None

    @torch.inference_mode()
    def images(self, x0: Tensor) -> NDArray[np.uint8]:
        made = self._call("decoder", {"x0": x0})["image"]
        # Rounded where it was made, and one transfer; the last byte says whether all of it was finite.
        levels = ((made.clamp(-1, 1) + 1) * 127.5).round().nan_to_num().to(torch.uint8).permute(0, 2, 3, 1)
        packed = torch.cat([levels.reshape(-1), made.isfinite().all().to(torch.uint8)[None]]).cpu().numpy()
        check_finite(bool(packed[-1]), self._bundle)
        return packed[:-1].reshape(levels.shape)

    @torch.inference_mode()
    def _call(self, name: str, feeds: Mapping[str, Tensor | NDArray[Any]]) -> dict[str, Tensor]:
        given = {each: value if isinstance(value, Tensor) else self.array(value) for each, value in feeds.items()}
        if name != "denoiser" or self._graphs is None:
            made = self._computed(name, given)
            if name == "conditioner":  # as the denoiser takes it: once, not at each call
                denoiser = self._networks.signatures["denoiser"]
                made = {each: denoiser.taken(each, tensor) for each, tensor in made.items()}
            return made
        key = (name, *((each, value.shape) for each, value in given.items()))
        room = {each: len(value) for each, value in given.items()}
        (output,) = self._graphs(
            key, lambda own: tuple(self._computed(name, own).values()), given, room, len(given["x_t"])
        )
        return {"output": output}

    def host(self, array: Tensor) -> NDArray[np.float32]:
        values: NDArray[np.float32] = array.cpu().numpy()
        return values

    @torch.inference_mode()
    def _computed(self, name: str, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        torch.set_num_threads(self.threads)
        signature = self._networks.signatures[name]
        rows = len(given[signature.inputs[0]])
        try:
            # float32 means it, and runs repeat: by default cuDNN rounds convolutions to TF32 and may add in any order.
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                made = self._networks(name, tuple(signature.taken(each, given[each]) for each in signature.inputs))
        except torch.OutOfMemoryError as error:
            shape = list(given[signature.inputs[0]].shape)
            raise DdmError(
                f"{self.device} has too little memory for a {name} call of {rows} rows, {shape}; "
                f"{self._fitted.get(name, 0)} fit; smaller images or `--mode latency` need less"
            ) from error
        self._fitted[name] = max(rows, self._fitted.get(name, 0))
        return {each: tensor.float() for each, tensor in zip(signature.outputs, made, strict=True)}

    @torch.inference_mode()
    def guided_step(
        self,
        outputs: Sequence[Tensor],
        scales: Tensor,
        rows: Tensor,
        x: Tensor,
        x0_prev: Tensor,
        seeds: Tensor | None,
        counters: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(self.threads)
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # Triton launches on the current device
            stepped: tuple[Tensor, Tensor] = self._guided_step(outputs, scales, rows, x, x0_prev, seeds, counters)
        return stepped

    @torch.inference_mode()
    def projected_guidance(self, outputs: Sequence[Tensor], settings: Tensor) -> Tensor:
        torch.set_num_threads(self.threads)
        with torch.cuda.device_of(settings):  # type: ignore[no-untyped-call]
            combined: Tensor = self._projected_guidance(outputs, settings)
        return combined

    @torch.inference_mode()
    def step(
        self, t: Tensor, cond: Mapping[str, Tensor], image_of: Index, parts: Sequence[Index], update: Update
    ) -> tuple[Tensor, Tensor]:
        if self._graphs is None:
            return super().step(t, cond, image_of, parts, update)
        calls, images = len(t), len(t) // len(parts)
        of_images: dict[str, Tensor] = {name: value for name, value in update._asdict().items() if value is not None}
        of_images |= {f"part {k}": self._index(part) for k, part in enumerate(parts)}
        of_calls = {
            "t": t,
            "image_of": self._index(image_of),
            **{f"cond {name}": value for name, value in cond.items()},
        }
        names, branches = tuple(cond), range(len(parts))

        def function(own: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            rows_of_cond = {name: own[f"cond {name}"] for name in names}
            x_t = own["x"].index_select(0, own["image_of"])
            output = self._computed("denoiser", {"x_t": x_t, "t": own["t"], **rows_of_cond})["output"]
            outputs = [output.index_select(0, own[f"part {k}"]) for k in branches]
            return self.update(outputs, Update(*(own.get(name) for name in Update._fields)))

        key = ("step", calls, *((name, value.shape[1:]) for name, value in (of_images | of_calls).items()))
        room = dict.fromkeys(of_images, images) | dict.fromkeys(of_calls, calls)
        x_next, x0 = self._graphs(key, function, of_images | of_calls, room, len(update.x))
        return x_next, x0

    def array(self, host: NDArray[Any]) -> Tensor:
        # A copy: torch takes no read-only array, and the engine's state must not be the caller's. torch does next to
        # nothing with unsigned words; the noise needs their bits alone.
        copy = torch.from_numpy(np.array(host.view(np.int64) if host.dtype == np.uint64 else host))
        if self.device.type == "cuda":
            copy = copy.pin_memory()  # torch keeps it until the device has read it
        return copy.to(self.device, non_blocking=True)

    def series(self, host: NDArray[Any]) -> list[Tensor]:
        """Each begins where Triton expects an array to begin, so that one compiled kernel serves all."""
        count = math.prod(host.shape[1:])
        return [row[:count].view(host.shape[1:]) for row in self.array(aligned(host, _ALIGNMENT))]

    def take(self, array: Tensor, index: Index) -> Tensor:
        if len(index) == len(array) and (index == np.arange(len(index))).all():
            return array  # nothing is ever written into one
        return array.index_select(0, self._index(index))

    def _index(self, index: Index) -> Tensor:
        key = index.tobytes()
        if key not in self._indices:
            self._indices[key] = self.array(index)
            if len(self._indices) > _KEPT_INDICES:
                self._indices.popitem(last=False)
        return self._indices[key]

    def concat(self, arrays: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(arrays))


def _networks(bundle: Bundle, precision: Precision, device: Device) -> Networks:
    """Compiled ones where `ddm-rt build` has made them, else the model's own modules."""
    where, package = torch.device(str(device)), packages.find(bundle, precision, device)
    if package is not None:
        return packages.Packaged(bundle, package, where)
    from ddm_rt.engine.torch.eager import Eager  # and with it diffusers, which takes seconds

    return Eager.load(bundle, precision, where)
