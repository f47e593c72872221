"""Compiles a bundle's networks with AOTInductor, for `packages` to open."""

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.devices import Device
from ddm_rt.engine.torch import packages, weights
from ddm_rt.engine.torch.eager import Eager, converted, signature
from ddm_rt.engine.torch.networks import DTYPES, Origin, precision_of
from ddm_rt.engine.torch.packages import EXTRAS, Code, Constant, Package, Record
from ddm_rt.errors import DdmError
from ddm_rt.files import sha256
from ddm_rt.model.parts import Part
from ddm_rt.progress import OnStage
from ddm_rt.quiet import quiet

BATCHES = (1, 2, 8, 16)
_ONCE = ("text_encoder", "conditioner")  # called for one prompt and code at a time
_OPTIONS: dict[str, Any] = {
    "aot_inductor.package_constants_in_so": False,  # they lie in the graphs
    "cpp.dynamic_threads": True,
}
_ON_CUDA: dict[str, Any] = {"max_autotune": True, "triton.cudagraphs": False}  # the engine captures graphs of its own


def build(
    bundle: Bundle,
    precision: Precision,
    device: Device,
    *,
    batches: Sequence[int] = BATCHES,
    size: tuple[int, int],
    progress: OnStage | None = None,
) -> Package:
    """Compile the networks for these batch sizes and latents of `size` (height, width) into
    the user's cache, in place of what was there.

    A call's rows are its images times the branches of guidance. Raises DdmError where torch can't trace or compile a
    network, and as `Eager.load`.
    """
    where = torch.device(str(device))
    with torch.no_grad():
        origins = weights.find(bundle, model := weights.load(bundle))
        eager = Eager(bundle, converted(model, DTYPES[precision], where))
        jobs = [(name, batch) for name in eager.parts for batch in ((1,) if name in _ONCE else sorted(set(batches)))]
        out = packages.place(bundle, precision, device)
        out.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            codes: list[Code] = []
            extras: dict[str, Tensor] = {}
            for done, (name, batch) in enumerate(jobs):
                if progress is not None:
                    progress(done, len(jobs), f"{name}, {batch} row{'s' * (batch != 1)}")
                inputs = _inputs(name, eager.parts[name], bundle, batch, size, where)
                code, own = _compiled(name, eager.parts[name], inputs, origins, temporary / f"{name}-{batch}.pt2")
                codes.append(code)
                extras |= own
            save_file(extras, temporary / EXTRAS)
            made = packages.made_here(bundle, precision, device)
            record = Record(made=made, extras=sha256(temporary / EXTRAS), codes=tuple(codes))
            packages.sign(temporary, record)
            shutil.rmtree(out, ignore_errors=True)
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    if progress is not None:
        progress(len(jobs), len(jobs), "done")
    return Package(out, record)


def _inputs(
    name: str, part: Part, bundle: Bundle, batch: int, size: tuple[int, int], device: torch.device
) -> dict[str, Tensor]:
    """What the engine calls the network with: zeros of the same shapes, dtypes and layouts."""
    config, taken = bundle.config, signature(name, part).taken
    latents = (batch, config.latent_shape[0], *size)
    tokens = max((spec.max_length for spec in config.text), default=1)
    found = {}
    for each, example in weights.example(part, config, batch, tokens).items():
        shape = latents if each in ("x_t", "x0") else example.shape
        found[each] = taken(each, torch.zeros(shape, dtype=example.dtype, device=device))
    return found


def _compiled(
    name: str, part: Part, inputs: Mapping[str, Tensor], origins: Mapping[str, Origin | None], path: Path
) -> tuple[Code, dict[str, Tensor]]:
    """The package at `path`, and the values of constants that no graph has."""
    start = time.perf_counter()
    options = _OPTIONS | (_ON_CUDA if next(iter(inputs.values())).is_cuda else {})
    with quiet("torch._dynamo", "torch._inductor", "torch.export"):
        try:
            # Not strict: transformers takes a lock in its text encoders, which Dynamo knows nothing of.
            program = torch.export.export(part.module, tuple(inputs.values()), strict=False)
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            raise DdmError(f"{name}: torch {torch.__version__} doesn't compile it: {error}") from error
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)
    values: dict[str, Any] = {**program.state_dict, **program.constants}
    constants: dict[str, Constant] = {}
    extras: dict[str, Tensor] = {}
    for constant in loader.get_constant_fqns():
        origin = origins.get(constant.removeprefix("model."))
        value = values[constant]
        if origin is None:
            extras[constant] = value.detach().cpu().contiguous().clone()
        else:
            constants[constant] = Constant(**origin.model_dump(), dtype=precision_of(value.dtype))
    own = signature(name, part)
    code = Code(
        file=path.name,
        sha256=sha256(path),
        network=name,
        inputs={each: tuple(value.shape) for each, value in inputs.items()},
        outputs=own.outputs,
        dtype=precision_of(own.dtype),
        constants=constants,
        extras=tuple(extras),
        seconds=time.perf_counter() - start,
    )
    return code, extras
