"""A student of a checkpoint's run: factors of its own beside the merged teacher, exported and sampled in one branch."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddm_rt.bundle import Codes
from ddm_rt.config import RunConfig, parse_json
from ddm_rt.errors import DdmError
from ddm_rt.export.onnx import export_run
from ddm_rt.model.assemble import assemble
from ddm_rt.model.latent import LatentDDM
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.train.distill import distill, student_config
from ddm_rt.train.run import train

Make = Callable[..., RunConfig]
FEW = {"train.steps": 50, "train.batch_size": 4, "train.accumulate": 1, "train.learning_rate": 1e-2}
FEW |= {"train.warmup_steps": 2, "distill.lora.rank": 4, "distill.lora.alpha": 8.0}


def config_of(run: Path) -> RunConfig:
    return parse_json(RunConfig, (run / "config.json").read_bytes(), run)


def assembled(run: Path) -> LatentDDM:
    codes = parse_json(Codes, (run / "codes.json").read_bytes(), run)
    model = assemble(run, config_of(run), codes)
    assert isinstance(model, LatentDDM)
    return model


@pytest.fixture(scope="module")
def teacher(adapting: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run of a few steps on the tiny SD 1.5. Read-only."""
    return train(adapting("sd15"), tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """Its student after 50 steps, and the losses. Read-only."""
    losses: list[float] = []
    out = tmp_path_factory.mktemp("student") / "run"
    distill(teacher, out, FEW, progress={"train": lambda done, total, said: losses.append(said["loss"])})
    return out, losses


def test_the_loss_falls(student: tuple[Path, list[float]]) -> None:
    _, losses = student
    assert len(losses) == 50
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])
