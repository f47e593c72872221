"""Adversarial students: what the discriminator sees, who learns when, resuming exact. The teacher is a tiny run."""

import os
import signal
from pathlib import Path

import pytest
import torch
from distillers import distiller_of
from safetensors.torch import load_file
from tolerances import UNIT_ABS

from ddm_rt.config import SamplerName
from ddm_rt.errors import DdmError
from ddm_rt.model.assemble import WEIGHTS
from ddm_rt.schedule import default_table
from ddm_rt.train.distill import adversarial
from ddm_rt.train.distill.adversarial import AdversarialDistiller
from ddm_rt.train.distill.run import distill, student_config
from ddm_rt.train.run import Interrupted

FEW = {"distill.paths": 40, "distill.phases": 2, "train.steps": 8, "train.batch_size": 8, "train.checkpoint_every": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paths")


@pytest.fixture
def distiller(tiny_run: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> AdversarialDistiller:
    """With its paths, which are walked once."""
    monkeypatch.setattr(adversarial, "_HEADS_FIRST", 2)
    made = distiller_of(AdversarialDistiller, tiny_run, FEW)
    made.get_ready(place, {})
    return made


def test_half_of_a_minibatch_begins_at_noise_and_half_at_another_image_of_the_code(
    distiller: AdversarialDistiller,
) -> None:
    batch = distiller.batch()
    starts = default_table(distiller.config.schedule, distiller.config.sampling).t.tolist()
    assert distiller.config.sampling.sampler is SamplerName.LCM
    assert batch.t.tolist() == [starts[0], starts[0], starts[1], starts[1]] * 2
    assert batch.code[0::2].tolist() == batch.code[1::2].tolist(), "a head compares neighbours"
    assert batch.target.abs().max() <= 1
    ends = distiller.clipped(distiller.paths["states"].take(torch.arange(40))[:, -1])
    codes = distiller.paths["code"].take(torch.arange(40))
    bar = distiller.alphas_cumprod[int(starts[1])]
    noised = batch.t == starts[1]
    for image, x_t, code in zip(batch.target[noised], batch.x_t[noised], batch.code[noised], strict=True):
        assert any(torch.equal(image, end) for end in ends[codes == code])
        noise = (x_t - bar.sqrt() * ends[codes == code]) / (1 - bar).sqrt()
        likely = noise.square().mean((1, 2, 3)).min()  # of the image that it was
        assert abs(likely - 1) < 0.5


def test_each_start_has_its_turn_where_there_are_more_than_pairs(distiller: AdversarialDistiller) -> None:
    distiller._starts = torch.arange(5)
    seen = set()
    for step in range(5):
        distiller.step = step
        seen |= set(distiller.batch().t.tolist())
    assert seen == set(range(5))


def test_a_minibatch_is_a_function_of_seed_and_step(distiller: AdversarialDistiller) -> None:
    batch = distiller.batch()
    again = distiller.batch()
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True)), "a function of seed and step"


def test_the_discriminator_learns_first_and_the_student_after_it(distiller: AdversarialDistiller) -> None:
    def state() -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(
            torch.cat([p.detach().flatten().clone() for p in part])
            for part in (distiller.parameters, distiller.discriminator.parameters())
        )

    batch = distiller.batch()
    (of_real, of_made), levels = distiller._noise(batch.size)

    @torch.no_grad()
    def told_apart() -> float:
        made, real = distiller.clipped(distiller._predicted(batch)), batch.target
        more = distiller._scores(batch, real, of_real, levels) - distiller._scores(batch, made, of_made, levels)
        return more.mean().item()

    student, heads = state()
    before = told_apart()
    for _ in range(2):
        distiller.advance()
    assert told_apart() > before, "it tells the teacher's images from the teacher's first guesses"
    assert torch.equal(state()[0], student)
    assert not torch.equal(state()[1], heads)
    distiller.advance()
    assert not torch.equal(state()[0], student)
    assert all(parameter.requires_grad for parameter in distiller.discriminator.parameters())


def test_a_head_sees_how_far_an_image_is_from_its_neighbour() -> None:
    torch.manual_seed(0)
    head, of = adversarial.Head(5, 3), torch.zeros(4, dtype=torch.int64)
    feature = torch.randn(4, 5, 8, 8)
    alike, swapped = feature[[0, 0, 2, 3]], feature[[1, 0, 3, 2]]
    found = head(feature, of)
    assert head(alike, of)[2:].tolist() == pytest.approx(found[2:].tolist(), abs=UNIT_ABS), "pairs don't meet"
    assert head(alike, of)[0].item() != pytest.approx(found[0].item(), abs=UNIT_ABS), "another neighbour"
    assert head(swapped, of).tolist() == pytest.approx(found[[1, 0, 3, 2]].tolist(), abs=UNIT_ABS)


def test_an_interrupted_student_ends_in_the_same_bytes(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adversarial, "_HEADS_FIRST", 2)

    def stop(done: int, total: int, said: dict[str, float]) -> None:
        if done == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        distill(tiny_run, tmp_path / "parts", FEW, progress={"train": stop})
    distill(tiny_run, tmp_path / "parts", FEW)
    distill(tiny_run, tmp_path / "whole", FEW)
    parts, whole = (load_file(tmp_path / name / WEIGHTS) for name in ("parts", "whole"))
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert not any(name.startswith("heads") for name in whole), "the discriminator is nobody's but training's"


def test_what_does_not_go_together_is_refused(tiny_run: Path, adapted: Path, tmp_path: Path) -> None:
    with pytest.raises(DdmError, match=r"distill\.adversarial needs a run on pixels"):
        student_config(adapted, {"distill.adversarial": True, "distill.paths": 8})
    with pytest.raises(DdmError, match=r"distill\.paths of at least 1"):
        student_config(tiny_run, {"distill.adversarial": True, "distill.paths": 0})
    with pytest.raises(DdmError, match=r"train\.precision is fp16"):
        distill(tiny_run, tmp_path / "run", FEW | {"train.precision": "fp16"})
    with pytest.raises(DdmError, match=r"train\.accumulate is 7; expected a multiple of 2: a process has whole pairs"):
        distill(tiny_run, tmp_path / "run", FEW | {"train.batch_size": 7})
    assert not (tmp_path / "run").exists(), "the corrected command may go there"
    with pytest.raises(DdmError, match=r"distill\.adversarial is 'no'; expected true or false"):
        student_config(tiny_run, {"distill.adversarial": "no"})
    config = student_config(tiny_run, {"train.steps": 60})
    assert config.train.steps // 2 < adversarial._HEADS_FIRST, "a short training trains the student, too"
