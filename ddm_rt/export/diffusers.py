"""A run as a diffusers pipeline folder, so that nobody is locked in: merged weights, the indicator as a component.

    DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR, trust_remote_code=True)

gives DDM's pipeline without this package installed; without `custom_pipeline` the folder is a plain checkpoint, and so
is that of a run without codes.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ddm_rt.bundle import INDEX
from ddm_rt.config import Family, Precision, RunConfig
from ddm_rt.errors import DdmError
from ddm_rt.export import diffusers_files
from ddm_rt.files import atomic_directory, check_free
from ddm_rt.model.assemble import assemble, read_file
from ddm_rt.model.checkpoint.folder import read_checkpoint, save_checkpoint
from ddm_rt.model.indicator import Conditioner, IndicatorAttnProcessor
from ddm_rt.model.latent import LatentDDM
from ddm_rt.runtime import Codes

INDICATOR = "indicator"  # the component's name, its folder's and its key's in model_index.json
MODULE = "ddm_indicator"  # the file with the component's class
PIPELINES = {Family.SD: "pipeline_sd.py", Family.SDXL: "pipeline_sdxl.py"}
DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}

README = """# {name}

A diffusers pipeline folder. The weights are merged; the indicator (balanced modes, {codes} codes) is a component of its
own, and `pipeline.py` uses it:

    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR, trust_remote_code=True)
    images = pipe("PROMPT", num_images_per_prompt={codes}, code=list(range({codes}))).images

`code` is one for all images or one for each, -1 for none; `indicator_scale` (1) is its strength. Guidance is joint:
null text and null code against text and code. Without `custom_pipeline` the folder is a plain checkpoint.
"""


def export_diffusers(run: Path, out: Path, precision: Precision = Precision.FP32) -> None:
    """Write `run` as a diffusers folder at `out`, whole or not at all, weights stored in `precision`.

    Raises BundleError for a run with missing, foreign or malformed parts, and DdmError for a bundle, a run without a
    base checkpoint (pixel models), a precision that diffusers doesn't store, or an `out` that isn't empty.
    """
    check_free(out)
    if (run / INDEX).is_file():
        raise DdmError(f"{run} is a bundle; a diffusers folder is made from the run that it was made from")
    config = read_file(RunConfig, run / "config.json", "a run has it")
    codes = read_file(Codes, run / "codes.json", "a run has it")
    if config.base is None:
        raise DdmError(f"{run}: trained on pixels, without a base checkpoint; only runs with one become a pipeline")
    if config.steering is not None:
        raise DdmError(
            f"{run}: its codes steer the model as it computes, which a pipeline's layers don't; export a bundle"
        )
    if precision not in DTYPES:
        raise DdmError(f"precision is {precision}; a diffusers folder stores {', '.join(DTYPES)}")
    model = assemble(run, config, codes, DTYPES[precision])
    assert isinstance(model, LatentDDM)
    like = read_checkpoint(run / config.base.path, config.base.variant)  # an absolute path stays itself
    with atomic_directory(out) as temporary:
        save_checkpoint(model, like, temporary, DTYPES[precision])
        if model.conditioner is not None:
            _add(temporary, config, codes, *_component(model))


def _component(model: LatentDDM) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and weights of DDMIndicator, named as in diffusers_files/ddm_indicator.py."""
    conditioner = model.conditioner
    assert isinstance(conditioner, Conditioner)
    layers = {
        name.removesuffix(".processor"): module
        for name, module in model.unet.named_modules()
        if isinstance(module, IndicatorAttnProcessor)
    }
    weights = {f"conditioner.{name}": tensor for name, tensor in conditioner.state_dict().items()}
    for i, processor in enumerate(layers.values()):
        weights |= {f"projections.{i}.{name}": tensor for name, tensor in processor.state_dict().items()}
    config = {
        "top_of": conditioner.top_of.tolist(),
        "embed_dim": conditioner.code.embedding_dim,
        "num_tokens": conditioner.num_tokens,
        "context_dim": model.context_dim,
        "layers": list(layers),
        "inner_dims": [processor.to_k_ind.out_features for processor in layers.values()],
    }
    return config, weights


def _add(
    directory: Path, run: RunConfig, codes: Codes, config: dict[str, Any], weights: dict[str, torch.Tensor]
) -> None:
    """The indicator's folder, the pipeline's code and a page that says how to use them."""
    files, folder = Path(diffusers_files.__path__[0]), directory / INDICATOR
    folder.mkdir()
    shutil.copyfile(files / f"{MODULE}.py", folder / f"{MODULE}.py")
    shutil.copyfile(files / PIPELINES[run.model.family], directory / "pipeline.py")
    (folder / "config.json").write_text(json.dumps({"_class_name": "DDMIndicator", **config}, indent=2) + "\n")
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        folder / "diffusion_pytorch_model.safetensors",
        metadata={"format": "pt"},
    )
    index = directory / "model_index.json"
    tree = json.loads(index.read_text()) | {INDICATOR: [MODULE, "DDMIndicator"]}
    index.write_text(json.dumps(tree, indent=2) + "\n")
    (directory / "README.md").write_text(README.format(name=run.preset, codes=codes.num_codes))
