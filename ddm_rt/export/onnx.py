"""A training run as a bundle: conditioner, denoiser and decoder graphs with free batch, height and width."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import onnx
import torch
from torch import Tensor, nn

import ddm_rt
from ddm_rt.bundle import Bundle, Codes, write_bundle
from ddm_rt.config import NULL_CODE, BundleConfig, Frozen, RunConfig, TensorSpec, parse_json
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.export import dialect, graph, tensors
from ddm_rt.model.unet import DDM, INDICATOR, SCALE, TEXT
from ddm_rt.model.weights import load_weights
from ddm_rt.schedule import Schedule

MAX_ABS_ERROR = 1e-4  # fp32, of every graph against torch
ATTENTION = "decomposed"

M = TypeVar("M", bound=Frozen)
Progress = Callable[[int, int, str], None]  # parts done, parts in all, name of the part


@dataclass(frozen=True)
class Part:
    """One graph: the module, its inputs by name, and which axes are free."""

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    free: graph.Axes


def export_run(
    run: Path, out: Path, *, with_weights: bool = False, plugin: bool = False, progress: Progress | None = None
) -> Bundle:
    """Write the finished run `run` as the bundle directory `out`, whole or not at all, and open it.

    The same run gives the same bundle id, whatever `out` is called. `with_weights` adds weights.safetensors,
    which the torch backend needs. `plugin` adds denoiser.plugin.onnx for TensorRT, where indicator attention is one
    node per layer; both graphs then read their weights from denoiser.onnx.data.

    Raises BundleError for a run with missing, foreign, malformed or non-finite parts, and DdmError where
    `out` is not empty or a graph differs from torch by more than `MAX_ABS_ERROR`.
    """
    config = _read(RunConfig, run / "config.json")
    codes = _read(Codes, run / "codes.json")
    latent_shape = config.model.latent_shape(config.data)
    model = DDM(config.model, latent_shape, codes.top_of).eval().requires_grad_(False)
    load_weights(model, run / "weights.safetensors")
    bundle_config = _bundle_config(config, codes, model)

    parts = _parts(model)
    parity: dict[str, float] = {}

    # `write_bundle` refuses an occupied `out` before it calls this, and `out` appears after it has returned.
    def fill(directory: Path) -> None:
        (directory / "config.json").write_text(bundle_config.model_dump_json(indent=1) + "\n")
        (directory / "schedule.json").write_text(Schedule.from_config(config.schedule).to_json())
        (directory / "codes.json").write_text(codes.model_dump_json(indent=1) + "\n")
        for done, (name, part) in enumerate(parts.items()):
            if progress is not None:
                progress(done, len(parts), name)
            parity.update(_export(name, part, directory, bundle_config, plugin=plugin and name == "denoiser"))
        if with_weights:
            shutil.copy(run / "weights.safetensors", directory)

    bundle = write_bundle(out, fill, _provenance(run, config) | {"parity_max_abs_error": parity})
    if progress is not None:
        progress(len(parts), len(parts), "done")
    return bundle


def _export(name: str, part: Part, directory: Path, config: BundleConfig, *, plugin: bool) -> dict[str, float]:
    """Trace, check, compare with torch; returns each graph's largest absolute error by its name."""
    # 0 and 1 would be taken for constants, equal height and width for one axis: the size that is not square.
    example = _inputs(part, config, batch=2, tokens=3, size=_sizes(config)[1], seed=0)
    path = directory / f"{name}.onnx"
    models = {path: graph.trace(part.module, example, part.outputs, part.free, variant=ATTENTION)}
    if plugin:
        models[directory / dialect.PLUGIN_GRAPH] = graph.trace(
            part.module, example, part.outputs, part.free, variant="plugin"
        )
    tensors.save(models, shared=plugin)
    return {
        path.name.removesuffix(".onnx"): _checked_difference(part, path, model, config)
        for path, model in models.items()
    }


def _checked_difference(part: Part, path: Path, model: onnx.ModelProto, config: BundleConfig) -> float:
    if any(map(dialect.is_plugin, model.graph.node)):
        runnable = path.with_name(f".{path.name}")
        runnable.write_bytes(dialect.spelled_out(model).SerializeToString())
        error = graph.difference(part.module, runnable, list(_cases(part, config)))
        runnable.unlink()
    else:
        error = graph.difference(part.module, path, list(_cases(part, config)))
    if not error <= MAX_ABS_ERROR:
        raise DdmError(
            f"{path.name}: differs from torch by {error:.3g} (largest absolute error); "
            f"expected at most {MAX_ABS_ERROR:g}; nothing was written"
        )
    return error


