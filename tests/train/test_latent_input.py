"""Bad input for training on a checkpoint: one error before anything is trained, and nothing left behind."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pictures import write_captions, write_folder
from PIL import Image
from pydantic import ValidationError

from ddm_rt import data
from ddm_rt.config import LoraConfig, RunConfig
from ddm_rt.errors import DdmError
from ddm_rt.presets import resolve
from ddm_rt.train.checkpoint.prepare import fields
from ddm_rt.train.run import train

Make = Callable[..., RunConfig]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """8 captioned drawings that a test may spoil."""
    folder = write_folder(tmp_path / "images", 8, 64, labels=False)
    write_captions(folder, ("a bar",))
    return folder


def rows(folder: Path, change: Callable[[list[list[str]]], object]) -> None:
    """Change the rows of metadata.csv, the header at 0."""
    path = folder / "metadata.csv"
    with path.open(newline="") as file:
        table = list(csv.reader(file))
    change(table)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(table)


def no_prompt(table: list[list[str]]) -> None:
    table[2][1], table[5][1] = "", " "


BAD: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "no such folder": (shutil.rmtree, {}, "no such folder"),
    "a folder without images": (
        lambda folder: [path.unlink() for path in folder.glob("*.png")],
        {},
        "0 images found; expected at least 2",
    ),
    "one image": (
        lambda folder: [path.unlink() for path in sorted(folder.glob("*.png"))[1:]],
        {},
        "1 images found; expected at least 2",
    ),
    "a corrupt image": (
        lambda folder: (folder / "003.png").write_bytes((folder / "003.png").read_bytes()[:60]),
        {},
        r"003\.png: not a readable image",
    ),
    "a tiny image": (
        lambda folder: Image.new("L", (7, 64)).save(folder / "005.png"),
        {},
        r"005\.png: is 7x64 pixels; expected at least 8 a side \(data\.min_side\)",
    ),
    "no captions at all": (
        lambda folder: (folder / "metadata.csv").unlink(),
        {},
        "its images have no prompts; give --prompt, or metadata.csv a column prompt",
    ),
    "captions missing for some": (
        lambda folder: rows(folder, no_prompt),
        {},
        r"2 of 8 images have no prompt, the first is '001\.png'",
    ),
    "rows missing for some": (
        lambda folder: rows(folder, lambda table: table.pop(3)),
        {},
        r"metadata\.csv: '002\.png' has no row \(1 images are missing\)",
    ),
    "a row for an image that isn't there": (
        lambda folder: rows(folder, lambda table: table.append(["9.png", "a bar"])),
        {},
        r"metadata\.csv: line 10: '9\.png' is not an image",
    ),
    "a row twice": (
        lambda folder: rows(folder, lambda table: table.append(table[1])),
        {},
        r"metadata\.csv: line 10: '000\.png' is listed twice",
    ),
    "targets that match nothing": (
        lambda folder: None,
        {"lora.targets": ("to_q", "q_proj")},
        "lora.targets: 'q_proj' matches no linear layer of the UNet; there are: .*to_v",
    ),
    "more codes than images": (
        lambda folder: None,
        {"codes.micro_codes": 8},
        "codes.micro_codes is 8, but there are only 8 images",
    ),
    "labels mode without labels": (lambda folder: None, {"train.indicator": "labels"}, "has no labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_error_and_leaves_nothing(case: str, images: Path, adapting: Make, tmp_path: Path) -> None:
    spoil, overrides, said = BAD[case]
    config = adapting("sd15", {"data.source": str(images), "codes.micro_codes": 3} | overrides)
    spoil(images)
    with pytest.raises(DdmError, match=said):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_corrupt_image_is_found_before_weights_are_read(
    images: Path, adapting: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without codes nothing else looks at the images before they are encoded."""
    config = adapting("sd15", {"data.source": str(images), "train.indicator": "none"})
    BAD["a corrupt image"][0](images)
    monkeypatch.setattr("ddm_rt.train.checkpoint.prepare.load_base", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(DdmError, match=r"003\.png: not a readable image"):
        train(config, tmp_path / "run")


def test_a_prompt_of_the_command_is_that_of_images_without_one(images: Path, adapting: Make) -> None:
    rows(images, no_prompt)
    rows(images, lambda table: table.pop(8))
    found = data.find(adapting("sd15", {"data.source": str(images), "data.prompt": "a drawing"}).data)
    assert found.prompts == ("a bar", "a drawing", "a bar", "a bar", "a drawing", "a bar", "a bar", "a drawing")


def test_images_that_changed_since_are_refused(images: Path, adapting: Make, tmp_path: Path) -> None:
    config = adapting("sd15", {"data.source": str(images), "train.indicator": "none"})

    def stop(done: int, total: int, said: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", progress={"train": stop})
    rows(images, lambda table: table[1].__setitem__(1, "another"))
    with pytest.raises(DdmError, match=r"images\.sha256: images, prompts or labels of .* have changed since"):
        train(config, tmp_path / "run")


def test_an_unsupported_checkpoint_is_named(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    base = shutil.copytree(checkpoints["sd15"], tmp_path / "base")
    index = json.loads((base / "model_index.json").read_bytes())
    (base / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    with pytest.raises(DdmError, match=r"model_index\.json: field _class_name: 'FluxPipeline' is not supported"):
        fields(base)


def test_a_damaged_portion_is_named(images: Path, adapting: Make, tmp_path: Path) -> None:
    config = adapting("sd15", {"data.source": str(images), "train.indicator": "none"})

    def stop(done: int, total: int, said: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", progress={"train": stop})
    (portion,) = (tmp_path / "run" / "cache").rglob("images_*.safetensors")
    portion.write_bytes(portion.read_bytes()[:-8])
    with pytest.raises(DdmError, match=rf"{portion.name}: damaged .*; delete it"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"lora.rank": 4}, r"lora \(--lora-rank and others\) needs a checkpoint \(--base\)"),
        ({"data.prompt": "a bar"}, r"data\.prompt \(--prompt\) needs a checkpoint"),
    ],
)
def test_options_of_checkpoints_without_one_are_refused(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(DdmError, match=said):
        resolve("tiny", overrides)


def test_options_that_exclude_each_other_are_refused(adapting: Make) -> None:
    with pytest.raises(ValidationError, match="needs a rank"):
        LoraConfig(rank=0, text_encoder=True)
    with pytest.raises(DdmError, match=r"data\.channels is 1"):
        adapting("sd15", {"data.channels": 1})
    with pytest.raises(DdmError, match=r"data\.image_size is 72; this model needs a multiple of 16"):
        adapting("sd15", {"data.image_size": 72})
