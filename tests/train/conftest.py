"""A training set that takes seconds, and the configuration that reads it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from made_once import made_once
from pictures import write_captions, write_folder

from ddm_rt.config import RunConfig
from ddm_rt.presets import resolve
from ddm_rt.train.checkpoint.prepare import fields
from ddm_rt.train.run import train


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 labelled drawings of 16x16, 3:1. Read-only."""
    return write_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def captioned(shared_folder: Path) -> Path:
    """24 drawings of 64x64, with prompts. Read-only."""

    def make(place: Path) -> None:
        folder = write_folder(place, 24, 64, labels=False)
        write_captions(folder, ("a bar", "a white bar on black", "a drawing"))

    return made_once(shared_folder / "data" / "captioned", make)


@pytest.fixture(scope="session")
def adapting(checkpoints: Mapping[str, Path], captioned: Path) -> Callable[..., RunConfig]:
    """adapting("sd15", {...}): few steps of LoRA on that tiny checkpoint, with dotted overrides."""

    def make(family: str, overrides: dict[str, Any] | None = None) -> RunConfig:
        small = {
            "data.source": str(captioned),
            "features.steps": 4,
            "features.batch_size": 16,
            "features.width": 4,
            "codes.micro_codes": 4,
            "codes.bootstraps": 1,
            "train.steps": 6,
            "train.batch_size": 4,
            "train.accumulate": 1,
            "train.learning_rate": 1e-2,
            "train.warmup_steps": 2,
            "train.ema_decay": 0.5,
            "train.checkpoint_every": 4,
            "sampling.num_steps": 3,
        }
        return resolve("checkpoint", fields(checkpoints[family]) | small | (overrides or {}))

    return make


@pytest.fixture(scope="session")
def adapted(adapting: Callable[..., RunConfig], shared_folder: Path) -> Path:
    """The run of `adapting("sd15")`. Read-only."""
    return made_once(shared_folder / "adapted" / "sd15", lambda place: train(adapting("sd15"), place))


@pytest.fixture(scope="session")
def tiny_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the `tiny` preset on that folder. Read-only."""
    return train(resolve("tiny", {"data.source": str(folder)}), tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture
def tiny(folder: Path) -> Callable[..., RunConfig]:
    """The `tiny` preset on that folder, with dotted overrides."""

    def make(overrides: dict[str, Any] | None = None) -> RunConfig:
        return resolve("tiny", {"data.source": str(folder)} | (overrides or {}))

    return make
