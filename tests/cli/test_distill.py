"""`ddm-rt distill` as a user meets it: a student is exported and sampled like any run, in two steps and one branch."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_graphs import trace_knowing

from ddm_rt.bundle import Bundle
from ddm_rt.config import RunConfig, parse_json
from ddm_rt.engine.cpu.ort import OrtEngine
from ddm_rt.export import graph

Run = Callable[..., Any]
FEW = ("--steps", 10, "--paths", 8)


@pytest.fixture(scope="module")
def student(ddm_rt: Run, trained: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """What `ddm-rt distill` left and said. Read-only."""
    out = tmp_path_factory.mktemp("students") / "run"
    said = ddm_rt("distill", trained[0], *FEW, "--log-steps", "--out", out)
    assert said.code == 0, said.err
    return out, said


def test_it_says_where_the_student_is_and_how_far_it_got(student: tuple[Path, Any]) -> None:
    out, said = student
    lines = said.out.splitlines()
    assert lines[0].startswith("paths 8 of 8")
    assert lines[-2].startswith("step 10 of 10 loss ")
    assert lines[-1] == f"run: {out}"


def test_codes_are_the_teachers_and_the_configuration_says_what_was_folded_in(
    student: tuple[Path, Any], trained: tuple[Path, Any]
) -> None:
    for name in ("codes.json", "assignment.json"):
        assert (student[0] / name).read_bytes() == (trained[0] / name).read_bytes()
    config = parse_json(RunConfig, (student[0] / "config.json").read_bytes(), "config.json")
    assert config.distill is not None
    assert (config.distill.indicator_guidance_scale, config.distill.phases, config.distill.paths) == (1.5, 2, 8)
    sampling = config.sampling
    assert (sampling.sampler, sampling.num_steps) == ("lcm", 2)
    assert (sampling.guidance_scale, sampling.indicator_guidance_scale) == (1.0, 1.0)


def test_the_same_command_changes_nothing(ddm_rt: Run, student: tuple[Path, Any], trained: tuple[Path, Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in student[0].rglob("*")}
    assert ddm_rt("distill", trained[0], *FEW, "--out", student[0]).code == 0
    assert {path: path.stat().st_mtime_ns for path in student[0].rglob("*")} == before


def test_its_bundle_samples_in_one_branch(
    ddm_rt: Run, student: tuple[Path, Any], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's graphs do here: how often they run is the configuration's, and weights play no part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", trace_knowing(bundle))
        patch.setattr(graph, "difference", lambda *args: 0.0)
        said = ddm_rt("export", student[0], "--out", tmp_path / "bundle")
    assert said.code == 0, said.err
    rows: list[int] = []
    denoise = OrtEngine.denoiser

    def counted(self: OrtEngine, x: Any, *rest: Any) -> Any:
        rows.append(len(x))
        return denoise(self, x, *rest)

    monkeypatch.setattr(OrtEngine, "denoiser", counted)
    from ddm_rt.sample.pipeline import Pipeline

    pipeline = Pipeline.load(Bundle.load(tmp_path / "bundle"), backend="onnxruntime", threads=1)
    assert pipeline.buckets
    rows.clear()
    made = pipeline.generate(n=pipeline.buckets[-1], seed=3)
    assert rows == [len(made.images)] * 2
    top = [image["top_code"] for image in made.manifest["images"]]
    assert np.ptp(np.bincount(top)) <= 1


def test_a_student_is_no_teacher(ddm_rt: Run, student: tuple[Path, Any], tmp_path: Path) -> None:
    said = ddm_rt("distill", student[0], "--out", tmp_path / "run")
    assert "is a student itself; distil the run that it was made from" in said.refusal()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (".", "config.json: cannot be read (No such file or directory); a finished run has it"),
        ("weights.safetensors", "weights.safetensors: cannot be read"),
        ("codes.json", "codes.json: cannot be read"),
    ],
)
def test_an_unfinished_teacher_is_named(
    missing: str, message: str, ddm_rt: Run, trained: tuple[Path, Any], tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    if missing != ".":
        shutil.copytree(trained[0], teacher)
        (teacher / missing).unlink()
    assert message in ddm_rt("distill", teacher, "--out", tmp_path / "run").refusal()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-steps", 3), "distill.phases is 3; expected a divisor of 40"),
        (("--set", "train.pace=3"), "configuration field 'train.pace' is unknown"),
        (("--steps", 0), "field train.steps"),
        (("--lora-rank", 4), "distill.lora (--lora-rank and others) needs a run on a checkpoint"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    options: tuple[Any, ...], message: str, ddm_rt: Run, trained: tuple[Path, Any], tmp_path: Path
) -> None:
    assert message in ddm_rt("distill", trained[0], *options, "--out", tmp_path / "run").refusal()
    assert not (tmp_path / "run").exists()


def test_another_teacher_needs_another_folder(
    ddm_rt: Run, student: tuple[Path, Any], trained: tuple[Path, Any]
) -> None:
    said = ddm_rt("distill", trained[0], *FEW, "--seed", 1, "--out", student[0])
    assert "field train.seed differs from this command; choose another --out" in said.refusal()
    said = ddm_rt("train", "--preset", "tiny", "--out", student[0])
    assert "differs from this command" in said.refusal()
