"""torch from weights.safetensors, on a CUDA device or the CPU: the backend that shows what exported graphs should give.

The only file of this room that imports torch or the model.
"""

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
from ddm_rt.engine.contract import CPU_PIXELS, check_code, check_finite
from ddm_rt.engine.devices import CPU, CPU_DEVICE, CUDA, Device
from ddm_rt.errors import BackendUnavailable, DdmError
from ddm_rt.kernels import dispatch
from ddm_rt.model.assemble import build
from ddm_rt.model.unet import DDM
from ddm_rt.model.weights import load_weights

if TYPE_CHECKING:  # transformers, which only its families need
    from ddm_rt.model.latent import LatentDDM

    Model = DDM | LatentDDM


# Memory of a GPU for each pixel that a call of the VAE makes: it sets how many pixels a call may make. An estimate: a
# VAE holds about four float32 tensors of 256 channels at full size, and the rest of the model gets as much again. The
# limit follows from the device's whole memory, not from what is free: batch sizes may decide bytes.
_BYTES_PER_PIXEL = 2 * 4 * 256 * 4


class TorchEngine:
    """`engine.contract.Engine` in eager torch, float32. Arrays are torch tensors on the engine's device.

    On a CUDA device `guided_step` is the fused kernel, where triton is installed. Indicator attention isn't: its kernel
    takes no float32.

    torch has one thread count per process: each call of an engine sets it to the engine's own.
    """

    backend = "torch"
    max_batch = None
    max_pixels: int | None = CPU_PIXELS
    precision = "fp32"

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Device | None = None) -> None:
        """Raises BackendUnavailable without weights, BundleError for weights that don't fit or aren't finite.

        `threads` None takes torch's present count, `device` None the first CUDA device where torch finds one.
        """
        where = device or Device(CUDA if torch.cuda.is_available() else CPU)
        reason = self.unavailable(bundle, where)
        if reason is not None or bundle.weights is None:
            raise BackendUnavailable(self.backend, str(reason), ())
        model = build(bundle.model, bundle.config.latent_shape, bundle.codes.top_of).eval().requires_grad_(False)
        load_weights(model, bundle.weights)
        chosen = torch.device(str(where))
        self._open(bundle, model.to(chosen), chosen, threads)

    @classmethod
    def of_module(cls, bundle: Bundle, model: "Model", threads: int | None = None) -> "TorchEngine":
        """A live module behind the contract, on its own device and as it is: eval mode is the caller's.

        Of `bundle` its configuration is used, and its path in messages; files of it needn't exist.
        """
        engine = cls.__new__(cls)
        engine._open(bundle, model, next(model.parameters()).device, threads)
        return engine

    def _open(self, bundle: Bundle, model: "Model", device: torch.device, threads: int | None) -> None:
        self._bundle, self._model, self.device = bundle, model, device
        self.threads = threads or torch.get_num_threads()
        self.versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        if not bundle.config.prompt_free:
            self.versions["transformers"] = version("transformers")
        self._guided_step = dispatch.load("guided_step", "auto" if self.device.type == "cuda" else "reference")
        if self.device.type == "cuda":  # bytes depend on them too
            self.max_pixels = torch.cuda.get_device_properties(self.device).total_memory // _BYTES_PER_PIXEL
            self.versions |= {"cuda": str(torch.version.cuda), "device": torch.cuda.get_device_name(self.device)}
            if dispatch.unavailable("guided_step", "triton") is None:
                self.versions["triton"] = version("triton")

    @staticmethod
    def unavailable(bundle: Bundle | None, device: Device = CPU_DEVICE) -> str | None:
        """Why this backend can't run `bundle` on the device, or None."""
        if device.kind == CUDA:
            if torch.version.cuda is None:
                return (
                    f"torch {torch.__version__} is built without CUDA; "
                    "`pip install --force-reinstall torch` brings the one of PyPI, which has it on Linux"
                )
            if device.ordinal >= torch.cuda.device_count():
                return f"no CUDA device {device.ordinal}: torch finds {torch.cuda.device_count()}"
        if bundle is not None and bundle.weights is None:
            return "the bundle has no weights.safetensors; `ddm-rt export --with-weights` adds it"
        return None

    @torch.inference_mode()
    def text_encoder(self, input_ids: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
        torch.set_num_threads(self.threads)
        if isinstance(self._model, DDM):
            raise DdmError(f"{self._bundle.path}: is prompt-free, so it has no text encoder")
        ids = [self.array(input_ids[spec.input]) for spec in self._bundle.config.text]
        with self._exact():
            made = self._model.encode_text(*ids)
        return {name: tensor.float().cpu().numpy() for name, tensor in made.items()}

    @torch.inference_mode()
    def conditioner(
        self,
        context: NDArray[np.float32],
        code: NDArray[np.int64],
        indicator_scale: NDArray[np.float32],
        added: Mapping[str, NDArray[Any]],
    ) -> dict[str, Tensor]:
        torch.set_num_threads(self.threads)
        check_code(code, self._bundle.config.num_codes)
        given = (self.array(context), self.array(code), self.array(indicator_scale))
        with self._exact():
            if isinstance(self._model, DDM):
                return self._model.condition(*given)
            return self._model.condition(*given, {name: self.array(value) for name, value in added.items()})

    @torch.inference_mode()
    def denoiser(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        torch.set_num_threads(self.threads)
        with self._exact():
            out: Tensor = self._model(x_t, t, cond)
        return out.float()

    @torch.inference_mode()
    def decoder(self, x0: Tensor) -> NDArray[np.float32]:
        torch.set_num_threads(self.threads)
        with self._exact():
            image: NDArray[np.float32] = self._model.decode(x0).float().cpu().numpy()
        check_finite(image, self._bundle)
        return image

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
        return torch.tensor(host.view(np.int64) if host.dtype == np.uint64 else host, device=self.device)

    def take(self, array: Tensor, index: NDArray[np.int64]) -> Tensor:
        return array[torch.from_numpy(index).to(self.device)]

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
