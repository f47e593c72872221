"""`engine.contract.Engine` in eager torch."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.composed import Composed
from ddm_rt.engine.contract import CPU_PIXELS, check_all_finite, check_code, check_finite
from ddm_rt.engine.devices import CPU, CPU_DEVICE, CUDA, Device
from ddm_rt.engine.torch import half, weights
from ddm_rt.errors import BackendUnavailable, DdmError
from ddm_rt.half import INPUTS
from ddm_rt.kernels import dispatch
from ddm_rt.model.parts import parts

if TYPE_CHECKING:
    from ddm_rt.model.parts import Model

DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}

# Memory of a GPU for each pixel that a call of the VAE makes: it sets how many pixels a call may make. An estimate: a
# VAE holds about four tensors of 256 channels at full size, and the rest of the model gets as much again. The limit
# follows from the device's whole memory, not from what is free: batch sizes may decide bytes.
_VALUES_PER_PIXEL = 2 * 4 * 256
_ALIGNED = 4  # numbers of 4 bytes: addresses that are whole multiples of 16
_KEPT_INDICES = 256


class TorchEngine(Composed):
    """Arrays are torch tensors on the engine's device, float32 whatever the engine computes in.

    In float32 it shows what exported graphs should give. In half precision weights and activations are half, and what
    `ddm_rt.half` names stays float32. On a CUDA device `guided_step` and, in half precision, indicator attention are
    the fused kernels, where triton is installed.

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
        model = weights.load(bundle)
        chosen = torch.device(str(where))
        self._open(bundle, half.converted(model, DTYPES[precision or bundle.config.precision], chosen), threads)

    @classmethod
    def of_module(cls, bundle: Bundle, model: "Model", threads: int | None = None) -> "TorchEngine":
        """A live module behind the contract, on its own device, in its own dtype and as it is: eval mode is the
        caller's.

        Of `bundle` its configuration is used, and its path in messages; files of it needn't exist.
        """
        engine = cls.__new__(cls)
        engine._open(bundle, model, threads)
        return engine

    def _open(self, bundle: Bundle, model: "Model", threads: int | None) -> None:
        weight = next(model.unet.parameters())
        self._bundle, self.device, self._dtype = bundle, weight.device, weight.dtype
        self.precision = next(name.value for name, dtype in DTYPES.items() if dtype is weight.dtype)
        self._parts = parts(model, bundle.config)
        self.threads = threads or torch.get_num_threads()
        self.versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        if not bundle.config.prompt_free:
            self.versions["transformers"] = version("transformers")
        self._indices: OrderedDict[bytes, Tensor] = (
            OrderedDict()
        )  # a layout of a batch takes the same rows at each step
        self._guided_step = dispatch.load("guided_step", "auto" if self.device.type == "cuda" else "reference")
        if self.device.type == "cuda":  # bytes depend on them too
            memory = torch.cuda.get_device_properties(self.device).total_memory
            self.max_pixels = memory // (_VALUES_PER_PIXEL * self._dtype.itemsize)
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
        try:
            bundle.model  # noqa: B018  (raises where training.json is missing or of another version)
        except DdmError as error:
            return str(error)
        return None

    def text_encoder(self, input_ids: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
        if self._bundle.config.prompt_free:
            raise DdmError(f"{self._bundle.path}: is prompt-free, so it has no text encoder")
        made = self._call("text_encoder", {name: self.array(ids) for name, ids in input_ids.items()})
        return {name: tensor.cpu().numpy() for name, tensor in made.items()}

    def conditioner(
        self,
        context: NDArray[np.float32],
        code: NDArray[np.int64],
        indicator_scale: NDArray[np.float32],
        added: Mapping[str, NDArray[Any]],
    ) -> dict[str, Tensor]:
        check_code(code, self._bundle.config.num_codes)
        given: dict[str, NDArray[Any]] = {
            "context": context,
            "code": code,
            "indicator_scale": indicator_scale,
            **added,
        }
        names = self._parts["conditioner"].inputs  # a bundle without codes takes none
        made = self._call("conditioner", {name: self.array(given[name]) for name in names})
        return {
            name: tensor.to(self._taken_as("denoiser", name)) for name, tensor in made.items()
        }  # once, not per call

    def denoiser(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        return self._call("denoiser", {"x_t": x_t, "t": t, **cond})["output"]

    def decoder(self, x0: Tensor) -> NDArray[np.float32]:
        image: NDArray[np.float32] = self._call("decoder", {"x0": x0})["image"].cpu().numpy()
        check_finite(image, self._bundle)
        return image

    @torch.inference_mode()
    def images(self, x0: Tensor) -> NDArray[np.uint8]:
        made = self._call("decoder", {"x0": x0})["image"]
        # Rounded where it was made, and one transfer; the last byte says whether all of it was finite.
        levels = ((made.clamp(-1, 1) + 1) * 127.5).round().nan_to_num().to(torch.uint8).permute(0, 2, 3, 1)
        packed = torch.cat([levels.reshape(-1), made.isfinite().all().to(torch.uint8)[None]]).cpu().numpy()
        check_all_finite(bool(packed[-1]), self._bundle)
        return packed[:-1].reshape(levels.shape)

    @torch.inference_mode()
    def _call(self, name: str, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        torch.set_num_threads(self.threads)
        part = self._parts[name]
        with self._exact():
            made = part.module(*(self._taken(name, input, given[input]) for input in part.inputs))
        outputs = made if isinstance(made, tuple) else (made,)
        return {name: tensor.float() for name, tensor in zip(part.outputs, outputs, strict=True)}

    def _taken_as(self, part: str, name: str) -> torch.dtype:
        """The dtype in which a part takes its float input `name`: that of its own networks, or float32."""
        networks = self._parts[part].own
        return next(networks[0].parameters()).dtype if networks and name not in INPUTS else torch.float32

    def _taken(self, part: str, name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        dtype = self._taken_as(part, name)
        if value.dim() == 4 and dtype is not torch.float32:
            return value.to(dtype, memory_format=torch.channels_last)
        return value.to(dtype)

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
        with self._on_device():  # Triton launches on the current device
            stepped: tuple[Tensor, Tensor] = self._guided_step(outputs, scales, rows, x, x0_prev, seeds, counters)
        return stepped

    def array(self, host: NDArray[Any]) -> Tensor:
        # A copy: torch takes no read-only array, and the engine's state must not be the caller's. torch does next to
        # nothing with unsigned words; the noise needs their bits alone.
        copy = torch.tensor(host.view(np.int64) if host.dtype == np.uint64 else host)
        if self.device.type == "cuda":
            copy = copy.pin_memory()  # torch keeps it until the device has read it
        return copy.to(self.device, non_blocking=True)

    def series(self, host: NDArray[Any]) -> list[Tensor]:
        """Each begins where Triton expects an array to begin, so that one compiled kernel serves all."""
        entries = np.ascontiguousarray(host).reshape(len(host), -1)
        per_entry = -(-entries.shape[1] // _ALIGNED) * _ALIGNED
        padded = np.zeros((len(host), per_entry), host.dtype)
        padded[:, : entries.shape[1]] = entries
        return [row[: entries.shape[1]].view(host.shape[1:]) for row in self.array(padded)]

    def take(self, array: Tensor, index: NDArray[np.int64]) -> Tensor:
        if len(index) == len(array) and (index == np.arange(len(index))).all():
            return array  # nothing is ever written into one
        key = index.tobytes()
        if key not in self._indices:
            self._indices[key] = self.array(index)
            if len(self._indices) > _KEPT_INDICES:
                self._indices.popitem(last=False)
        return array.index_select(0, self._indices[key])

    def concat(self, arrays: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(arrays))

    def _on_device(self) -> AbstractContextManager[None]:
        if self.device.type != "cuda":
            return nullcontext()
        on_device: AbstractContextManager[None] = torch.cuda.device(self.device)
        return on_device

    def _exact(self) -> AbstractContextManager[None]:
        """float32 means it, and runs repeat: by default cuDNN rounds convolutions to TF32 and may add in any order."""
        if self.device.type != "cuda":
            return nullcontext()
        exact: AbstractContextManager[None] = torch.backends.cudnn.flags(
            enabled=True, deterministic=True, allow_tf32=False
        )
        return exact