def _parts(model: DDM) -> dict[str, Part]:
    cond = model.cond_names
    given = ("context", "code", "indicator_scale") if model.conditioner is not None else ("context",)
    free: dict[str, dict[int, str]] = {
        **{name: {0: "batch", 1: "tokens"} for name in ("context", TEXT)},
        **{name: {0: "batch"} for name in ("code", "indicator_scale", INDICATOR, SCALE, "t")},
        **{name: {0: "batch", 2: "height", 3: "width"} for name in ("x_t", "output", "x0")},
        "image": {0: "batch", 2: "image_height", 3: "image_width"},
    }
    return {
        "conditioner": Part(_Conditioner(model), given, cond, free),
        "denoiser": Part(_Denoiser(model), ("x_t", "t", *cond), ("output",), free),
        "decoder": Part(_Decoder(model), ("x0",), ("image",), free),
    }


class _Conditioner(nn.Module):
    def __init__(self, model: DDM) -> None:
        super().__init__()
        self.model = model

    def forward(self, context: Tensor, *code_and_scale: Tensor) -> tuple[Tensor, ...]:
        if self.model.conditioner is None:
            return (context,)
        out: tuple[Tensor, ...] = self.model.conditioner(context, *code_and_scale)
        return out


class _Denoiser(nn.Module):
    def __init__(self, model: DDM) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_t: Tensor, t: Tensor, *cond: Tensor) -> Tensor:
        out: Tensor = self.model(x_t, t, dict(zip(self.model.cond_names, cond, strict=True)))
        return out


class _Decoder(nn.Module):
    def __init__(self, model: DDM) -> None:
        super().__init__()
        self.model = model

    def forward(self, x0: Tensor) -> Tensor:
        return self.model.decode(x0)


def _cases(part: Part, config: BundleConfig) -> Iterator[dict[str, Tensor]]:
    """Random inputs at two batch sizes and two sizes; null code and scale 0 among them."""
    for seed, (batch, size) in enumerate(product((1, 3), _sizes(config))):
        yield _inputs(part, config, batch=batch, tokens=batch, size=size, seed=seed)


def _inputs(
    part: Part, config: BundleConfig, *, batch: int, tokens: int, size: tuple[int, int], seed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn((batch, *shape), generator=generator)

    channels = config.latent_shape[0]
    context_dim = config.context_shape[1]
    # From the last code downwards, then the null code, with a scale of 0 before it.
    code = torch.arange(config.num_codes - 1, config.num_codes - 1 - batch, -1)
    scale = torch.linspace(1.5, 0.0, max(batch, 2))[:batch]
    made = {
        "context": lambda: normal(tokens, context_dim),
        "code": lambda: torch.where(torch.arange(batch) == 1, NULL_CODE, code.clamp(min=0)),
        "indicator_scale": lambda: scale,
        TEXT: lambda: normal(tokens, context_dim),
        INDICATOR: lambda: normal(config.model.num_indicator_tokens, context_dim),
        SCALE: lambda: scale,
        "x_t": lambda: normal(channels, *size),
        "t": lambda: torch.rand(batch, generator=generator) * (config.run.schedule.num_train_timesteps - 1),
        "x0": lambda: normal(channels, *size),
    }
    return {name: made[name]() for name in part.inputs}


def _sizes(config: BundleConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Latent sizes: the training size, and a larger one that is not square."""
    _, height, width = config.latent_shape
    step = config.size_multiple // config.model.patch
    return (height, width), (height + step, width + 2 * step)


def _bundle_config(config: RunConfig, codes: Codes, model: DDM) -> BundleConfig:
    shapes: dict[str, tuple[int | str, ...]] = {
        TEXT: ("tokens", model.context_dim),
        INDICATOR: (config.model.num_indicator_tokens, model.context_dim),
        SCALE: (),
    }
    levels = len(model.unet.config.block_out_channels)
    return BundleConfig(
        name=config.preset,
        latent_shape=config.model.latent_shape(config.data),
        image_size=config.data.image_size,
        channels=config.data.channels,
        size_multiple=config.model.patch * 2 ** (levels - 1),
        context_shape=("tokens", model.context_dim),
        prompt_free=True,
        cond=tuple(TensorSpec(name=name, shape=shapes[name]) for name in model.cond_names),
        num_codes=codes.num_codes,
        num_top_codes=codes.num_top_codes,
        sampling=config.sampling,
        model=config.model,
        run=config,
    )


def _provenance(run: Path, config: RunConfig) -> dict[str, Any]:
    path = run / "provenance.json"
    try:
        training = json.loads(path.read_bytes()) if path.is_file() else None
    except ValueError as error:
        raise BundleError(f"{path}: not JSON ({error})") from error
    return {
        "ddm_rt": ddm_rt.__version__,
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxscript", "diffusers")},
        "preset": config.preset,
        "opset": graph.OPSET,
        "attention": ATTENTION,
        "training": training,
    }


def _read(model: type[M], path: Path) -> M:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); a finished run has it") from error
    return parse_json(model, content, path)
