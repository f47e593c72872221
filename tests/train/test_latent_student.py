"""A student of a checkpoint's run: factors of its own beside the merged teacher, exported and sampled in one branch."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made_once import made_once
from safetensors.torch import load_file

from ddm_rt.config import RunConfig, parse_json
from ddm_rt.errors import DdmError
from ddm_rt.export.run import export_run
from ddm_rt.files import write_json
from ddm_rt.model.assemble import assemble
from ddm_rt.model.latent import LatentDDM
from ddm_rt.runtime import Codes
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.train.distill.run import distill, student_config
from ddm_rt.train.run import train

Make = Callable[..., RunConfig]
FEW = {"train.steps": 30, "train.batch_size": 4, "train.accumulate": 1, "train.learning_rate": 1e-2}
FEW |= {"train.warmup_steps": 2, "distill.lora.rank": 4, "distill.lora.alpha": 8.0}


def config_of(run: Path) -> RunConfig:
    return parse_json(RunConfig, (run / "config.json").read_bytes(), run)


def assembled(run: Path) -> LatentDDM:
    codes = parse_json(Codes, (run / "codes.json").read_bytes(), run)
    model = assemble(run, config_of(run), codes)
    assert isinstance(model, LatentDDM)
    return model


@pytest.fixture(scope="session")
def teacher(adapted: Path) -> Path:
    """A LoRA run of a few steps on the tiny SD 1.5. Read-only."""
    return adapted


@pytest.fixture(scope="session")
def student(teacher: Path, shared_folder: Path) -> tuple[Path, list[float]]:
    """Its student after 30 steps, and the losses. Read-only."""

    def make(place: Path) -> None:
        losses: list[float] = []
        distill(teacher, place / "run", FEW, progress={"train": lambda done, total, said: losses.append(said["loss"])})
        write_json(place / "losses.json", losses)

    place = made_once(shared_folder / "student" / "sd15", make)
    return place / "run", json.loads((place / "losses.json").read_bytes())


def test_the_loss_falls(student: tuple[Path, list[float]]) -> None:
    _, losses = student
    assert len(losses) == 30
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])


def test_the_run_holds_the_teachers_factors_and_its_own_side_by_side(
    teacher: Path, student: tuple[Path, list[float]]
) -> None:
    theirs, ours = load_file(teacher / "weights.safetensors"), load_file(student[0] / "weights.safetensors")
    config = config_of(student[0])
    assert (config.lora.rank, config.lora.alpha / config.lora.rank) == (8 + 4, 32.0 / 8)
    assert config.sampling.num_steps == 4
    for name, tensor in theirs.items():
        if name.startswith("lora."):
            kept = ours[name][:8] if name.endswith(".A") else ours[name][:, :8]
            assert torch.equal(kept, tensor), name
        else:
            assert torch.equal(ours[name], tensor), name
    adapted = {name.split(".")[-2] for name in ours if name.startswith("lora.")}
    assert {"to_q", "to_k", "to_v", "0", "proj", "2", "time_emb_proj"} == adapted


def test_without_its_factors_the_student_is_the_teacher_and_with_them_what_was_trained(
    teacher: Path, student: tuple[Path, list[float]], tmp_path: Path
) -> None:
    distill(teacher, tmp_path / "run", FEW | {"train.steps": 1, "train.learning_rate": 1e-12})
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10.0, 700.0])
    code, context = torch.tensor([0, -1]), torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    outputs = []
    for run in (teacher, tmp_path / "run", student[0]):
        model = assembled(run)
        with torch.no_grad():
            outputs.append(model(x, t, model.condition(context, code, torch.ones(2))))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs[2], outputs[0], rtol=1e-2)


@pytest.mark.slow(reason="another export")
def test_it_exports_and_samples_in_four_steps_and_one_branch(
    student: tuple[Path, list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddm_rt.engine.cpu.ort import OrtEngine

    bundle = export_run(student[0], tmp_path / "bundle")
    assert bundle.config.sampling.num_steps == 4
    pipeline = Pipeline.load(bundle, backend="onnxruntime", threads=1)
    rows: list[int] = []
    denoise = OrtEngine.denoiser
    assert pipeline.buckets
    monkeypatch.setattr(OrtEngine, "denoiser", lambda self, x, *rest: (rows.append(len(x)), denoise(self, x, *rest))[1])
    made = pipeline.generate("a bar", n=pipeline.buckets[-1], seed=1)
    assert rows == [len(made.images)] * 4
    assert made.images.shape[1:] == (64, 64, 3)
    with pytest.raises(DdmError, match="negative_prompt is given; bundle 'checkpoint' is a student"):
        pipeline.generate("a bar", negative_prompt="a circle")


@pytest.mark.slow(reason="trains a teacher of its own")
def test_text_and_code_may_have_scales_of_their_own_and_the_teacher_none(adapting: Make, tmp_path: Path) -> None:
    run = train(adapting("sdxl", {"lora.rank": 0, "train.steps": 1}), tmp_path / "teacher")
    fields = FEW | {"train.steps": 2, "distill.guidance_scale": 5.0, "distill.indicator_guidance_scale": 2.0}
    out = distill(run, tmp_path / "run", fields)
    config = config_of(out)
    assert (config.lora.rank, config.lora.alpha) == (4, 8.0)
    assembled(out)


def test_factors_are_all_that_a_checkpoints_student_has(teacher: Path) -> None:
    for field, value in (("rank", 0), ("text_encoder", True)):
        with pytest.raises(DdmError, match=r"distill\.lora: expected a rank of at least 1 and no text_encoder"):
            student_config(teacher, {f"distill.lora.{field}": value})


def test_a_target_that_matches_nothing_is_named(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(DdmError, match="'nothing' matches no linear layer"):
        distill(teacher, tmp_path / "run", FEW | {"distill.lora.targets": ("nothing",)})
    assert not (tmp_path / "run").exists()
