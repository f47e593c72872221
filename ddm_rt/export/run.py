"""A training run as a bundle: conditioner, denoiser and decoder graphs with free batch, height and width."""

import gc
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor

import ddm_rt
from ddm_rt import graph_files
from ddm_rt.bundle import Bundle, write_bundle
from ddm_rt.config import Family, RunConfig
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.export import examples, graph, plugin_node
from ddm_rt.export.decoder import provenance as decoder_provenance
from ddm_rt.export.decoder import read_decoder
from ddm_rt.files import check_free
from ddm_rt.model import keys_values
from ddm_rt.model.assemble import assemble, read_file
from ddm_rt.model.checkpoint.folder import prompt_length, read_checkpoint, read_tokenizer
from ddm_rt.model.parts import Model, Part, parts
from ddm_rt.model.unet import POOLED, SIZES
from ddm_rt.progress import OnStage
from ddm_rt.runtime import (
    RUNTIME,
    TRAINING,
    Codes,
    KeysValues,
    LayerWidth,
    RuntimeConfig,
    TensorSpec,
    TextSpec,
    runtime_json,
    training_json,
)
from ddm_rt.schedule import Schedule

# fp32, of every graph against torch. The second is of the largest output, and counts where that is above 10: hidden
# states of large text encoders reach hundreds.
MAX_ABS_ERROR, MAX_REL_ERROR = 1e-4, 1e-5
ATTENTION = "decomposed"


@dataclass(frozen=True)
class Text:
    """What a bundle says about prompts: nothing, for models that take none."""

    specs: tuple[TextSpec, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)  # path in the bundle -> content
    added: tuple[TensorSpec, ...] = ()  # what the conditioner takes besides text and code
    empty_negative_is_zero: bool = False


def export_run(
    run: Path,
    out: Path,
    *,
    plugin: bool = False,
    precompute_kv: bool = False,
    decoder: Path | None = None,
    progress: OnStage | None = None,
) -> Bundle:
    """Write the finished run `run` as the bundle directory `out`, whole or not at all, and open it.

    The same run gives the same bundle id, whatever `out` is called. `plugin` adds denoiser.plugin.onnx for TensorRT,
    where indicator attention is one node per layer; both graphs then read their weights from denoiser.onnx.data.
    With `precompute_kv` the conditioner gives keys and values, and the denoiser makes none (`model.keys_values`).
    `decoder` is a folder with an AutoencoderTiny that takes the place of the checkpoint's VAE.

    Raises BundleError for a run or decoder with missing, foreign, malformed or non-finite parts, and DdmError where
    `out` is not empty, options don't go together, or a graph differs from torch by more than `MAX_ABS_ERROR`.
    """
    check_free(out)
    config = read_file(RunConfig, run / "config.json")
    if decoder is not None and config.model.family is Family.PIXEL:
        raise DdmError(f"{run}: trained on pixels, without a VAE; --decoder takes the place of one")
    codes = read_file(Codes, run / "codes.json")
    model = assemble(run, config, codes, None)
    text = read_text(run, config)
    runtime = _runtime(config, codes, model, text, ready=precompute_kv)
    graphs = parts(model, runtime, ready=precompute_kv)
    if decoder is not None:
        graphs["decoder"] = replace(graphs["decoder"], module=read_decoder(decoder, config.model), own=())
    parity: dict[str, float] = {}

    # `out` appears after this has returned.
    def fill(directory: Path) -> None:
        (directory / RUNTIME).write_text(runtime_json(runtime, Schedule.from_config(config.schedule)))
        (directory / TRAINING).write_text(_training(config, codes))
        for name, content in text.files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(content)
        for done, (name, part) in enumerate(graphs.items()):
            if progress is not None:
                progress(done, len(graphs), name)
            parity.update(_export(name, part, directory, runtime, config, plugin=plugin and name == "denoiser"))

    bundle = write_bundle(out, fill, _provenance(run, config, decoder) | {"parity_max_abs_error": parity})
    if progress is not None:
        progress(len(graphs), len(graphs), "done")
    return bundle


def _export(
    name: str, part: Part, directory: Path, runtime: RuntimeConfig, run: RunConfig, *, plugin: bool
) -> dict[str, float]:
    """Trace, check, compare with torch; returns each graph's largest absolute error by its name."""
    example, cases = examples.example(part, runtime, run), list(examples.cases(part, runtime, run))
    for module in part.own:
        module.float()  # one network at a time: a checkpoint in float16 would need twice its size at once
    path = directory / f"{name}.onnx"
    variants = {path: ATTENTION} | ({directory / plugin_node.PLUGIN_GRAPH: "plugin"} if plugin else {})
    graphs = {
        path: graph.trace(part.module, example, part.outputs, part.free, variant=variant)
        for path, variant in variants.items()
    }
    graph_files.save(graphs, shared=plugin)
    wanted = graph.expected(part.module, cases)
    models = {path: traced.model for path, traced in graphs.items()}
    # torch's weights go before ONNX Runtime maps its own: they needn't fit into memory twice.
    graphs.clear()
    for module in part.own:
        module.to("meta")
    gc.collect()  # what the tracer left holds them too, in cycles
    return {
        path.name.removesuffix(".onnx"): _checked_difference(path, model, cases, wanted)
        for path, model in models.items()
    }


