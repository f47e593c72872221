"""A run survives being stopped at any moment, and bad input leaves nothing behind."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import write_folder
from safetensors import safe_open
from safetensors.torch import load_file

from ddm_rt.config import RunConfig, parse_json
from ddm_rt.errors import DdmError
from ddm_rt.runtime import Codes
from ddm_rt.train import run as run_module
from ddm_rt.train.codes import classes as classes_module
from ddm_rt.train.loop import Trainer
from ddm_rt.train.run import Interrupted, train

SHORT = {"train.steps": 8, "train.checkpoint_every": 3, "features.steps": 4}
Make = Callable[..., RunConfig]


class Killed(Exception):
    """Stands for the process ending at this place."""


def weights(run: Path) -> bytes:
    return (run / "weights.safetensors").read_bytes()


def drafts(run: Path) -> list[Path]:
    """Temporary files that someone left."""
    return [path for path in run.rglob(".*") if path.is_file()]


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short run, uninterrupted."""
    from ddm_rt.presets import resolve

    config = resolve("tiny", {"data.source": str(folder)} | SHORT)
    return train(config, tmp_path_factory.mktemp("reference") / "run")


def test_a_finished_run_holds_what_the_export_needs(reference: Path, folder: Path) -> None:
    assert sorted(path.name for path in reference.iterdir()) == [
        "assignment.json",
        "checkpoints",
        "codes.json",
        "config.json",
        "provenance.json",
        "weights.safetensors",
    ]
    config = parse_json(RunConfig, (reference / "config.json").read_bytes(), "config.json")
    assert config.data.source == str(folder)
    codes = parse_json(Codes, (reference / "codes.json").read_bytes(), "codes.json")
    assert (codes.num_codes, codes.num_top_codes) == (4, 2)
    assert sum(leaf.size for leaf in codes.leaves) == 40
    assert all(torch.isfinite(tensor).all() for tensor in load_file(reference / "weights.safetensors").values())
    assert drafts(reference) == []


