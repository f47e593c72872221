"""The latent digits benchmark: its base is a checkpoint that we read, its folder is trainable data, its table true."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from latent_digits_parts import base, cells, images, measuring
from pages.digits import fd_of, latent_page
from PIL import Image
from store import RESULTS, put, read

from ddm_rt import data
from ddm_rt.cli import app
from ddm_rt.config import DataConfig, Family
from ddm_rt.evaluate.judge import Judge
from ddm_rt.model.checkpoint.folder import read_checkpoint
from ddm_rt.presets import PRESETS, resolve


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latent_digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "VAE_STEPS", 2)
        return base.write_base(folder / "base", ("7",), "epsilon")


def test_the_base_is_a_checkpoint(checkpoint: Path) -> None:
    found = read_checkpoint(checkpoint)
    assert found.model.family is Family.SD
    assert (found.image_size, found.model.patch) == (32, 4)
    assert found.schedule.prediction_type == "epsilon"
    assert found.sampling.clip is None


def test_standardised_latents_decode_to_the_same_images() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(**base.VAE).eval().requires_grad_(False)
    pictures = torch.from_numpy(data.load(DataConfig(source="digits:7", channels=3)).latent_input()[:64])
    posterior = vae.encode(pictures).latent_dist
    before, spread = vae.decode(posterior.mode()).sample, posterior.std / posterior.mode().std((0, 2, 3), keepdim=True)
    base.standardise(vae, pictures)
    after = vae.encode(pictures).latent_dist
    assert after.mode().mean((0, 2, 3)).abs().max() < 1e-4
    assert (after.mode().std((0, 2, 3)) - 1).abs().max() < 1e-4
    assert (vae.decode(after.mode()).sample - before).abs().max() < 1e-4
    torch.testing.assert_close(after.std, spread, rtol=1e-4, atol=1e-5)


def test_reconstructions_are_images(checkpoint: Path) -> None:
    pictures = data.load(DataConfig(source="digits:7", channels=3)).images[:3]
    assert base.reconstruct(checkpoint, pictures).shape == pictures.shape


def test_the_folder_has_a_prompt_for_each_image_and_no_label(tmp_path: Path) -> None:
    source = str(_few(tmp_path / "few"))
    folder = images.write_folder(source, 32, tmp_path / "data")
    found = data.load(DataConfig(source=str(folder), channels=3))
    wanted = data.load(DataConfig(source=source, channels=3))
    assert (found.images == wanted.images).all()
    assert found.labels is None
    assert found.prompts is not None
    counts = [found.prompts.count(prompt) for prompt in images.PROMPTS]
    assert sum(counts) == len(wanted)
    assert max(counts) - min(counts) <= 1
    with (folder / "metadata.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["file_name", "prompt"]


def test_the_budget_is_that_of_the_pixel_models() -> None:
    ours, pixels = resolve("checkpoint", cells.budget()), PRESETS["digits-bench"]
    assert (ours.features, ours.codes, ours.train) == (pixels.features, pixels.codes, pixels.train)
    assert ours.sampling.num_steps == pixels.sampling.num_steps
    assert cells.SETTINGS.guidance_scale == pixels.sampling.indicator_guidance_scale


@pytest.mark.slow(reason="a whole run: training, export, samples, figures")
def test_a_cell_goes_from_folder_to_figures(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = cells.budget() | {"train.steps": 2, "features.steps": 2, "codes.bootstraps": 0, "sampling.num_steps": 2}
    monkeypatch.setattr(cells, "budget", lambda: small)
    monkeypatch.setattr(cells, "command", lambda *arguments: app(arguments, standalone_mode=False))
    monkeypatch.setattr(cells, "SETS", {"3v8 4:1": str(_few(tmp_path / "few"))})
    for module in (cells, measuring):
        monkeypatch.setattr(module, "N", 12)
        monkeypatch.setattr(module, "MIN_PER_GROUP", 6)
    cell = cells.Cell("3v8 4:1", "codes", tmp_path)
    shutil.copytree(checkpoint, tmp_path / "3v8_41" / "base")
    cell.train()
    bundle = cell.export()
    judge: Any = _TakesTurns(Judge.load("digits"))
    sampled = cell.sample(bundle, judge)
    row = measuring.measure(cell, bundle, sampled, judge)
    assert not bundle.config.prompt_free
    assert bundle.config.sampling.guidance_scale == cells.SETTINGS.guidance_scale
    assert row["evaluation"]["n"] == 12
    assert sum(row["codes_against_labels"]["top_sizes"]) == 100
    assert str(tmp_path) not in json.dumps(row)


class _TakesTurns:
    """A judge to whom every other image is a three and the rest are eights: what isn't trained draws neither."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._judge, name)

    def predict(self, shown: Any) -> Any:
        return self._judge.predict(shown)._replace(labels=np.resize(np.array(["3", "8"]), len(shown)))


def _few(folder: Path) -> Path:
    """80 threes and 20 eights with labels, as a folder."""
    found = data.load(DataConfig(source="digits:3,8@4:1"))
    labels = np.array(found.labels)
    folder.mkdir()
    rows = [("file_name", "label")]
    for i in (*np.flatnonzero(labels == "3")[:80], *np.flatnonzero(labels == "8")[:20]):
        Image.fromarray(found.images[i, ..., 0]).save(folder / f"{i:05d}.png")
        rows.append((f"{i:05d}.png", labels[i]))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def _row(fd: float, codes: bool) -> dict[str, Any]:
    quality = {"frechet": 10.0}
    return {
        "evaluation": {
            "raw": {"shares": [0.5 + fd, 0.5 - fd], "scores": {"fd_ddm": fd}, "fd_ddm_interval": [fd, fd]},
            "neither": {"share": 0.01},
            "quality": quality,
            "per_group": [{"quality": quality}, {"quality": None}],
            "nearest": {"mean": 0.1},
        },
        "codes_against_labels": {
            "stability_ari": [1.0, 0.5],
            "top_sizes": [80, 20],
            "group_share_in_top": {"3": [0.9, 0.2], "8": [0.1, 0.8]},
        }
        if codes
        else None,
    }


def test_the_table_puts_pixels_beside_latents_and_judges_the_margin(tmp_path: Path) -> None:
    cell = {"set": "3v8 4:1", "method": "codes"}
    (pixels,) = (line for line in read(RESULTS / "balance.jsonl") if cell.items() <= line.items())
    put(tmp_path / "balance.jsonl", [pixels], "set", "method")
    for more, verdict in ((0.02, ": met"), (0.04, ": NOT met")):
        put(tmp_path / "latent_digits.jsonl", [cell | _row(fd_of(pixels) + more, codes=True)], "set", "method")
        text = latent_page(tmp_path)
        assert text.count("| 3v8 4:1 | codes |") == 2
        assert "10.0 / too few" in text
        assert "0.750" in text
        assert "top code: 12.00%" in text
        assert verdict in text


def test_the_vae_never_sees_the_digits_of_its_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(cells, "write_base", lambda folder, others, *rest: seen.append(others))
    for name in cells.SETS | cells.DEVELOPMENT:
        cells.Cell(name, "codes", tmp_path).base()
    assert seen == [("0", "1", "7"), ("3", "7", "8"), ("0", "1", "3")]