def _checked_difference(
    path: Path, model: onnx.ModelProto, cases: Sequence[Mapping[str, Tensor]], wanted: Sequence[Sequence[Tensor]]
) -> float:
    if any(map(plugin_node.is_plugin, model.graph.node)):
        runnable = path.with_name(f".{path.name}")
        runnable.write_bytes(plugin_node.spelled_out(model).SerializeToString())
        error = graph.difference(runnable, cases, wanted)
        runnable.unlink()
    else:
        error = graph.difference(path, cases, wanted)
    if math.isinf(error):
        raise DdmError(
            f"{path.name}: an output isn't finite, in torch or in the graph, or has another shape; nothing was written"
        )
    largest = max(float(output.abs().max()) for outputs in wanted for output in outputs)
    limit = max(MAX_ABS_ERROR, MAX_REL_ERROR * largest)
    if not error <= limit:
        raise DdmError(
            f"{path.name}: differs from torch by {error:.3g} (largest absolute error); "
            f"expected at most {limit:g}; nothing was written"
        )
    return error


def read_text(run: Path, config: RunConfig) -> Text:
    """What the base checkpoint of `run` says about its prompts; nothing for a model of pixels, which takes none.

    Raises BundleError naming the folder of a tokenizer that can't be read or has words that its encoder lacks.
    """
    if config.model.family is Family.PIXEL:
        return Text()
    assert config.base is not None
    checkpoint = read_checkpoint(run / config.base.path, config.base.variant)
    specs: list[TextSpec] = []
    files: dict[str, str] = {}
    encoders = config.model.text_encoders
    for number, (folder, encoder) in enumerate(zip(checkpoint.tokenizers, encoders, strict=True)):
        tokenizer = read_tokenizer(folder)
        # Padding and truncation are the sampler's.
        backend = tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        words, known = backend.get_vocab_size(), int(encoder["vocab_size"])
        if words > known:
            raise BundleError(f"{folder}: has {words} words; its text encoder's vocab_size is {known}")
        name = f"tokenizer/{folder.name}.json"
        files[name] = backend.to_str(pretty=False)
        specs.append(
            TextSpec(
                tokenizer=name,
                input="input_ids" if number == 0 else f"input_ids_{number + 1}",
                max_length=prompt_length(tokenizer, encoder),
                pad_id=int(tokenizer.pad_token_id),
            )
        )
    added: tuple[TensorSpec, ...] = ()
    if config.model.family is Family.SDXL:
        pooled = TensorSpec(name=POOLED, shape=(int(encoders[-1]["projection_dim"]),))
        added = (pooled, TensorSpec(name=SIZES, shape=(6,)))
    return Text(tuple(specs), files, added, checkpoint.empty_negative_is_zero)


def _runtime(config: RunConfig, codes: Codes, model: Model, text: Text, *, ready: bool) -> RuntimeConfig:
    levels = len(model.unet.config.block_out_channels)
    pixel = config.model.family is Family.PIXEL
    return RuntimeConfig(
        family=config.model.family,
        name=config.preset,
        latent_shape=config.model.latent_shape(config.data),
        image_size=config.data.image_size,
        channels=config.data.channels if pixel else 3,
        size_multiple=config.model.patch * 2 ** (levels - 1),
        context_shape=("tokens", model.context_dim),
        prompt_free=pixel,
        text=text.specs,
        added=text.added,
        empty_negative_is_zero=text.empty_negative_is_zero,
        cond=model.cond_specs(text.added, ready=ready),
        keys_values=_keys_values(model) if ready else None,
        takes_negative_prompt=config.distill is None,
        sampling=config.sampling,
        codes=codes.leaves,
        factors=codes.factors,
    )


def _keys_values(model: Model) -> KeysValues:
    layers = keys_values.layers(model.unet).items()
    widths = tuple(LayerWidth(name=name, width=attn.inner_kv_dim) for name, attn in layers)
    return KeysValues(indicator_tokens=model.num_indicator_tokens, layers=widths)


def _training(config: RunConfig, codes: Codes) -> str:
    # Where the base lies on this machine is nobody's business elsewhere; its sha256 says which one it is.
    base = config.base and config.base.model_copy(update={"path": Path(config.base.path.name)})
    run = config.model_copy(update={"base": base})
    return training_json(*(part.model_dump(mode="json") for part in (config.model, run, codes)))


def _provenance(run: Path, config: RunConfig, decoder: Path | None) -> dict[str, Any]:
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
        "decoder": None if decoder is None else decoder_provenance(decoder),
        "training": training,
    }
