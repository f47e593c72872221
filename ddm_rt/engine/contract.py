"""What every backend offers, and the checks that all of them make where data comes in and goes out.

Arrays are the backend's own; nothing above this room looks inside them.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.config import NULL_CODE
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.runtime import RuntimeConfig, TensorSpec

Array = Any  # numpy.ndarray on ONNX Runtime, torch.Tensor on torch, a device buffer on TensorRT
Index = NDArray[np.int64]  # of rows, on the host
Cond = Mapping[str, Array]  # named batch-first arrays; names and shapes stand in runtime.json

# Pixels in one call of a VAE on a CPU: it holds hundreds of channels of them, and models of real images are no faster
# in batches there.
CPU_PIXELS = 2**16

_POOLED = ("text_embeds",)  # of what the conditioner takes besides the context, that which the text encoder gives


class Engine(Protocol):
    """A loaded bundle on one backend: conditioner, denoiser, decoder, and the arithmetic between their calls.

    What these attributes hold, with the bundle id, seeds, codes and settings, determines every image's bytes.
    """

    backend: str  # its name in `engine.backends`
    precision: str
    threads: int
    versions: dict[str, str]  # of the packages that compute
    machine: str | None  # what its bits depend on besides; None: it can't say, so nothing is remembered of them
    max_batch: int | None  # rows that one call may have; None: as many as memory holds
    batch_sizes: tuple[int, ...] | None  # the only batch sizes that it takes, ascending; None: every one
    cond: tuple[TensorSpec, ...] | None  # what its conditioner gives; None: what runtime.json says
    projects: bool  # whether it has `projected_guidance`
    max_pixels: int | None  # of images that one call of a VAE may make; None: `max_batch` has seen to it

    def text_encoder(self, input_ids: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
        """Token ids int64 [B, max_length] by `TextSpec.input` -> `context` [B,T,D]; SDXL: and `text_embeds` [B,P].

        On the host on both sides: it runs once per prompt. Only for bundles that take prompts.
        """

    def conditioner(
        self,
        context: NDArray[np.float32],  # [B, T, D]
        code: NDArray[np.int64],  # [B]; -1 is the null code
        indicator_scale: NDArray[np.float32],  # [B]
        added: Mapping[str, NDArray[Any]],
    ) -> Cond:
        """Once per prompt x code. `added` holds what the bundle lists there, host arrays [B, ...]: for SDXL
        `text_embeds` and `time_ids`.

        Raises DdmError for a code outside the bundle's, or shapes that the graph refuses.
        """

    def denoiser(self, x_t: Array, t: Array, cond: Cond) -> Array:
        """Model output for x_t [B,C,H,W] at timesteps t float32 [B]: the only call inside the loop."""

    def decoder(self, x0: Array) -> NDArray[np.float32]:
        """Images [B,channels,H,W], nominally in [-1, 1], on the host.

        Raises DdmError for non-finite values.
        """

    def images(self, x0: Array) -> NDArray[np.uint8]:
        """What `decoder` gives, rounded to grey levels: uint8 [B,H,W,channels] on the host. Raises as it."""

    def guided_step(
        self,
        outputs: Sequence[Array],  # 1 to 3 branches, each [B,C,H,W]
        scales: Array,  # [B, branches - 1]
        rows: Array,  # [B, 9]
        x: Array,  # [B,C,H,W]
        x0_prev: Array,  # [B,C,H,W]
        seeds: Array | None,  # uint64 [B]; None where no row adds noise
        counters: Array | None,  # int64 [B], the number of each image's row; None with the seeds
    ) -> tuple[Array, Array]:
        """Guidance, step-table update and the step's noise; see `ddm_rt.kernels.guided_step`. Returns (x, x0)."""

    def projected_guidance(self, outputs: Sequence[Array], settings: Array) -> Array:
        """Branches, 2 or 3 of [B,C,H,W], as one output; `settings` [B, branches + 1]: see
        `ddm_rt.kernels.projected_guidance`.

        Raises DdmError where what was made ahead of time for this engine doesn't have it.
        """

    def update(self, outputs: Sequence[Array], update: "Update") -> tuple[Array, Array]:
        """`guided_step` of the branches' outputs; where `update` has a projection, of what `projected_guidance` makes
        of them. Returns (x, x0).
        """

    def step(
        self,
        t: Array,  # [R]
        cond: Cond,  # R rows
        image_of: Index,  # [R], which image each row of the call is of
        parts: Sequence[Index],  # 1 to 3 branches, each [B]: the rows that are the images' own
        update: "Update",
    ) -> tuple[Array, Array]:
        """One denoiser call of R rows and the `update` of all B images. Returns (x, x0)."""

    def array(self, host: NDArray[Any]) -> Array:
        """A host array as the backend's own, of the same dtype; uint64 may become the int64 of the same bits."""

    def host(self, array: Array) -> NDArray[np.float32]:
        """The values of one of its float32 arrays, on the host."""

    def series(self, host: NDArray[Any]) -> Sequence[Array]:
        """The K entries of a host array [K, ...], of 4 or 8 bytes a number, as K arrays that came over at once."""

    def take(self, array: Array, index: Index) -> Array:
        """Rows of `array` by index, on the device."""

    def concat(self, arrays: Sequence[Array]) -> Array:
        """Arrays joined along the batch axis, on the device."""


class Update(NamedTuple):
    """What `Engine.guided_step` takes of B images beside the branches' outputs, in its order, and the last field."""

    scales: Array
    rows: Array
    x: Array
    x0_prev: Array
    seeds: Array | None
    counters: Array | None
    projection: Array | None = None  # [B, branches + 1], for `Engine.projected_guidance`; `scales` is then [B, 0]


def conditioner_inputs(config: RuntimeConfig) -> list[str]:
    """Names of what the conditioner's graph takes: a bundle without codes has one of the context and `added` alone."""
    code = ("code", "indicator_scale") if config.num_codes else ()
    return ["context", *code, *(spec.name for spec in config.added)]


def conditioner_feeds(
    config: RuntimeConfig,
    context: NDArray[np.float32],
    code: NDArray[np.int64],
    indicator_scale: NDArray[np.float32],
    added: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """Arguments of `Engine.conditioner` as `conditioner_inputs` names them. Raises DdmError as `check_code`, and for
    an input that `added` lacks.
    """
    check_code(code, config.num_codes)
    given: dict[str, NDArray[Any]] = {"context": context, "code": code, "indicator_scale": indicator_scale, **added}
    names = conditioner_inputs(config)
    for name in (name for name in names if name not in given):
        raise DdmError(f"conditioner: input {name} is missing; given were {', '.join(given)}")
    return {name: given[name] for name in names}


def check_code(code: NDArray[np.int64], num_codes: int) -> None:
    """Raises DdmError for a code that is neither the null code nor one of the bundle's."""
    for value in code[(code < NULL_CODE) | (code >= num_codes)][:1]:
        raise DdmError(f"code is {value}; this bundle has {num_codes} codes (0 or more) and the null code -1")


def check_finite(finite: bool | np.bool_, bundle: Bundle) -> None:
    """Raises DdmError naming the bundle where not all numbers that its decoder gave are finite."""
    if not finite:
        raise DdmError(f"{bundle.path}: produced non-finite values; its weights or the requested scales are at fault")


def check_names(
    config: RuntimeConfig, network: str, where: Path | str, inputs: Iterable[str], outputs: Iterable[str]
) -> None:
    """Raises BundleError calling the network `where`, if its inputs or outputs aren't what the bundle says."""
    cond = [spec.name for spec in config.cond]
    pooled = [spec.name for spec in config.added if spec.name in _POOLED]
    expected = {
        "text_encoder inputs": ([spec.input for spec in config.text], "text"),
        "text_encoder outputs": (["context", *pooled], "added"),
        "conditioner inputs": (conditioner_inputs(config), "added"),
        "conditioner outputs": (cond, "cond"),
        "denoiser inputs": (["x_t", "t", *cond], "cond"),
        "decoder inputs": (["x0"], "cond"),
    }
    for side, found in (("inputs", list(inputs)), ("outputs", list(outputs))):
        names, field = expected.get(f"{network} {side}", (found, ""))
        if sorted(found) != sorted(names):
            raise BundleError(
                f"{where}: {side} are {', '.join(found)}; the bundle says {', '.join(names)} (field {field})"
            )


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