def test_the_same_command_on_a_finished_run_changes_nothing(reference: Path, tiny: Make) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()}
    assert train(tiny(SHORT), reference) == reference
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("write", range(9))
def test_killed_before_any_write_it_resumes_to_the_same_bytes(
    write: int, reference: Path, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends just before write number `write`: config, codes, checkpoints, provenance, weights."""
    done = 0

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal done
            if done == write:
                raise Killed
            done += 1
            return function(*arguments)

        return call

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        for module in (run_module, classes_module):
            patch.setattr(module, "write_atomic", dying(module.write_atomic))
            patch.setattr(module, "write_json", dying(module.write_json))
        patch.setattr(Trainer, "save_checkpoint", dying(Trainer.save_checkpoint))
        if write < 8:
            with pytest.raises(Killed):
                train(tiny(SHORT), out)
        else:
            train(tiny(SHORT), out)
            assert done == 8, "every write of a run has had its turn"
    assert write == 8 or not (out / "weights.safetensors").exists()
    train(tiny(SHORT), out)
    for name in ("weights.safetensors", "codes.json", "assignment.json", "config.json"):
        assert (out / name).read_bytes() == (reference / name).read_bytes(), name


def test_drafts_of_a_killed_process_are_no_obstacle(reference: Path, tiny: Make, tmp_path: Path) -> None:
    """What `kill -9` leaves when it falls into a write: half of a temporary file."""
    out = tmp_path / "run"
    out.mkdir()
    (out / ".config.json.k3j4").write_text('{"preset": "ti')
    train(tiny(SHORT), out)
    assert weights(out) == weights(reference)

    (out / "weights.safetensors").unlink()
    (out / ".weights.safetensors.x8").write_bytes(b"half")
    (out / "checkpoints" / ".step_00000009.safetensors.x8").write_bytes(b"half")
    train(tiny(SHORT), out)
    assert weights(out) == weights(reference)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_a_stop_request_leaves_a_checkpoint_of_the_last_whole_step(
    number: signal.Signals, step: int, reference: Path, tiny: Make, tmp_path: Path
) -> None:
    def stop(done: int, total: int, figures: dict[str, float]) -> None:
        if done == step:
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    out = tmp_path / "run"
    config = tiny(SHORT)
    if step < 7:
        with pytest.raises(Interrupted, match="the same command resumes it") as caught:
            train(config, out, progress={"train": stop})
        newest = max((out / "checkpoints").glob("step_*"))
        with safe_open(newest, "pt") as file:
            assert int(file.metadata()["step"]) == caught.value.step
        assert not (out / "weights.safetensors").exists()
    else:  # the step in progress is the last: finishing is quicker than stopping
        train(config, out, progress={"train": stop})
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    train(config, out)
    assert weights(out) == weights(reference)


def command(folder: Path, out: Path) -> list[str]:
    line = [sys.executable, "-m", "ddm_rt.cli", "train", "--preset", "tiny", "--data", str(folder), "--out", str(out)]
    return [*line, "--steps", "80", "--set", "train.checkpoint_every=8", "--log-steps"]


# The command line, to which something happens once it has said a step. It does it to itself, because another process
# may come too late where the machine is busy. Nothing handles SIGALRM: it kills like SIGKILL.
STRUCK = """
import os, signal, sys
from ddm_rt.cli import main
say = sys.stdout.write
def say_and_be_struck(text):
    if text.startswith("{word}"):
        {blow}
    return say(text)
sys.stdout.write = say_and_be_struck
main()
"""


def struck(folder: Path, out: Path, word: str, blow: str) -> subprocess.CompletedProcess[str]:
    arguments = command(folder, out)[3:]
    line = [sys.executable, "-c", STRUCK.format(word=word, blow=blow), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.mark.slow(reason="trains in three processes, each of which imports everything first")
def test_a_process_killed_at_a_random_moment_and_interrupted_ends_in_the_same_bytes(
    folder: Path, tiny: Make, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    moments = random.Random(os.getpid())  # any moment will do; it is printed with a failure
    step, delay = moments.choice((10, 20, 30, 40, 50)), moments.uniform(0.0001, 0.02)
    print(f"killed {delay:.3f} s after step {step}")
    killed = struck(folder, out, f"step {step} ", f"signal.setitimer(signal.ITIMER_REAL, {delay})")
    assert killed.returncode == -signal.SIGALRM, killed.stderr
    assert not (out / "weights.safetensors").exists()

    interrupted = struck(folder, out, "step ", "os.kill(os.getpid(), signal.SIGINT)")
    told = interrupted.stderr
    assert interrupted.returncode == 130, told
    assert "the same command resumes it" in told
    assert "Traceback" not in told
    newest = max((out / "checkpoints").glob("step_*"))
    assert f"stopped at step {int(newest.stem.removeprefix('step_'))};" in " ".join(told.split())

    finished = subprocess.run(command(folder, out), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    straight = train(tiny({"train.steps": 80, "train.checkpoint_every": 8}), tmp_path / "straight")
    assert weights(out) == weights(straight)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"train.seed": 1}, "train.seed"),
        ({"train.steps": 9}, "train.steps"),
        ({"codes.micro_codes": 5}, "codes.micro_codes"),
        ({"schedule.prediction_type": "v_prediction"}, "schedule.prediction_type"),
        ({"model.unet.layers_per_block": 2}, "model.unet"),
    ],
)
def test_another_configuration_into_the_same_run_is_refused_by_field(
    overrides: dict[str, Any], field: str, reference: Path, tiny: Make
) -> None:
    before = weights(reference)
    with pytest.raises(DdmError, match=rf"config\.json: field {field} differs from this command"):
        train(tiny(SHORT | overrides), reference)
    assert weights(reference) == before


def test_a_folder_that_changed_since_is_refused(tiny: Make, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "images", 30)
    config = tiny(SHORT | {"data.source": str(source)})

    def stop(done: int, total: int, figures: dict[str, float]) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(config, tmp_path / "run", progress={"train": stop})
    shutil.copy(source / "000.png", source / "030.png")
    (source / "metadata.csv").unlink()
    with pytest.raises(DdmError, match=r"assignment\.json: made from 30 images; .* has 31"):
        train(config, tmp_path / "run")


def test_an_occupied_directory_is_left_alone(tiny: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DdmError, match="is not a run"):
        train(tiny(SHORT), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(DdmError, match="is not a run"):
        train(tiny(SHORT), tmp_path / "thesis.txt")


BAD = {
    "more codes than images": ({"codes.micro_codes": 41}, "codes.micro_codes is 41, but there are only 40 images"),
    "no such folder": ({"data.source": "nowhere"}, "no such folder"),
    "no such encoder": ({"features.encoder": "nowhere.onnx"}, "no such file"),
    "no such codes": ({"codes.source": "nowhere.json"}, "nowhere.json: cannot be read"),
    "an argument that the UNet hasn't got": ({"model.unet.colour": 3}, "model.unet: .*colour"),
    "a value that the UNet refuses": ({"model.unet.norm_num_groups": 3}, "model.unet: "),
}


@pytest.mark.parametrize("existed", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_leaves_nothing_behind(case: str, existed: bool, tiny: Make, tmp_path: Path) -> None:
    overrides, said = BAD[case]
    out = tmp_path / "run"
    if existed:
        out.mkdir()
    with pytest.raises(DdmError, match=said):
        train(tiny(SHORT | overrides), out)
    assert out.exists() == existed
    assert list(tmp_path.rglob("*")) == ([out] if existed else [])


def test_paper_mode_needs_a_label_for_every_image(tiny: Make, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "images", 20, labels=False)
    labels = SHORT | {"train.indicator": "labels", "data.source": str(source)}
    with pytest.raises(DdmError, match="has no labels"):
        train(tiny(labels), tmp_path / "run")
    rows = [f"{i:03d}.png,{'' if i == 4 else 'x'}" for i in range(20)]
    (source / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    with pytest.raises(DdmError, match=r"'004\.png' has no label"):
        train(tiny(labels), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["none", "labels"])
def test_the_other_modes_train_and_write_no_codes(mode: str, tiny: Make, tmp_path: Path) -> None:
    out = train(tiny(SHORT | {"train.indicator": mode}), tmp_path / "run")
    assert parse_json(Codes, (out / "codes.json").read_bytes(), "codes.json") == Codes(origin="none")
    assert all(name.startswith("unet.") for name in load_file(out / "weights.safetensors"))


def test_a_loss_that_is_not_finite_ends_the_run_with_one_error(tiny: Make, tmp_path: Path) -> None:
    config = tiny(SHORT | {"train.learning_rate": 1e30, "train.warmup_steps": 0, "train.grad_clip": 1e30})
    with pytest.raises(DdmError, match=r"the loss is (nan|inf) at step \d+; lower train\.learning_rate"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    for path in (tmp_path / "run" / "checkpoints").glob("step_*"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())
