"""A run as a diffusers folder: opened without this package, it computes what the run's own model computes."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from checkpoints import write_checkpoint
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from latent_runs import add_indicator, write_run
from torch import Tensor
from transformers import CLIPTokenizer

from ddm_rt.bundle import Codes
from ddm_rt.config import Precision, RunConfig, parse_json
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.export.diffusers import export_diffusers
from ddm_rt.model.assemble import assemble
from ddm_rt.model.latent import LatentDDM
from ddm_rt.schedule import Schedule, step_table

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

folder, given, found, request = sys.argv[1:]
given, request, out = np.load(given), json.loads(request), {}
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
for name, code in {"short": [0], "large": [0, 4], "word": "0", "bool": [0, 1.5]}.items():
    try:
        pipe(**request | {"code": code})
    except ValueError as error:
        errors[name] = str(error)
assert not any(name.split(".")[0] == "ddm_rt" for name in sys.modules)
np.savez(found, **{name: value.numpy() for name, value in out.items()})
print(json.dumps([type(pipe).__name__, errors]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffusers")


def made_run(family: str, folder: Path) -> Path:
    """A run with codes; its base is written beside it."""
    return add_indicator(write_run(write_checkpoint(family, folder / family), folder / f"{family}-run"))


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


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
@torch.no_grad()
def test_the_folder_gives_our_outputs_without_this_package(family: str, folder: Path, tmp_path: Path) -> None:
    run = made_run(family, folder)
    export_diffusers(run, tmp_path / "out")
    model, config = model_of(run)
    shape, side = config.model.latent_shape(config.data), config.data.image_size
    generator = torch.Generator().manual_seed(1)
    x, x_t = (torch.randn((2, *shape), generator=generator) for _ in range(2))
    ids = [token_ids(model, folder / family, texts) for texts in (PROMPTS, [NEGATIVE] * 2)]
    text, null = (model.encode_text(*found) for found in ids)
    t = torch.tensor([901.0, 17.0])
    given = {"x_t": x_t, "t": t, "x": x, "context": text["context"]} | added(model, text, side)
    np.savez(tmp_path / "given.npz", **{k: v.numpy() for k, v in given.items()})
    request: dict[str, Any] = {
        "prompt": PROMPTS,
        "negative_prompt": [NEGATIVE] * 2,
        "code": CODES,
        "indicator_scale": SCALE,
        "guidance_scale": GUIDANCE,
        "num_inference_steps": STEPS,
    }
    class_name, errors = foreign(tmp_path / "out", tmp_path, request)
    found = {k: torch.from_numpy(v) for k, v in np.load(tmp_path / "found.npz").items()}

    assert class_name == "DDMPipeline"
    assert set(errors) == {"short", "large", "word", "bool"}
    assert "expected one, or 2: one per image" in errors["short"]
    assert "expected whole numbers from 0 to 3, or -1" in errors["large"]
    coded, plain = cond(model, text, CODES, side), cond(model, text, [-1, -1], side)
    close(found["output"], model(x_t, t, coded), tolerances.DIFFUSERS_OUTPUT_ABS)
    close(found["plain"], model(x_t, t, plain), tolerances.DIFFUSERS_OUTPUT_ABS)
    assert (found["output"] - found["plain"]).abs().max() > 1e-2  # the indicator is heard
    none = cond(model, null, [-1, -1], side)
    for name, branches in {"latents": [none, coded], "null": [none, plain], "unguided": [coded]}.items():
        close(found[name], sample(model, config, x, branches, GUIDANCE), tolerances.DIFFUSERS_LATENTS_ABS)
    assert found["image"].shape == (2, side, side, 3)


def foreign(out: Path, folder: Path, request: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Run FOREIGN on the exported folder; modules that diffusers copies go to `folder`."""
    command = [sys.executable, "-P", "-c", FOREIGN, out, folder / "given.npz", folder / "found.npz"]
    done = subprocess.run(
        [*map(str, command), json.dumps(request)],
        env=os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name, errors = json.loads(done.stdout.splitlines()[-1])
    return name, errors


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance
