"""Runs of a checkpoint as importing and training leave them, with weights that are drawn, not trained."""

from pathlib import Path

import pytest
import torch
from checkpoints import FAMILIES
from safetensors.torch import save_file

from ddm_rt.config import DataConfig, IndicatorMode, RunConfig, TrainConfig, parse_json
from ddm_rt.files import write_json
from ddm_rt.model.checkpoint.folder import read_checkpoint
from ddm_rt.model.latent import LatentDDM
from ddm_rt.runtime import Codes, Leaf

# Whose export is looked at.
EXPORT = pytest.mark.slow(reason="an export of a checkpoint takes half a minute; that of the digits' model is quick")
EXPORTED = tuple(pytest.param(family, marks=EXPORT) for family in FAMILIES)


def write_run(checkpoint: Path, out: Path) -> Path:
    """A run of the checkpoint as it is: no codes, nothing trained."""
    found = read_checkpoint(checkpoint)
    config = RunConfig(
        preset="imported",
        data=DataConfig(source="none", image_size=found.image_size, channels=3),
        model=found.model,
        schedule=found.schedule,
        sampling=found.sampling,
        train=TrainConfig(indicator=IndicatorMode.NONE),
        base=found.base,
    )
    out.mkdir(parents=True)
    write_json(out / "config.json", config.model_dump(mode="json"))
    write_json(out / "codes.json", Codes(origin="none").model_dump(mode="json"))
    return out


def add_indicator(run: Path, codes: int = 4, *, seed: int = 0) -> Path:
    """Make `run` one with `codes` codes in two top codes: indicator weights and low-rank factors, all drawn."""
    config = parse_json(RunConfig, (run / "config.json").read_bytes(), run)
    top_of = tuple(2 * i // codes for i in range(codes))
    share = 1 / top_of.count(0)
    leaves = tuple(Leaf(code=i, top_code=top, size=10, share_in_top=share) for i, top in enumerate(top_of))
    with torch.device("meta"):
        model = LatentDDM(config.model, tuple((top,) for top in top_of))
    generator = torch.Generator().manual_seed(seed)
    weights = {"conditioner.top_of": torch.tensor(top_of)}
    for name, tensor in model.state_dict().items():
        if ".processor." in name or (name.startswith("conditioner.") and name not in weights):
            size = (
                1.0 if "norm" in name else max(tensor.shape[-1], 2) ** -0.5
            )  # keys and values about as large as text's
            weights[name] = size * torch.randn(tensor.shape, generator=generator)
    rank = config.lora.rank
    for name, module in model.unet.named_modules():
        if name.rpartition(".")[2] in config.lora.targets and isinstance(module, torch.nn.Linear):
            down, up = (rank, module.in_features), (module.out_features, rank)
            weights[f"lora.unet.{name}.A"] = torch.randn(down, generator=generator) * module.in_features**-0.5
            weights[f"lora.unet.{name}.B"] = torch.randn(up, generator=generator) * 0.01
    save_file(weights, run / "weights.safetensors")
    train = config.train.model_copy(update={"indicator": IndicatorMode.CODES})
    write_json(run / "config.json", config.model_copy(update={"train": train}).model_dump(mode="json"))
    write_json(run / "codes.json", Codes(origin="discovered", leaves=leaves).model_dump(mode="json"))
    return run
