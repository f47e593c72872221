"""Consistency distillation: what the student is drawn to, exact resuming, a conditioner that stays the teacher's."""

import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from distillers import distiller_of
from safetensors.torch import load_file

from ddm_rt.config import NULL_CODE, RunConfig
from ddm_rt.train.distill.consistency import GRID, Distiller
from ddm_rt.train.distill.run import distill
from ddm_rt.train.loop import Batch
from ddm_rt.train.run import Interrupted, train

Make = Callable[..., RunConfig]
FEW = {"distill.paths": 0, "train.steps": 12, "train.checkpoint_every": 5}


@pytest.fixture(scope="module")
def student(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its student, uninterrupted. Read-only."""
    return distill(tiny_run, tmp_path_factory.mktemp("student") / "run", FEW)


@pytest.fixture
def distiller(tiny_run: Path) -> Callable[..., Distiller]:
    """distiller({...}) on random latents, with a teacher's model and dotted fields of the student's configuration."""

    def make(fields: dict[str, object] | None = None) -> Distiller:
        return distiller_of(Distiller, tiny_run, {"distill.adversarial": False} | (fields or {}))

    return make


def batch_at(made: Distiller, rows: torch.Tensor, code: torch.Tensor) -> Batch:
    """Noise at rows of the walk, of images with text."""
    count = len(rows)
    x_t = torch.randn(count, *made.material.latents.shape[1:], generator=torch.Generator().manual_seed(1))
    return Batch(torch.arange(count), x_t, x_t, made.walk.t[rows], code, code, torch.zeros(count, dtype=torch.bool))


@pytest.mark.parametrize(("phases", "starts"), [(4, [750, 500, 250, 0]), (2, [999, 499]), (1, [999])])
def test_phases_begin_where_the_sampler_jumps_from(
    phases: int, starts: list[int], distiller: Callable[..., Distiller]
) -> None:
    walk = distiller({"distill.phases": phases}).walk
    t = walk.t.tolist()
    assert walk.t[walk.starts].tolist() == starts
    assert t[0] == starts[0]
    assert t[-1] == (0 if phases == 4 else 1000 // GRID - 1)
    assert {a - b for a, b in pairwise(t)} <= {1000 // GRID}
    # The row before each start, and the last one: from there the teacher's step is the jump.
    lasts = [t[i + 1] if i + 1 < len(t) else -1 for i in torch.nonzero(walk.last).flatten().tolist()]
    assert lasts == [*starts[1:], -1]


def test_at_a_phases_last_row_the_target_is_the_guided_teachers_own_x0(distiller: Callable[..., Distiller]) -> None:
    made = distiller()
    rows = torch.nonzero(made.walk.last).flatten()
    batch = batch_at(made, rows, torch.arange(len(rows)) % made.material.classes.number)
    with torch.no_grad():
        found = made.wanted(batch, rows)
        with made.subject.teacher() as model:
            null, coded = (
                model(batch.x_t, batch.t.float(), made.subject.condition(batch.image, code, batch.no_text))
                for code in (torch.full_like(batch.code, NULL_CODE), batch.code)
            )
    a, b = (made.walk.step[rows, k].view(-1, 1, 1, 1) for k in (0, 1))  # this teacher predicts ε
    torch.testing.assert_close(found, (a * batch.x_t + b * (null + 1.5 * (coded - null))).clamp(-1, 1))


def test_an_image_beyond_the_clip_is_as_good_as_one_at_it_but_a_state_is_not(
    distiller: Callable[..., Distiller],
) -> None:
    made = distiller()
    rows = torch.tensor([0, len(made.walk.t) - 1])  # a jump into the path, and the one to the image
    shape = (2, *made.material.latents.shape[1:])
    end = torch.full(shape, 1.0)
    for x0, same in ((1.5, [False, True]), (0.5, [False, False]), (-1.5, [False, False])):
        found = made.within(torch.full(shape, x0), end, rows) == end
        assert [bool(each.all()) for each in found] == same, x0
    assert bool((made.within(torch.full(shape, -1.5), -end, rows)[1] == -end[1]).all())


def test_a_student_that_is_its_own_end_learns_nothing(distiller: Callable[..., Distiller]) -> None:
    """Where the teacher's x0 is the same all along the path, so is every target."""
    made = distiller({"distill.indicator_guidance_scale": 1.0, "schedule.prediction_type": "sample"})
    constant = torch.rand(made.material.latents.shape[1:], generator=torch.Generator().manual_seed(2)) - 0.5

    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor, *_: object) -> torch.Tensor:
            return constant.expand(len(x), -1, -1, -1)

    made.subject.teacher = lambda: nullcontext(Constant())
    made.model.forward = Constant().forward
    rows = torch.arange(len(made.walk.t))
    with torch.no_grad():
        found = made.wanted(batch_at(made, rows, torch.zeros_like(rows)), rows)
    # (x_end - c·x) / d loses what d is small by.
    torch.testing.assert_close(found, constant.expand_as(found), rtol=0, atol=1e-3)


def test_an_interrupted_student_ends_in_the_same_bytes(tiny_run: Path, student: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, said: dict[str, float]) -> None:
        if done == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        distill(tiny_run, tmp_path / "run", FEW, progress={"train": interrupt})
    distill(tiny_run, tmp_path / "run", FEW)
    for name in ("weights.safetensors", "codes.json", "assignment.json", "config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (student / name).read_bytes(), name


def test_the_conditioner_stays_the_teachers_and_the_unet_moves(tiny_run: Path, student: Path) -> None:
    before, after = (load_file(run / "weights.safetensors") for run in (tiny_run, student))
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if name.startswith("conditioner."):
            assert torch.equal(tensor, before[name]), name
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_a_sheet_of_a_student_is_drawn(tiny_run: Path, tmp_path: Path) -> None:
    distill(tiny_run, tmp_path / "run", FEW | {"train.steps": 2}, grid_every=2)
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["step_00000002.png"]


def test_a_run_without_codes_has_a_student_too(folder: Path, tmp_path: Path) -> None:
    from ddm_rt.presets import resolve

    config = resolve("tiny", {"data.source": str(folder), "train.indicator": "none", "train.steps": 3})
    losses: list[float] = []
    train(config, tmp_path / "teacher")
    distill(
        tmp_path / "teacher",
        tmp_path / "run",
        FEW | {"train.steps": 3},
        progress={"train": lambda done, total, said: losses.append(said["loss"])},
    )
    assert np.isfinite(losses).all()
