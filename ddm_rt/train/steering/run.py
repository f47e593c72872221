"""A finished run or a checkpoint as a run with codes that steer it. Nothing is trained."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

import ddm_rt
from ddm_rt.config import Family, IndicatorMode, RunConfig, SteeredLayer, SteeringConfig, SteeringSite
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.files import atomic_directory, check_free, sha256, write_atomic, write_json
from ddm_rt.model.assemble import WEIGHTS, assemble, read_file
from ddm_rt.model.checkpoint.folder import MODEL_INDEX
from ddm_rt.model.parts import Model
from ddm_rt.model.steering import SteeringConditioner
from ddm_rt.presets import override, resolve
from ddm_rt.progress import OnFigures
from ddm_rt.runtime import Codes
from ddm_rt.train.disk_cache import CACHE
from ddm_rt.train.distributed import chosen_device
from ddm_rt.train.steering.directions import Directions, directions
from ddm_rt.train.steering.measuring import Measured, measured

# What may be set: where images and codes come from, and how is sampled.
_SETTABLE = {"data", "codes", "features", "sampling", "train.seed", "train.threads"}
_MOST = 1e6  # strength; far beyond what leaves an image whole
# Chosen on the pair 7v8 alone (benchmarks/results/steering.md).
STRENGTH = {SteeringSite.ATTENTION: 1.0, SteeringSite.PREDICTION: 2.0}


@dataclass(frozen=True)
class Source:
    """What is steered: a run, or a checkpoint that is a run without a folder of its own yet."""

    path: Path
    config: RunConfig
    weights: dict[str, Tensor]  # what the run's weights.safetensors holds
    sha256: str


def steer(
    source: Path,
    out: Path,
    fields: Mapping[str, Any] | None = None,
    *,
    site: SteeringSite | None = None,
    strength: float | None = None,
    steered_from: float = 0.0,
    images: int | None = None,
    contrast: Sequence[str] = (),
    variant: str | None = None,
    progress: Mapping[str, OnFigures] | None = None,
) -> Path:
    """Write the run `out`, whole or not at all: the model of `source` with codes that steer it; returns `out`.

    `source` is a finished run without codes, or the folder of a checkpoint (`variant` picks among its files). `fields`
    are dotted fields of its configuration: where the images are, and where codes come from, as in training. With
    `contrast` each prompt is a code, and the images are drawn by the model. `images` are those of each code that
    attention is measured with, or drawn. `progress` may hold callbacks "features", "encoding", "drawing" and
    "responses".

    Raises DdmError for a source that has codes or is a student, and for options that don't go together; else as
    `train.run.prepare`.
    """
    check_free(out)
    progress = progress or {}
    from_source = _source(source, variant)
    pixel = from_source.config.model.family is Family.PIXEL
    site = site or (SteeringSite.PREDICTION if pixel else SteeringSite.ATTENTION)
    config = _configured(from_source, dict(fields or {}), site, contrast)
    if strength is not None and not 0 <= strength <= _MOST:
        raise DdmError(f"--strength is {strength}; expected a number from 0 to {_MOST:g}")
    last = config.schedule.num_train_timesteps - 1
    if not 0 <= steered_from <= last:
        raise DdmError(f"--from is {steered_from}; expected a timestep from 0 to {last}, the last one of training")
    torch.set_num_threads(config.train.threads)
    device = chosen_device()
    with atomic_directory(out) as directory:
        model = _model(from_source)
        model.unet.to(device)
        found = measured(config, model, directory, device, site, contrast, images, progress)
        strength = STRENGTH[site] if strength is None else strength
        places = {name: directions(each, found.code, found.shared_of, strength) for name, each in found.at.items()}
        places = {name: each for name, each in places.items() if len(each.basis)}
        if not places:
            raise DdmError(
                f"{source}: nothing sets its codes apart, so there is no direction to steer in; expected two or more "
                "top codes whose images differ"
            )
        steering = SteeringConfig(
            source=from_source.sha256,
            site=site,
            strength=strength,
            steered_from=steered_from,
            timesteps=found.timesteps,
            images=len(found.code),
            contrast=tuple(contrast),
        )
        config = _with_places(config, steering, places)
        write_json(directory / "config.json", config.model_dump(mode="json"))
        write_json(directory / "provenance.json", _provenance(from_source, found, steering))
        write_atomic(directory / WEIGHTS, save(from_source.weights | _tensors(config, places, len(found.shared_of))))
        shutil.rmtree(directory / CACHE, ignore_errors=True)
    return out


def _source(path: Path, variant: str | None) -> Source:
    if (path / MODEL_INDEX).is_file():
        from ddm_rt.train.checkpoint.prepare import fields as of_checkpoint  # with transformers

        given = of_checkpoint(path, variant) | {"data.source": "none", "train.indicator": IndicatorMode.NONE}
        config = resolve("checkpoint", given)
        assert config.base is not None
        return Source(path, config, {}, config.base.sha256)
    if variant is not None:
        raise DdmError(f"--variant: {path} is no checkpoint folder, whose files it picks")
    config = read_file(RunConfig, path / "config.json", "expected a finished run, or a checkpoint folder (diffusers)")
    if config.distill is not None:
        raise DdmError(f"{path} is a student; steer the run that its teacher was trained as")
    if read_file(Codes, path / "codes.json").num_codes:
        raise DdmError(f"{path}: has codes already; expected a run of --indicator none or labels, or an imported one")
    weights = path / WEIGHTS
    if not weights.is_file():
        if config.base is None or config.preset != "imported":
            raise BundleError(f"{weights}: missing; a finished run has it")
        return Source(path, config, {}, config.base.sha256)
    return Source(path, config, load_file(weights), sha256(weights))


def _configured(source: Source, fields: dict[str, Any], site: SteeringSite, contrast: Sequence[str]) -> RunConfig:
    """The source's configuration with `fields`, and codes. Raises DdmError for what doesn't go together."""
    pixel = source.config.model.family is Family.PIXEL
    if other := [name for name in fields if name not in _SETTABLE and name.split(".")[0] not in _SETTABLE]:
        raise DdmError(
            f"{other[0]}: belongs to the finished model, or steering sets it; expected fields of "
            f"{', '.join(sorted(_SETTABLE))}"
        )
    if site is SteeringSite.ATTENTION and pixel:
        raise DdmError(
            f"{source.path}: takes no text, so its cross-attention gives the same for every image; "
            "expected the site prediction"
        )
    if site is SteeringSite.PREDICTION and source.config.schedule.prediction_type != "sample":
        raise DdmError(
            f"{source.path}: predicts {source.config.schedule.prediction_type}; the site prediction needs a model "
            "that predicts x0 (sample)"
        )
    if contrast and pixel:
        raise DdmError(f"{source.path}: takes no text; --contrast needs a model that does")
    if contrast and len(set(contrast)) < max(2, len(contrast)):
        raise DdmError(
            f"--contrast {'|'.join(contrast)!r}: expected two or more different prompts, with | between them"
        )
    if contrast and (given := {"data.source", "codes.source", "codes.labels"} & fields.keys()):
        raise DdmError(f"--contrast draws its own images, each prompt of which is a code; leave out {min(given)}")
    own: dict[str, Any] = {"train.compile": False}
    if not contrast:
        own["train.indicator"] = IndicatorMode.PROBE if "codes.labels" in fields else IndicatorMode.CODES
    if pixel:
        own["sampling.indicator_guidance_scale"] = 1.0  # one branch, which costs what the plain model does
    if source.config.base is not None:
        own["base.path"] = (source.path / source.config.base.path).resolve()
    config = override(source.config, own | fields)
    if not contrast and config.data.source == "none":
        raise DdmError("--data: missing; expected the images that codes are found in, or --contrast with prompts")
    return config


def _model(source: Source) -> Model:
    if not (source.path / MODEL_INDEX).is_file():
        return assemble(source.path, source.config, Codes(origin="none"))
    from ddm_rt.model.checkpoint.folder import load_base, read_checkpoint
    from ddm_rt.model.latent import LatentDDM

    with torch.device("meta"):
        model = LatentDDM(source.config.model)
    load_base(model, read_checkpoint(source.path, source.config.base.variant if source.config.base else None))
    return model.eval().requires_grad_(False)


def _with_places(config: RunConfig, steering: SteeringConfig, places: Mapping[str, Directions]) -> RunConfig:
    layers = tuple(
        SteeredLayer(name=name, width=found.basis.shape[1], rank=len(found.basis)) for name, found in places.items()
    )
    model = config.model.model_copy(update={"steering": layers, "steered_from": steering.steered_from})
    return config.model_copy(update={"steering": steering, "model": model})


def _tensors(config: RunConfig, places: Mapping[str, Directions], num_codes: int) -> dict[str, Tensor]:
    """What the conditioner holds, by its names in weights.safetensors."""
    conditioner = SteeringConditioner(num_codes, config.model.steering)
    with torch.no_grad():
        conditioner.vector.weight.copy_(torch.cat([found.vectors for found in places.values()], dim=1))
        conditioner.basis.weight.copy_(torch.cat([found.basis.flatten() for found in places.values()])[None])
    return {f"conditioner.{name}": tensor for name, tensor in conditioner.state_dict().items()}


def _provenance(source: Source, found: Measured, steering: SteeringConfig) -> dict[str, Any]:
    path = source.path / "provenance.json"
    return {
        "ddm_rt": ddm_rt.__version__,
        "versions": {name: version(name) for name in ("torch", "diffusers", "numpy", "scikit-learn")},
        "preset": source.config.preset,
        "images": len(found.code),
        "image_encoder": found.encoder,
        "steering": steering.model_dump(mode="json"),
        "source": {"name": source.path.resolve().name, "sha256": source.sha256},
        "source_training": json.loads(path.read_bytes()) if path.is_file() else None,
    }
