"""Each mistake gives one line that says what, where and what was expected, exit code 2, and nothing half-written."""

import json
import math
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pictures import write_folder
from safetensors.torch import load_file, save_file

from ddm_rt.bundle import GRAPHS, INDEX, Bundle

Run = Callable[..., object]
FILES = ("runtime.json", "training.json", *GRAPHS)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below, hidden ones too, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


@pytest.fixture
def refused(ddm_rt, tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must be refused, and changes nothing below `tmp_path`; returns the message."""

    def run(*line: object) -> str:
        before = contents(tmp_path)
        message = ddm_rt(*line).refusal()
        assert contents(tmp_path) == before
        return message

    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", 12)


def train_line(data: object, out: Path, *more: object) -> tuple[object, ...]:
    return ("train", "--preset", "tiny", "--data", data, "--out", out, *more)


def test_an_empty_folder(refused, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    said = refused(*train_line(tmp_path / "images", tmp_path / "run"))
    assert f"{tmp_path / 'images'}: 0 images found; expected at least 2" in said


def test_a_folder_with_one_image(refused, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 1, labels=False)
    assert "1 images found; expected at least 2" in refused(*train_line(folder, tmp_path / "run"))


@pytest.mark.parametrize("kept", [0, 40])
def test_an_unreadable_image_is_named(refused, images: Path, tmp_path: Path, kept: int) -> None:
    victim = images / "007.png"
    victim.write_bytes(victim.read_bytes()[:kept])
    assert f"{victim}: not a readable image" in refused(*train_line(images, tmp_path / "run"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("digits:3,8@2000:1", "ratio 2000:1 can't be had from"),
        ("digits:3,8@4", "ratio '4' must be 2 positive whole numbers"),
        ("digits:3,9@4:1", "classes must be distinct and among 0, 1, 3, 7, 8"),
    ],
)
def test_a_ratio_or_class_that_the_data_cannot_give(refused, tmp_path: Path, source: str, said: str) -> None:
    line = train_line(source, tmp_path / "run", "--image-size", 32, "--set", "model.patch=4")
    assert said in refused(*line)


def test_more_codes_than_images(refused, images: Path, tmp_path: Path) -> None:
    line = train_line(images, tmp_path / "run", "--micro-codes", 13, "--set", "features.steps=1")
    assert "codes.micro_codes is 13, but there are only 12 images" in refused(*line)
    line = train_line(images, tmp_path / "run", "--micro-codes", 4, "--top-codes", 5)
    assert "codes.top_codes (5) must not exceed codes.micro_codes (4)" in refused(*line)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--image-size", 17), "data.image_size is 17; this model needs a multiple of 4"),
        (("--image-size", 18), "data.image_size is 18; this model needs a multiple of 4"),
        (("--channels", 2), "data.channels"),
        (("--steps", 0), "train.steps"),
        (("--indicator-weight", 2), "train.indicator_weight"),
        (("--set", "train.speed=9"), "'train.speed' is unknown"),
        (("--set", "train.steps"), "expected FIELD=VALUE"),
        (("--set", "model.unet.wings=2"), "model.unet"),
        (("--features", "nowhere.onnx"), "nowhere.onnx: no such file"),
        (("--codes", "nowhere.json"), "nowhere.json"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_setting_that_cannot_be(refused, images: Path, tmp_path: Path, more: tuple[object, ...], said: str) -> None:
    assert said in refused(*train_line(images, tmp_path / "run", *more))


def test_an_unknown_preset(refused, images: Path, tmp_path: Path) -> None:
    said = refused("train", "--preset", "huge", "--data", images, "--out", tmp_path / "run")
    assert "preset 'huge' is unknown; presets: digits," in said


@pytest.fixture
def broken(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle to break."""
    return Path(shutil.copytree(bundle.path, tmp_path / "bundle"))


def sample_line(bundle: object, tmp_path: Path, *more: object) -> tuple[object, ...]:
    return ("sample", bundle, "-n", 2, "--out", tmp_path / "out", *more)


@pytest.mark.parametrize("name", FILES)
def test_a_bundle_with_a_missing_truncated_or_altered_file(refused, broken: Path, tmp_path: Path, name: str) -> None:
    whole = (broken / name).read_bytes()
    (broken / name).unlink()
    assert f"{broken / name}: missing" in refused(*sample_line(broken, tmp_path))
    (broken / name).write_bytes(whole[:-7])
    assert f"{broken / name}: truncated" in refused(*sample_line(broken, tmp_path))
    middle = len(whole) // 2
    (broken / name).write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert f"{broken / name}: altered" in refused(*sample_line(broken, tmp_path))


@pytest.mark.parametrize(("content", "said"), [(None, "is missing"), (b"{", INDEX), (b"[]", INDEX), (b"\xff\0", INDEX)])
def test_a_bundle_without_a_sound_index(
    refused, broken: Path, tmp_path: Path, content: bytes | None, said: str
) -> None:
    (broken / INDEX).unlink()
    if content is not None:
        (broken / INDEX).write_bytes(content)
    message = refused(*sample_line(broken, tmp_path))
    assert str(broken) in message
    assert said in message


def test_no_bundle_at_all(refused, tmp_path: Path, trained) -> None:
    assert "no such directory; shipped bundles: digits" in refused(*sample_line(tmp_path / "nowhere", tmp_path))
    assert "ddm-rt export" in refused(*sample_line(trained[0], tmp_path)), (
        "a run is no bundle, and told how to become one"
    )
    assert "name a bundle directory" in refused("sample", "--out", tmp_path / "out")


@pytest.fixture
def run(trained, tmp_path: Path) -> Path:
    """A copy of the finished run to break."""
    return Path(shutil.copytree(trained[0], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(refused, run: Path, tmp_path: Path, value: float) -> None:
    tensors = load_file(run / "weights.safetensors")
    name = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())[3]
    tensors[name].view(-1)[1] = value
    save_file(tensors, run / "weights.safetensors")
    said = refused("export", run, "--out", tmp_path / "bundle")
    assert f"{run / 'weights.safetensors'}: tensor {name} has non-finite values" in said


def test_a_run_with_missing_or_damaged_parts(refused, run: Path, tmp_path: Path) -> None:
    line = ("export", run, "--out", tmp_path / "bundle")
    weights = (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").write_bytes(weights[:-9])
    assert "weights.safetensors: not a readable safetensors file" in refused(*line)
    (run / "weights.safetensors").write_bytes(struct.pack("<Q", 2**60))
    assert "weights.safetensors: not a readable safetensors file" in refused(*line)
    (run / "weights.safetensors").unlink()
    assert "weights.safetensors: missing" in refused(*line)
    (run / "codes.json").write_text('{"origin": "none", "colour": 3}')
    assert "codes.json: field colour" in refused(*line)
    (run / "config.json").unlink()
    assert "config.json: cannot be read" in refused(*line)
    assert "config.json: cannot be read" in refused("export", tmp_path / "nowhere", "--out", tmp_path / "bundle")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--backend", "abacus"),
            "'abacus' is unknown; backends: auto, tensorrt, tensorrt-rtx, torch, onnxruntime, openvino",
        ),
        (
            ("--backend", "torch", "--precision", "int8"),
            "backend 'torch' is not available: it computes in the bundle's",
        ),
        (("--precision", "bf8"), "precision 'bf8' is unknown; expected one of: fp32, fp16, bf16, int8, fp8"),
        (("--sampler", "guess"), "sampler is 'guess'; expected one of: ddpm, ddim, euler, dpm++2m"),
        (("-n", 0), "n is 0; expected at least 1"),
        (("-n", -3), "n is -3; expected at least 1"),
        (("--seed", -1), "seed is -1"),
        (("--steps", 0), "num_steps is 0"),
        (("--steps", 5000), "num_steps is 5000"),
        (("--height", 17), "height is 17; expected a multiple of 2"),
        (("--width", 19), "width is 19; expected a multiple of 2"),
        (("--height", 0), "height is 0"),
        (("--indicator-guidance-scale", "nan"), "indicator_guidance_scale is nan"),
        (("--target", "code:9=1"), "target"),
        (("--target", "code:0=.3"), "target"),
        (("--target", "fair"), "target"),
        (("--target", "code:0=.3,code:1=.7", "--balance", "off"), "target"),
        (("--index", 3), "--index"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_request_that_cannot_be(
    refused, bundle: Bundle, tmp_path: Path, more: tuple[object, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(*sample_line(bundle.path, tmp_path, *more))


def test_a_manifest_that_does_not_fit(refused, bundle: Bundle, sampled, tmp_path: Path) -> None:
    tree = json.loads((sampled[0] / "manifest.json").read_bytes())
    path = tmp_path / "manifest.json"

    def said(*more: object) -> str:
        return refused("sample", bundle.path, "--from", path, "--out", tmp_path / "out", *more)

    assert "manifest.json: cannot be read" in said()

    path.write_text(json.dumps(tree))
    assert "index is 12; the manifest has images 0 to 11" in said("--index", 12)
    assert "index is -1" in said("--index", -1)
    path.write_text(json.dumps(tree)[:-5])
    assert str(path) in said()
    path.write_text(json.dumps(tree | {"bundle_id": "0" * 64}))
    assert "bundle_id is 000000000000" in said()
    path.write_text(json.dumps(tree | {"sampler": "guess"}))
    assert "field sampler" in said()
    tree["images"][0]["code"] = 99
    path.write_text(json.dumps(tree))
    assert "image 0 has code 99" in said()


@pytest.mark.parametrize("kind", ["occupied", "file", "below a file"])
def test_an_out_that_cannot_be_written(
    refused, bundle: Bundle, images: Path, run: Path, judge, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    if kind == "occupied":
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
    else:
        out.write_text("a file")
        out = out if kind == "file" else out / "below"
    obstacle = str(tmp_path / "out")
    assert obstacle in refused("sample", bundle.path, "-n", 1, "--out", out)
    assert obstacle in refused("export", run, "--out", out)
    assert obstacle in refused(*train_line(images, out))
    line = ("--judge", judge[0], "--groups", "across,down", "--reference", images)
    assert obstacle in refused("evaluate", bundle.path, *line, "-n", 2, "--min-per-group", 1, "--out", out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--judge": "nowhere.onnx"}, "judge 'nowhere.onnx': no such file; shipped judges: digits"),
        ({"--groups": "across,sideways"}, "sideways"),
        ({"--groups": "across"}, "group"),
        ({"--reference": "nowhere"}, "'nowhere': no such folder"),
        ({"--training": "nowhere"}, "'nowhere': no such folder"),
        ({"--classes": "a,b"}, "classes"),
        ({"-n": 0}, "n is 0"),
    ],
    ids=str,
)
def test_an_evaluation_that_cannot_be(
    refused, bundle: Bundle, judge, images: Path, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    options = {"--judge": judge[0], "--groups": "across,down", "--reference": images, "-n": 8, "--min-per-group": 2}
    line = [part for option in (options | change).items() for part in option]
    assert said in refused("evaluate", bundle.path, *line, "--out", tmp_path / "report")


def test_a_directory_that_sample_did_not_write(refused, sampled, judge, images: Path, tmp_path: Path) -> None:
    line = ("--judge", judge[0], "--groups", "across,down", "--reference", images, "--out", tmp_path / "report")
    assert "manifest.json: expected the manifest of `ddm-rt sample`" in refused("evaluate", images, sampled[0], *line)
    copy = Path(shutil.copytree(sampled[0], tmp_path / "copy"))
    (copy / "00003.png").write_bytes(b"no picture")
    assert f"{copy / '00003.png'}: not a readable image" in refused("evaluate", copy, *line)
    assert "nowhere" in refused("evaluate", tmp_path / "nowhere", *line)


def test_a_judge_that_cannot_be_trained(refused, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "judge.onnx"
    assert "--held-out" in refused("train-judge", "--data", images, "--out", out)
    plain = write_folder(tmp_path / "plain", 8, labels=False)
    line = ("train-judge", "--data", images, "--held-out", plain, "--out", out)
    assert f"{plain}: a judge needs labels" in refused(*line)
    held_out = ("--held-out", write_folder(tmp_path / "held_out", 8, seed=1))
    said = refused("train-judge", "--data", images, *held_out, "--out", out, "--image-size", 3)
    assert "image_size" in said
    assert "steps is 0" in refused("train-judge", "--data", images, *held_out, "--out", out, "--steps", 0)


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Lets no file grow beyond so many bytes: the system refuses the write in the middle, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_system_cuts_off_leaves_nothing(
    ddm_rt, bundle: Bundle, trained, images: Path, tmp_path: Path, file_size_limit
) -> None:
    before = contents(tmp_path)
    lines = {
        "sample": ("sample", bundle.path, "-n", 30, "--out", tmp_path / "out"),  # the manifest is the first big file
        "export": ("export", trained[0], "--out", tmp_path / "bundle"),
    }
    file_size_limit(4096)
    results = {name: ddm_rt(*line) for name, line in lines.items()}
    for name, result in results.items():
        message = result.refusal()
        assert str(lines[name][-1]) in message
        assert "File too large" in message
    assert contents(tmp_path) == before


def test_a_checkpoint_that_the_system_cuts_off_leaves_the_run_resumable(
    ddm_rt, images: Path, tmp_path: Path, file_size_limit
) -> None:
    out = tmp_path / "run"
    line = train_line(images, out, "--indicator", "none", "--steps", 4)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    file_size_limit(16_384)
    message = ddm_rt(*line).refusal()
    file_size_limit(limit)
    assert "step_00000004.safetensors" in message
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == ["codes.json", "config.json"]
    assert ddm_rt(*line).code == 0
    assert all(torch.isfinite(tensor).all() for tensor in load_file(out / "weights.safetensors").values())


def on_a_full_disk(pages: int, line: tuple[object, ...], folder: Path) -> tuple[int, str, list[str]]:
    """Runs the command with a file system of so many 4 KiB pages at `folder`; exit code, stderr, files left there."""
    folder.mkdir()
    script = (
        'mount -t tmpfs -o size=$1k tmpfs "$2" || exit 99; cd "$2"; shift 2; "$@"; code=$?; find . -type f; exit $code'
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", pages * 4, folder]
    command += [sys.executable, "-m", "ddm_rt.cli", *line]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr, [row for row in done.stdout.splitlines() if row.startswith("./")]


def test_sampling_onto_a_full_disk(bundle: Bundle, tmp_path: Path, own_file_system: None) -> None:
    folder = tmp_path / "disk"
    code, err, left = on_a_full_disk(20, ("sample", bundle.path, "-n", 40, "--out", folder / "out"), folder)
    assert code == 2, err
    (message,) = [row for row in err.splitlines() if row.startswith("error: ")]
    assert str(folder / "out") in message
    assert "No space left on device" in message
    assert "Traceback" not in err
    assert left == []


@pytest.mark.slow(reason="a training process of its own; `test_a_checkpoint_that_the_system_cuts_off...` is quick")
def test_training_onto_a_full_disk(images: Path, tmp_path: Path, own_file_system: None) -> None:
    folder = tmp_path / "disk"
    line = train_line(images, folder / "run", "--indicator", "none", "--steps", 4)
    code, err, left = on_a_full_disk(16, line, folder)
    assert code == 2, err
    (message,) = [row for row in err.splitlines() if row.startswith("error: ")]
    assert "step_00000004.safetensors: No space left on device" in message
    assert sorted(left) == ["./run/codes.json", "./run/config.json"]
