"""A run as a diffusers folder: opened without this package, it computes what the run's own model computes."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from ddm_rt.config import RunConfig, parse_json
from ddm_rt.export.diffusers import INDICATOR, export_diffusers
from ddm_rt.model.assemble import assemble
from ddm_rt.model.checkpoint.folder import read_checkpoint
from ddm_rt.model.latent import LatentDDM
from ddm_rt.runtime import Codes
from ddm_rt.schedule import Schedule, step_table

OPENED = pytest.mark.slow(reason="opens the folders in a process that imports diffusers again")
FAMILIES = ("sd15", "sdxl")  # SDXL has what SD 2.1 has
STEPS, GUIDANCE, SCALE = 6, 5.0, 1.3
PROMPTS, NEGATIVE = ["a photo of a doctor", "a nurse at work"], "blurry"
CODES = [2, 0]

# What a user of the folder runs, where ddm_rt can't be imported.
FOREIGN = """
import json, sys
import numpy as np
import torch

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ddm_rt":
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Blocked())
torch.set_num_threads(1)
from diffusers import DiffusionPipeline

def results(folder, given, request):
    out = {}
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    tensor = {name: torch.from_numpy(given[name]) for name in given.files}
    added = {name: tensor[name] for name in ("text_embeds", "time_ids") if name in tensor} or None
    with torch.no_grad():
        indicator = pipe.indicator.condition(request["code"], request["indicator_scale"], 2, guided=False)
        call = tensor["x_t"], tensor["t"], tensor["context"]
        out["output"] = pipe.unet(*call, cross_attention_kwargs=indicator, added_cond_kwargs=added).sample
        out["plain"] = pipe.unet(*call, added_cond_kwargs=added).sample
    request["latents"], request["output_type"] = tensor["x"], "latent"
    for name, change in {"latents": {}, "null": {"code": -1}, "unguided": {"guidance_scale": 1.0}}.items():
        out[name] = pipe(**request | change).images
    out["image"] = torch.from_numpy(pipe(**request | {"output_type": "np", "num_inference_steps": 1}).images)
    errors = {}
    for name, code in {"short": [0], "large": [0, 4], "word": "0", "fraction": [0, 1.5]}.items():
        try:
            pipe(**request | {"code": code})
        except ValueError as error:
            errors[name] = str(error)
    return type(pipe).__name__, errors, out

said = {}
for place in sys.argv[2:]:
    name, errors, out = results(place + "/out", np.load(place + "/given.npz"), json.loads(sys.argv[1]))
    np.savez(place + "/found.npz", **{name: value.numpy() for name, value in out.items()})
    said[place] = name, errors
