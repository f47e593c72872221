"""`ddm-rt calibrate` on a bundle that takes prompts: what a calibration holds for, and what its images were."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ddm_rt.bundle import Bundle
from ddm_rt.evaluate.judge import Judge
from ddm_rt.sample.calibration.calibration import load_all
from ddm_rt.sample.pipeline import Pipeline

SETTINGS = ("--steps", 2, "--threads", 1)
TARGET = ("--target", "x=.5,y=.5")
NURSE = ("--prompt", "a nurse", "--negative-prompt", "blurry", "--guidance-scale", 4)


@pytest.fixture(scope="module")
def bundle(latent_bundles: Mapping[str, Bundle]) -> Bundle:
    """Tiny Stable Diffusion 1.5 with 4 codes in 2 top codes. Read-only."""
    return latent_bundles["sd15"]


def fill(folder: Path) -> Path:
    """Label an audit set: codes 0 and 1 give x, the others y."""
    codes = {image["file"]: image["code"] for image in images(folder)}
    rows = [("image", "group"), *((name, "x" if code < 2 else "y") for name, code in codes.items())]
    with (folder / "audit.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder / "audit.csv"


def images(folder: Path) -> list[dict]:
    return json.loads((folder / "manifest.json").read_bytes())["images"]


def calibrated(ddm_rt, bundle: Bundle, folder: Path, *more: object) -> tuple[Bundle, str]:
    """A copy of the bundle, calibrated by hand with the options `more`; and what the last command said."""
    line = ("calibrate", bundle.path, "--groups", "x,y", "-n", 32, "--images", folder / "audit", *SETTINGS, *more)
    done = ddm_rt(*line)
    assert done.code == 0, done.err
    done = ddm_rt("calibrate", bundle.path, "--audit", fill(folder / "audit"), *TARGET, "--out", folder / "bundle")
    assert done.code == 0, done.err
    return Bundle.load(folder / "bundle"), done.out


@pytest.fixture(scope="module")
def nurse(ddm_rt, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, str]:
    """Calibrated for one prompt. Read-only."""
    return calibrated(ddm_rt, bundle, tmp_path_factory.mktemp("nurse"), *NURSE)


def test_a_calibration_holds_for_its_prompt(ddm_rt, nurse: tuple[Bundle, str], tmp_path: Path) -> None:
    bundle, said = nurse
    assert "holds for: 'a nurse', against 'blurry'" in said
    record, calibration_id = load_all(bundle)["default"]
    assert (record.settings.prompt, record.settings.negative_prompt) == ("a nurse", "blurry")
    assert (record.settings.guidance_scale, record.settings.indicator_guidance_scale) == (4.0, 4.0)
    line = ("sample", bundle.path, "-n", 8, *TARGET, *SETTINGS)
    done = ddm_rt(*line, *NURSE, "--out", tmp_path / "images")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "images" / "manifest.json").read_bytes())["calibration_id"] == calibration_id
    assert sum(image["code"] < 2 for image in images(tmp_path / "images")) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--prompt", "a doctor", *NURSE[2:]), "prompt is a doctor (calibrated at a nurse)"),
        (NURSE[2:], "prompt is empty (calibrated at a nurse)"),
        ((*NURSE, "--prompt", "a doctor"), "prompt is ('a nurse', 'a doctor') (calibrated at a nurse)"),
        ((*NURSE[:2], *NURSE[4:]), "negative_prompt is not set (calibrated at blurry)"),
        (NURSE[:4], "guidance_scale is 7.5 (calibrated at 4.0)"),
        ((*NURSE, "--scope", "portraits", "--prompt", "a doctor"), "prompt is ('a nurse', 'a doctor')"),
    ],
)
def test_another_prompt_is_refused_unless_stale_is_allowed(
    ddm_rt, nurse: tuple[Bundle, str], tmp_path: Path, change: tuple[object, ...], said: str
) -> None:
    line = ("sample", nurse[0].path, "-n", 2, *TARGET, *SETTINGS, *change, "--out", tmp_path / "images")
    assert said in ddm_rt(*line).refusal()
    assert not (tmp_path / "images").exists()
    done = ddm_rt(*line, "--allow-stale")
    assert done.code == 0, done.err


def test_with_a_scope_it_holds_for_any_prompt_there(ddm_rt, bundle: Bundle, tmp_path: Path) -> None:
    text = ("--prompt", "a doctor", "--prompt", "a nurse", "--scope", "portraits")
    made, said = calibrated(ddm_rt, bundle, tmp_path, *text)
    assert "holds for: scope 'portraits', whatever its prompts" in said
    line = ("sample", made.path, "-n", 4, *TARGET, *SETTINGS, "--prompt", "a judge")
    done = ddm_rt(*line, "--scope", "portraits", "--out", tmp_path / "images")
    assert done.code == 0, done.err
    assert "scope is not set (calibrated at portraits)" in ddm_rt(*line, "--out", tmp_path / "other").refusal()


def test_no_code_has_the_images_of_one_prompt_alone(ddm_rt, bundle: Bundle, tmp_path: Path) -> None:
    """Prompts take turns and codes take turns: two prompts and four codes would go in step."""
    line = ("calibrate", bundle.path, "--groups", "x,y", "--prompt", "a doctor", "--prompt", "a nurse", *SETTINGS)
    assert ddm_rt(*line, "-n", 64, "--images", tmp_path / "first").code == 0
    seen = Counter((image["code"], image["prompt"]) for image in images(tmp_path / "first"))
    assert len(seen) == 8
    codes = Counter(image["code"] for image in images(tmp_path / "first"))
    assert set(codes.values()) == {8}, "32 images, evenly over the codes"
    audit = fill(tmp_path / "first")
    line = ("calibrate", bundle.path, "--audit", audit, *TARGET, "-n", 64, "--threads", 1)
    assert ddm_rt(*line, "--images", tmp_path / "second").code == 0
    manifest = json.loads((tmp_path / "second" / "manifest.json").read_bytes())
    assert manifest["request"]["prompt"] == ["a doctor", "a nurse"], "those of the first set"
    assert len({(image["code"], image["prompt"]) for image in manifest["images"]}) == 8
    done = ddm_rt(*line[:3], audit, "--audit", fill(tmp_path / "second"), *TARGET, "--out", tmp_path / "bundle")
    assert done.code == 0, done.err
    assert "holds for: 'a doctor', 'a nurse'\n" in done.out
    assert load_all(Bundle.load(tmp_path / "bundle"))["default"][0].settings.prompt == ("a doctor", "a nurse")


class Alternating:
    """A judge of nothing: every second image is x."""

    name, sha256, classes = "alternating", "0" * 64, ("x", "y")

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def predict(self, pictures: np.ndarray) -> SimpleNamespace:
        self.seen.append(pictures)
        return SimpleNamespace(labels=np.array(["x", "y"] * len(pictures))[: len(pictures)])


def test_a_judge_looks_at_images_of_the_prompt(
    ddm_rt, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Alternating()
    monkeypatch.setattr(Judge, "load", lambda source: judge)
    line = ("calibrate", bundle.path, "--judge", "none", "--groups", "x,y", "-n", 16, *SETTINGS, "--seed", 7)
    done = ddm_rt(*line, *NURSE, "--out", tmp_path / "bundle")
    assert done.code == 0, done.err
    assert "holds for: 'a nurse', against 'blurry'" in done.out
    record, _ = load_all(Bundle.load(tmp_path / "bundle"))["default"]
    assert (record.settings.prompt, record.settings.negative_prompt, record.audited) == ("a nurse", "blurry", 16)
    made = Pipeline.load(bundle, threads=1).generate(
        "a nurse", negative_prompt="blurry", n=8, seed=7, codes=[0, 1, 2, 3] * 2, guidance_scale=4, num_steps=2
    )
    np.testing.assert_array_equal(judge.seen[0], made.images)


def test_prompts_that_cannot_be_are_refused(ddm_rt, bundle: Bundle, tmp_path: Path) -> None:
    line = ("--groups", "x,y", "-n", 16, "--images", tmp_path / "audit", *SETTINGS)
    said = ddm_rt("calibrate", "digits", *line, "--prompt", "a nurse").refusal()
    assert "prompt is given; bundle 'digits' is prompt-free" in said
    said = ddm_rt("calibrate", bundle.path, *line, "--guidance-scale", "nan").refusal()
    assert "guidance_scale is nan; expected a finite number" in said
    assert not (tmp_path / "audit").exists()
    shutil.copytree(bundle.path, tmp_path / "bundle")
    for option in (("--prompt", "a nurse"), ("--negative-prompt", "blurry"), ("--guidance-scale", 2)):
        said = ddm_rt("calibrate", tmp_path / "bundle", "--audit", tmp_path / "audit.csv", *option).refusal()
        assert "its images were made with settings of their own" in said
