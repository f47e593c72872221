"""Students on their teacher's paths: states are the guided teacher's walk, targets its phases' ends, resuming exact."""

import copy
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from distillers import distiller_of

from ddm_rt.config import NULL_CODE
from ddm_rt.errors import BundleError
from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.schedule import Schedule, step_table
from ddm_rt.train.distill.paths import PathDistiller
from ddm_rt.train.distill.run import distill
from ddm_rt.train.run import Interrupted

PATHS = 70  # in two files
FEW = {
    "distill.adversarial": False,
    "distill.paths": PATHS,
    "train.steps": 9,
    "train.batch_size": PATHS,
    "train.checkpoint_every": 5,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `distiller` has its paths, in a folder by its `one_step_start`. Read-only."""
    return tmp_path_factory.mktemp("paths")


MANY_STEPS = pytest.param(False, marks=pytest.mark.slow(reason="other paths, the same tests"))


@pytest.fixture(scope="module", params=[True, MANY_STEPS], ids=["one step first", "many steps"])
def distiller(tiny_run: Path, cache: Path, request: pytest.FixtureRequest) -> PathDistiller:
    """On random latents, with its paths, which take seconds to walk. Read-only."""
    made = distiller_of(PathDistiller, tiny_run, FEW | {"distill.one_step_start": request.param})
    made.get_ready(cache / str(request.param), {})
    return made


def guided(made: PathDistiller, path: int, row: int, x: torch.Tensor) -> torch.Tensor:
    """The teacher's ε at a state of a path, written out: two branches and a scale of 1.5."""
    index, code, no_text = (made.paths[name].take(torch.tensor([path])) for name in ("index", "code", "no_text"))
    t, condition = made.walk.t[row : row + 1].float(), made.subject.condition
    with torch.no_grad(), made.subject.teacher() as model:
        null = model(x, t, condition(index, torch.full_like(code, NULL_CODE), no_text))
        coded = model(x, t, condition(index, code, no_text))
    found: torch.Tensor = (null + 1.5 * (coded - null))[0]
    return found


def test_a_path_is_the_guided_teachers_walk_from_noise(distiller: PathDistiller) -> None:
    states = distiller.paths["states"]
    found = states.take(torch.arange(PATHS))
    assert found.shape == (PATHS, len(distiller.walk.starts) + 1, *distiller.material.latents.shape[1:])
    assert abs(found[:, 0].std().item() - 1) < 0.02
    ts = [*distiller.walk.t.tolist(), -1]
    for path, phase in ((0, 0), (3, 1), (PATHS - 1, len(distiller.walk.starts) - 1)):
        x, bounds = found[path, phase], [*distiller.walk.starts.tolist(), len(distiller.walk.t)]
        stride = bounds[1] if phase == 0 and distiller.distill.one_step_start else 1
        for row in range(bounds[phase], bounds[phase + 1], stride):
            pair = (ts[row], ts[row + stride])
            bar, following = (distiller.alphas_cumprod[t] if t >= 0 else torch.ones(()) for t in pair)
            eps = guided(distiller, path, row, x[None])
            x0 = ((x - (1 - bar).sqrt() * eps) / bar.sqrt()).clamp(-1, 1)
            x = following.sqrt() * x0 + (1 - following).sqrt() * eps
        torch.testing.assert_close(found[path, phase + 1], x, rtol=1e-4, atol=1e-4)


def test_paths_of_two_files_begin_with_different_noise(distiller: PathDistiller) -> None:
    with torch.no_grad():
        first, again, later = (
            distiller.walked(rows)["states"][:, 0] for rows in (range(6), range(6), range(64, PATHS))
        )
    assert torch.equal(first, again)
    assert not torch.isin(later, first).any()


def test_paths_have_equal_shares_of_the_top_codes_and_some_lose_their_code(distiller: PathDistiller) -> None:
    code = distiller.paths["code"].take(torch.arange(PATHS))
    lost = code == NULL_CODE
    assert 0 < lost.sum() < 0.3 * PATHS  # expected: .13
    top = torch.tensor(distiller.material.classes.top_of)[code]
    expected = torch.arange(64) % (int(top.max()) + 1)
    assert torch.equal(top[:64][~lost[:64]], expected[~lost[:64]])


def test_a_jump_with_its_target_leads_to_the_phases_end(distiller: PathDistiller) -> None:
    batch = distiller.batch()
    assert {int(each) for each in batch.t} <= {750, 500, 250, 0}
    rows = distiller.walk.row_of[batch.t]
    assert distiller.walk.t[rows].tolist() == batch.t.tolist()
    x0 = distiller.wanted(batch, rows)
    keep, add = (distiller.walk.jump[rows, k].view(-1, 1, 1, 1) for k in (2, 3))
    torch.testing.assert_close(keep * batch.x_t + add * x0, batch.target)


def test_sampling_with_the_targets_is_the_walk(distiller: PathDistiller) -> None:
    """In the student's own step table, which is all that a bundle has."""
    settings = distiller.config.sampling
    schedule = Schedule.from_config(distiller.config.schedule)
    table = step_table(schedule, settings.sampler, settings.num_steps, clip=settings.clip)
    assert table.t.tolist() == distiller.walk.t[distiller.walk.starts].tolist()
    states = distiller.paths["states"].take(torch.arange(8))
    x = states[:, 0]
    for phase, row in enumerate(torch.from_numpy(table.rows())):
        x0 = distiller.walk.x0_of_jump(states[:, phase + 1], x, distiller.walk.starts[phase].expand(8))
        out = (x0 - row[0] * x) / row[1]
        x, _ = guided_step([out], torch.zeros(8, 0), row.expand(8, -1), x, x)
        torch.testing.assert_close(x, states[:, phase + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow(reason="trains three times; `test_consistency` has the same for a student without paths")
def test_an_interrupted_student_ends_in_the_same_bytes_and_leaves_no_paths(tiny_run: Path, tmp_path: Path) -> None:
    def stop_walking(done: int, total: int, said: dict[str, float]) -> None:
        raise KeyboardInterrupt

    def stop_learning(done: int, total: int, said: dict[str, float]) -> None:
        if done == 7:
            os.kill(os.getpid(), signal.SIGINT)

    distill(tiny_run, tmp_path / "whole", FEW)
    with pytest.raises(KeyboardInterrupt):
        distill(tiny_run, tmp_path / "run", FEW, progress={"paths": stop_walking})
    assert len(list((tmp_path / "run" / "cache").iterdir())) == 1
    with pytest.raises(Interrupted):
        distill(tiny_run, tmp_path / "run", FEW, progress={"train": stop_learning})
    distill(tiny_run, tmp_path / "run", FEW)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}
    assert "cache" not in names
    for name in ("weights.safetensors", "config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_damaged_file_of_paths_is_named(distiller: PathDistiller, cache: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(cache / str(distiller.distill.one_step_start) / "cache", tmp_path / "cache")
    path = sorted(folder.iterdir())[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"{path.name}: damaged .*; delete it and what it holds is made again"):
        copy.copy(distiller).get_ready(tmp_path, {})


@pytest.mark.slow(reason="seconds of training")
def test_the_loss_falls(tiny_run: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    fields = FEW | {"train.steps": 60, "train.batch_size": 32, "train.learning_rate": 1e-2}
    distill(
        tiny_run, tmp_path / "run", fields, progress={"train": lambda done, total, said: losses.append(said["loss"])}
    )
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@pytest.mark.slow(reason="the same walk with another model")
def test_a_checkpoints_student_may_learn_on_paths_too(adapted: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    fields = {"distill.paths": 6, "distill.lora.rank": 2, "train.steps": 3, "train.batch_size": 6}
    out = distill(
        adapted,
        tmp_path / "run",
        fields,
        progress={"train": lambda done, total, said: losses.append(said["loss"])},
    )
    assert torch.isfinite(torch.tensor(losses)).all()
    assert not (out / "cache").exists()
