"""`ddm-rt sample`: replayed manifests give the same bytes, and nothing but the serving packages is needed."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving_only import ABSENT, BROUGHT, COMMAND, without_training_packages

from ddm_rt.bundle import Bundle

Run = Callable[..., object]

SERVING = (
    "ddm_rt",
    "ddm_rt.bundle",
    "ddm_rt.config",
    "ddm_rt.data",
    "ddm_rt.schedule",
    "ddm_rt.engine.backends",
    "ddm_rt.engine.contract",
    "ddm_rt.engine.cpu.ort",
    "ddm_rt.sample.pipeline",
    "ddm_rt.kernels.dispatch",
    "ddm_rt.kernels.guided_step",
    "ddm_rt.cli",
)


def cpu_seconds() -> float:
    """Processor time of all finished child processes."""
    used = os.times()
    return used.children_user + used.children_system


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("0*.png")}


def check_whole(out: Path, n: int) -> dict:
    """n images, a contact sheet and a manifest, which agree; returns the manifest."""
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{i:05d}.png" for i in range(n)),
        "contact_sheet.png",
        "manifest.json",
    ]
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert [image["file"] for image in manifest["images"]] == [f"{i:05d}.png" for i in range(n)]
    assert len({image["seed"] for image in manifest["images"]}) == n
    with Image.open(out / "contact_sheet.png") as sheet:
        assert len(np.unique(np.asarray(sheet))) > 1
    return manifest


def test_the_same_command_gives_the_same_bytes(ddm_rt, bundle: Bundle, sampled, tmp_path: Path) -> None:
    assert ddm_rt("sample", bundle.path, "-n", 12, "--seed", 5, "--out", tmp_path / "again").code == 0
    assert pixels(tmp_path / "again") == pixels(sampled[0])
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (sampled[0] / "manifest.json").read_bytes()
    assert ddm_rt("sample", bundle.path, "-n", 12, "--seed", 6, "--out", tmp_path / "other").code == 0
    assert pixels(tmp_path / "other") != pixels(sampled[0])


def test_a_manifest_replays_to_the_same_bytes(ddm_rt, bundle: Bundle, sampled, tmp_path: Path) -> None:
    line = ("sample", bundle.path, "--from", sampled[0] / "manifest.json")
    assert ddm_rt(*line, "--out", tmp_path / "again").code == 0
    assert pixels(tmp_path / "again") == pixels(sampled[0])
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (sampled[0] / "manifest.json").read_bytes()


@pytest.mark.parametrize("index", [0, 7, 11])
def test_one_image_of_a_manifest(ddm_rt, bundle: Bundle, sampled, tmp_path: Path, index: int) -> None:
    line = ("sample", bundle.path, "--from", sampled[0] / "manifest.json", "--index", index)
    assert ddm_rt(*line, "--out", tmp_path / "one").code == 0
    name = f"{index:05d}.png"
    assert pixels(tmp_path / "one") == {name: pixels(sampled[0])[name]}


def test_a_replay_keeps_the_settings_of_its_request(ddm_rt, bundle: Bundle, tmp_path: Path) -> None:
    settings = ("--sampler", "dpm++2m", "--steps", 3, "--indicator-guidance-scale", 1.5, "--height", 20, "--width", 24)
    guidance = ("--guidance-interval", ".4,1", "--apg", 15)
    shares = ("--target", "code:0=.25,code:1=.75")
    assert ddm_rt("sample", bundle.path, "-n", 8, *settings, *guidance, *shares, "--out", tmp_path / "first").code == 0
    manifest = check_whole(tmp_path / "first", 8)
    assert [image["top_code"] for image in manifest["images"]].count(1) == 6
    assert manifest["request"]["guidance_interval"] == [0.4, 1]
    assert manifest["request"]["apg"] == [15, 0]
    with Image.open(tmp_path / "first" / "00000.png") as image:
        assert image.size == (24, 20)
    replay = ("sample", bundle.path, "--from", tmp_path / "first" / "manifest.json", "--out", tmp_path / "again")
    assert ddm_rt(*replay).code == 0
    assert pixels(tmp_path / "again") == pixels(tmp_path / "first")


def test_without_balance_there_are_no_codes(ddm_rt, bundle: Bundle, tmp_path: Path) -> None:
    assert ddm_rt("sample", bundle.path, "-n", 4, "--balance", "off", "--out", tmp_path / "off").code == 0
    manifest = check_whole(tmp_path / "off", 4)
    assert {image["code"] for image in manifest["images"]} == {-1}


@pytest.mark.parametrize("name", SERVING)
def test_a_serving_module_imports_without_the_training_packages(name: str) -> None:
    done = without_training_packages(f"import importlib; importlib.import_module({name!r})")
    assert done.returncode == 0, done.stderr


def test_the_block_is_real() -> None:
    done = without_training_packages("import ddm_rt.engine.torch.engine")
    assert done.returncode == 1
    assert "No module named" in done.stderr


def test_an_exported_bundle_samples_without_the_training_packages(bundle: Bundle, sampled, tmp_path: Path) -> None:
    done = without_training_packages(COMMAND, "sample", bundle.path, "-n", 12, "--seed", 5, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path / "out", 12)
    assert pixels(tmp_path / "out") == pixels(sampled[0])


def test_the_shipped_bundle_samples_at_once_without_the_training_packages(tmp_path: Path) -> None:
    done = without_training_packages(COMMAND, "sample", "digits", "-n", 64, "--seed", 0, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    manifest = check_whole(tmp_path / "out", 64)
    assert np.bincount([image["top_code"] for image in manifest["images"]]).tolist() == [32, 32]


@pytest.mark.idle(reason="neighbours on the same processor cost a process processor time too")
def test_the_shipped_bundle_samples_in_seconds(tmp_path: Path) -> None:
    before = cpu_seconds()
    done = without_training_packages(COMMAND, "sample", "digits", "-n", 64, "--seed", 0, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert cpu_seconds() - before < 10


def test_the_shipped_bundle_is_small_and_says_where_it_comes_from() -> None:
    bundle = Bundle.load("digits")
    assert sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file()) <= 6_000_000
    assert bundle.training.run.preset == bundle.index.provenance["preset"] == "digits"
    assert bundle.index.provenance["training"]["versions"]["torch"]
    assert bundle.training.discovery.origin == "discovered"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("train", "--preset", "tiny", "--data", "digits"), "ddm-rt[train]"),
        (("export", "nowhere"), "ddm-rt[train]"),
        (("evaluate", "nowhere"), "ddm-rt[evaluate]|ddm-rt[train]"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_needs_more_packages_says_which(line: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = without_training_packages(COMMAND, *line, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    (message,) = done.stderr.splitlines()
    assert message.startswith("error: the package ")
    assert any(extra in message for extra in said.split("|"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow(reason="makes an environment and installs the package and its dependencies into it")
def test_a_fresh_environment_with_the_wheel_alone(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, root]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("ddm_rt-*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python, ddm_rt = tmp_path / "env" / "bin" / "python", tmp_path / "env" / "bin" / "ddm-rt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True, capture_output=True, cwd=tmp_path)

    found = "import importlib.util, sys; print(*(n for n in sys.argv[1:] if importlib.util.find_spec(n)))"
    listed = subprocess.run([python, "-c", found, *ABSENT], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert set(listed.stdout.split()) <= BROUGHT

    line = [ddm_rt, "sample", "digits", "-n", "64", "--seed", "0", "--out", "out"]
    done = subprocess.run(line, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path / "out", 64)

    doctor = subprocess.run([ddm_rt, "doctor"], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "no package torch: not installed" in " ".join(doctor.stdout.split())
    training = [ddm_rt, "train", "--preset", "tiny", "--data", "digits", "--out", "run"]
    refused = subprocess.run(training, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 2
    assert not (tmp_path / "run").exists()