assert not any(name.split(".")[0] == "ddm_rt" for name in sys.modules)
print(json.dumps(said))
"""


def model_of(run: Path) -> tuple[LatentDDM, RunConfig]:
    config = parse_json(RunConfig, (run / "config.json").read_bytes(), run)
    model = assemble(run, config, parse_json(Codes, (run / "codes.json").read_bytes(), run))
    assert isinstance(model, LatentDDM)
    return model, config


def token_ids(model: LatentDDM, checkpoint: Path, texts: list[str]) -> list[Tensor]:
    names = ("tokenizer", "tokenizer_2")[: len(model.text_encoders)]
    return [
        CLIPTokenizer.from_pretrained(checkpoint / name)(
            texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        for name in names
    ]


def added(model: LatentDDM, text: Mapping[str, Tensor], side: int) -> dict[str, Tensor]:
    """SDXL's conditions besides text and code."""
    found = {**text, "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * len(text["context"])).float()}
    return {name: found[name] for name in model.added_names}


def cond(model: LatentDDM, text: Mapping[str, Tensor], code: list[int], side: int) -> dict[str, Tensor]:
    scale = torch.full((len(code),), SCALE)
    return model.condition(text["context"], torch.tensor(code), scale, added(model, text, side))


def sample(
    model: LatentDDM, config: RunConfig, x: Tensor, branches: list[dict[str, Tensor]], guidance: float
) -> Tensor:
    """Our step table and joint guidance around the torch model, in float32."""
    table = step_table(Schedule.from_config(config.schedule), config.sampling.sampler, STEPS, clip=config.sampling.clip)
    x = x * table.init_scale
    for row, t in zip(table.rows().tolist(), table.timesteps.tolist(), strict=True):
        a, b, c, d, e, g, *_ = row
        assert e == 0
        outs = [model(x, torch.full((len(x),), t), branch) for branch in branches]
        out = outs[0] if len(outs) == 1 else outs[0] + guidance * (outs[1] - outs[0])
        x = c * x + d * (a * x + b * out) + g * out
    return x


@dataclass(frozen=True)
class Opened:
    """What a process without this package computed from an exported folder, beside what went into it."""

    model: LatentDDM
    config: RunConfig
    given: Mapping[str, Tensor]
    null: Mapping[str, Tensor]  # the negative prompt's embeddings
    found: Mapping[str, Tensor]
    class_name: str
    errors: Mapping[str, str]

    @property
    def side(self) -> int:
        return self.config.data.image_size


@pytest.fixture(scope="module")
def folders(latent_runs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """By family: the exported folder of its run. Read-only."""
    folder = tmp_path_factory.mktemp("diffusers")
    for family in FAMILIES:
        export_diffusers(latent_runs[family], folder / family / "out")
    return {family: folder / family / "out" for family in FAMILIES}


@pytest.fixture(scope="module")
@torch.no_grad()
def opened(
    folders: Mapping[str, Path], latent_runs: Mapping[str, Path], checkpoints: Mapping[str, Path]
) -> Mapping[str, Opened]:
    """One process for all families: what it imports takes longer than what it does."""
    made: dict[str, dict[str, Any]] = {}
    for family, folder in folders.items():
        model, config = model_of(latent_runs[family])
        shape, generator = config.model.latent_shape(config.data), torch.Generator().manual_seed(1)
        x, x_t = (torch.randn((2, *shape), generator=generator) for _ in range(2))
        texts = (PROMPTS, [NEGATIVE] * 2)
        text, null = (model.encode_text(*token_ids(model, checkpoints[family], found)) for found in texts)
        given = {"x_t": x_t, "t": torch.tensor([901.0, 17.0]), "x": x, "context": text["context"]}
        given |= added(model, text, config.data.image_size)
        np.savez(folder.parent / "given.npz", **{name: tensor.numpy() for name, tensor in given.items()})
        made[family] = {"model": model, "config": config, "given": given, "null": null}
    said = foreign([folder.parent for folder in folders.values()])
    for family, folder in folders.items():
        class_name, errors = said[str(folder.parent)]
        found = {name: torch.from_numpy(value) for name, value in np.load(folder.parent / "found.npz").items()}
        made[family] |= {"class_name": class_name, "errors": errors, "found": found}
    return {family: Opened(**facts) for family, facts in made.items()}


def foreign(places: list[Path]) -> dict[str, tuple[str, dict[str, str]]]:
    """Run FOREIGN on the folders `out` of `places`; modules that diffusers copies go beside the first."""
    request = {
        "prompt": PROMPTS,
        "negative_prompt": [NEGATIVE] * 2,
        "code": CODES,
        "indicator_scale": SCALE,
        "guidance_scale": GUIDANCE,
        "num_inference_steps": STEPS,
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", FOREIGN, json.dumps(request), *map(str, places)],
        env=os.environ | {"HF_MODULES_CACHE": str(places[0] / "modules"), "HF_HUB_OFFLINE": "1"},
        cwd=places[0],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, tuple[str, dict[str, str]]] = json.loads(done.stdout.splitlines()[-1])
    return said


@OPENED
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_folder_gives_our_outputs_without_this_package(family: str, opened: Mapping[str, Opened]) -> None:
    it = opened[family]
    model, found, given = it.model, it.found, it.given
    assert it.class_name == "DDMPipeline"
    coded, plain = (cond(model, given, code, it.side) for code in (CODES, [-1, -1]))
    close(found["output"], model(given["x_t"], given["t"], coded), tolerances.DIFFUSERS_OUTPUT_ABS)
    close(found["plain"], model(given["x_t"], given["t"], plain), tolerances.DIFFUSERS_OUTPUT_ABS)
    assert (found["output"] - found["plain"]).abs().max() > 1e-2  # the indicator is heard
    none = cond(model, it.null, [-1, -1], it.side)
    for name, branches in {"latents": [none, coded], "null": [none, plain], "unguided": [coded]}.items():
        expected = sample(model, it.config, given["x"], branches, GUIDANCE)
        close(found[name], expected, tolerances.DIFFUSERS_LATENTS_ABS)
    assert found["image"].shape == (2, it.side, it.side, 3)


@OPENED
def test_codes_that_do_not_fit_are_refused(opened: Mapping[str, Opened]) -> None:
    errors = opened["sd15"].errors
    assert set(errors) == {"short", "large", "word", "fraction"}
    assert "expected one, or 2: one per image" in errors["short"]
    assert "expected whole numbers from 0 to 3, or -1" in errors["large"]


@OPENED
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_without_the_pipeline_file_it_is_a_plain_checkpoint(
    family: str, folders: Mapping[str, Path], opened: Mapping[str, Opened]
) -> None:
    it = opened[family]
    pipeline = DiffusionPipeline.from_pretrained(folders[family])
    assert type(pipeline).__module__.startswith("diffusers.pipelines.stable_diffusion")
    assert INDICATOR not in pipeline.components
    conditions = {name: it.given[name] for name in it.model.added_names}
    output = pipeline.unet(
        it.given["x_t"], it.given["t"], it.given["context"], added_cond_kwargs=conditions or None
    ).sample
    plain = it.model(it.given["x_t"], it.given["t"], cond(it.model, it.given, [-1, -1], it.side))
    close(output, plain, tolerances.DIFFUSERS_OUTPUT_ABS)


def test_it_is_a_base_for_this_project_again(folders: Mapping[str, Path], latent_runs: Mapping[str, Path]) -> None:
    found, config = read_checkpoint(folders["sdxl"]), model_of(latent_runs["sdxl"])[1]
    assert found.model == config.model
    assert found.schedule == config.schedule
    assert found.sampling == config.sampling


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance
