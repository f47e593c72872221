"""Training on a checkpoint: it learns, resumes exactly, and leaves a run that is assembled and sampled."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import write_folder
from safetensors.torch import load_file
from tolerances import CHECKPOINTING_REL, HALF_LOSS_REL

from ddm_rt.config import NULL_CODE, RunConfig, parse_json
from ddm_rt.export.run import export_run
from ddm_rt.model.assemble import assemble
from ddm_rt.model.latent import LatentDDM
from ddm_rt.runtime import Codes
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.train import disk_cache
from ddm_rt.train.distributed import CPU
from ddm_rt.train.loop import Trainer
from ddm_rt.train.run import Interrupted, prepare, train

Make = Callable[..., RunConfig]
LONG = {"train.steps": 30, "train.checkpoint_every": 10}


class Killed(Exception):
    """Stands for the process ending at this place."""


def trainer(config: RunConfig, out: Path) -> Trainer:
    out.mkdir()
    return Trainer(config, prepare(config, out, CPU, {}))


def assembled(run: Path) -> LatentDDM:
    config = parse_json(RunConfig, (run / "config.json").read_bytes(), run)
    model = assemble(run, config, parse_json(Codes, (run / "codes.json").read_bytes(), run))
    assert isinstance(model, LatentDDM)
    return model


@pytest.fixture(scope="module")
def reference(adapting: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A LoRA run of 30 steps on the tiny SD 1.5, uninterrupted, and its losses. Read-only."""
    losses: list[float] = []
    run = tmp_path_factory.mktemp("latent") / "run"
    train(adapting("sd15", LONG), run, progress={"train": lambda done, total, said: losses.append(said["loss"])})
    return run, losses


def test_the_loss_falls(reference: tuple[Path, list[float]]) -> None:
    _, losses = reference
    assert len(losses) == 30
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])


def test_a_finished_run_holds_what_changed_and_nothing_of_the_cache(reference: tuple[Path, list[float]]) -> None:
    run, _ = reference
    assert sorted(path.name for path in run.iterdir()) == [
        "assignment.json",
        "checkpoints",
        "codes.json",
        "config.json",
        "images.sha256",
        "provenance.json",
        "weights.safetensors",
    ]
    weights = load_file(run / "weights.safetensors")
    assert {name.split(".")[0] for name in weights} == {"conditioner", "lora", "unet"}
    assert all(".processor.to_" in name for name in weights if name.startswith("unet."))
    adapted = {name.split(".")[-2] for name in weights if name.startswith("lora.")}
    assert adapted == {"to_q", "to_v"}
    for name, down in weights.items():
        if name.endswith(".A") and name.startswith("lora."):
            assert (down.shape[0], weights[f"{name[:-2]}.B"].shape[1]) == (8, 8)
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.slow(reason="trains twice; `test_run` has the same for pixels")
def test_an_interrupted_run_ends_in_the_same_bytes(
    reference: tuple[Path, list[float]], adapting: Make, tmp_path: Path
) -> None:
    run, straight = reference
    losses: list[float] = []

    def interrupt(done: int, total: int, said: dict[str, float]) -> None:
        losses.append(said["loss"])
        if done == 17:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        train(adapting("sd15", LONG), tmp_path / "run", progress={"train": interrupt})
    assert caught.value.step == len(losses)
    torch.randn(3)  # someone else's use of the global generator
    train(adapting("sd15", LONG), tmp_path / "run", progress={"train": interrupt})
    assert losses == straight
    for name in ("weights.safetensors", "codes.json", "assignment.json"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes(), name


@pytest.mark.slow(reason="another export")
def test_the_exported_bundle_samples(reference: tuple[Path, list[float]], tmp_path: Path) -> None:
    bundle = export_run(reference[0], tmp_path / "bundle")
    made = Pipeline.load(bundle, backend="onnxruntime", threads=1).generate("a bar", n=4, seed=1, num_steps=2)
    assert made.images.shape == (4, 64, 64, 3)
    assert len({image["top_code"] for image in made.manifest["images"]}) == 2
    assert len({image.tobytes() for image in made.images}) == 4


def test_training_starts_at_the_base_and_ends_in_what_is_assembled(
    adapting: Make, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    from ddm_rt.model.checkpoint.folder import load_base, read_checkpoint

    config = adapting("sd15", {"lora.text_encoder": True})
    learner = trainer(config, tmp_path / "at-work")
    base = LatentDDM(config.model)
    load_base(base, read_checkpoint(checkpoints["sd15"]))
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10.0, 700.0])
    rows, code = torch.tensor([0, 2]), torch.tensor([0, NULL_CODE])

    def cond() -> dict[str, torch.Tensor]:
        return learner.subject.condition_on(rows, code)

    with torch.no_grad():
        context = base.encode_text(*learner_ids(learner, rows))["context"]
        torch.testing.assert_close(learner.model(x, t, cond()), base(x, t, {"text_tokens": context}))

    run = train(config, tmp_path / "run")
    for _ in range(config.train.steps):
        learner.advance()
    model = assembled(run)
    with torch.no_grad(), learner.averaged():
        wanted = learner.model(x, t, cond())
        text = model.encode_text(*learner_ids(learner, rows))
        found = model(x, t, model.condition(text["context"], code, torch.ones(2)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(text["context"], context, rtol=1e-3)


def learner_ids(learner: Trainer, rows: torch.Tensor) -> list[torch.Tensor]:
    from ddm_rt.model.checkpoint.folder import read_checkpoint
    from ddm_rt.train.checkpoint.prepare import token_ids

    assert learner.config.base is not None
    checkpoint = read_checkpoint(learner.config.base.path)
    return [ids[rows] for ids in token_ids(checkpoint, learner.subject.prompts)]


def test_without_a_rank_the_whole_unet_is_trained(adapting: Make, tmp_path: Path) -> None:
    run = train(adapting("sd21", {"lora.rank": 0, "train.indicator": "none", "train.steps": 2}), tmp_path / "run")
    names = set(load_file(run / "weights.safetensors"))
    assert names == {f"unet.{name}" for name in dict(assembled(run).unet.named_parameters())}


def test_sdxl_is_conditioned_on_pooled_text_and_the_images_own_sizes(adapting: Make, tmp_path: Path) -> None:
    learner = trainer(adapting("sdxl"), tmp_path / "run")
    index, code = torch.tensor([0, 1, 2]), torch.tensor([0, 1, NULL_CODE])
    cond = learner.subject.condition(index, code, torch.tensor([False, True, False]))
    assert cond["sizes"].tolist() == [[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]] * 3
    assert (cond["pooled_text"][1] == 0).all(), "the null text of a checkpoint that zeroes empty prompts"
    assert (cond["text_tokens"][1] == 0).all()
    assert (cond["pooled_text"][[0, 2]] != 0).any(dim=1).all()
    losses = [learner.advance() for _ in range(2)]
    assert np.isfinite(losses).all()


def test_sdxl_trains_both_text_encoders_to_a_run_that_is_assembled(adapting: Make, tmp_path: Path) -> None:
    run = train(adapting("sdxl", {"lora.text_encoder": True, "train.steps": 3}), tmp_path / "run")
    weights = load_file(run / "weights.safetensors")
    for encoder in (0, 1):
        found = {name: value for name, value in weights.items() if name.startswith(f"lora.text_encoders.{encoder}.")}
        assert {name.split(".")[-2] for name in found} == {"q_proj", "v_proj"}
        assert any(value.any() for name, value in found.items() if name.endswith(".B"))
    assembled(run)


@pytest.mark.slow(reason="trains four times")
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_accumulation_and_checkpointing_learn_as_fp32(
    precision: str, dtype: torch.dtype, adapting: Make, tmp_path: Path
) -> None:
    more = {"train.accumulate": 2, "train.batch_size": 2, "train.gradient_checkpointing": True}
    plain = trainer(adapting("sd15"), tmp_path / "plain")
    half = trainer(adapting("sd15", more | {"train.precision": precision}), tmp_path / "half")
    assert {p.dtype for p in half.trained} == {torch.float32}
    frozen = {p.dtype for p in half.model.unet.parameters() if not p.requires_grad}
    assert frozen == {dtype}
    losses = [[learner.advance() for _ in range(4)] for learner in (plain, half)]
    assert losses[1] == pytest.approx(losses[0], rel=HALF_LOSS_REL)


@pytest.mark.slow(reason="trains twice; `test_a_step_in_two_parts_is_the_step` is quick")
def test_gradient_checkpointing_and_accumulation_change_nothing_but_rounding(adapting: Make, tmp_path: Path) -> None:
    more: dict[str, Any] = {"train.accumulate": 2, "train.batch_size": 2, "train.gradient_checkpointing": True}
    learners = [trainer(adapting("sd15", some), tmp_path / str(i)) for i, some in enumerate(({}, more))]
    losses = [[learner.advance() for _ in range(4)] for learner in learners]
    assert losses[1] == pytest.approx(losses[0], rel=CHECKPOINTING_REL)


@pytest.mark.slow(reason="trains twice; test_portions.py shows the files")
def test_what_was_encoded_before_a_kill_is_not_encoded_again(
    adapting: Make, adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded_images: list[int] = []
    encode = LatentDDM.encode

    def counted(self: LatentDDM, images: torch.Tensor) -> torch.Tensor:
        if sum(encoded_images) >= 16 and not finish:
            raise Killed
        encoded_images.append(len(images))
        return encode(self, images)

    finish = False
    monkeypatch.setattr(disk_cache, "PORTION", 8)
    monkeypatch.setattr(LatentDDM, "encode", counted)
    with pytest.raises(Killed):
        train(adapting("sd15"), tmp_path / "run")
    finish = True
    train(adapting("sd15"), tmp_path / "run")
    assert sum(encoded_images) == 24
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == (adapted / "weights.safetensors").read_bytes(), (
        "portions are no part of what determines the weights"
    )


@pytest.mark.slow(reason="a training run of its own; `test_probe` has the same for pixels")
def test_a_probe_on_a_few_labels_defines_the_codes(adapting: Make, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    few.write_text("image,label\n" + "".join(f"{i:03d}.png,{'down' if i % 4 == 3 else 'across'}\n" for i in range(12)))
    config = adapting("sd15", {"train.indicator": "probe", "codes.labels": str(few), "train.steps": 1})
    run = train(config, tmp_path / "run")
    codes = parse_json(Codes, (run / "codes.json").read_bytes(), run)
    assert codes.origin == "probe"
    assert codes.rule["classes"] == ["across", "down"]
    assert assembled(run).conditioner is not None


def test_labels_mode_trains_the_papers_head_and_no_indicator_attention(adapting: Make, tmp_path: Path) -> None:
    labelled = write_folder(tmp_path / "labelled", 12, 64)
    drawings = {"data.source": str(labelled), "data.prompt": "a drawing"}
    run = train(adapting("sd15", {**drawings, "train.indicator": "labels", "train.steps": 1}), tmp_path / "run")
    assert {name.split(".")[0] for name in load_file(run / "weights.safetensors")} == {"lora"}
    assert assembled(run).conditioner is None
