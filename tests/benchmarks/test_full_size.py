"""Export and TensorRT-RTX build of Stable Diffusion 1.5's three networks, at a tenth of their size."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import full_size
import pytest

from ddm_rt.errors import DdmError

SCRIPT = Path(full_size.__file__)
NEEDS = ("torch", "diffusers", "transformers", "tensorrt_rtx")


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.slow  # about two minutes: three traces, conversions and builds, the UNet's 91 M parameters among them
@pytest.mark.skipif(not all(map(importlib.util.find_spec, NEEDS)), reason=f"needs {', '.join(NEEDS)}")
def test_a_tenth_of_the_size_is_exported_and_built(tmp_path: Path) -> None:
    done = start("--work", "work", "--scale", "0.1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    tree = json.loads((tmp_path / "work/full_size.json").read_text())
    steps = tree["steps"]
    assert list(steps) == [f"{part}.{step}" for part in full_size.PARTS for step in full_size.STEPS]
    assert steps["unet.export"]["indicator_attention_layers"] == 16
    assert 80e6 < steps["unet.export"]["parameters"] < 100e6
    # fp16 weights, whole, in graph and plan.
    for step in steps.values():
        assert step["bytes"] > 0
    assert steps["unet.build"]["bytes"] > 2 * steps["unet.export"]["parameters"]
    low, best, high = steps["unet.build"]["profile"]["x_t"]
    assert (low[0], best[0], high[0]) == (1, 8, 8)
    # The bars of the full size: a tenth of it that missed them would be a fault of another kind.
    assert [bar["met"] for bar in tree["bars"]] == [True] * 4
    assert "| unet, build |" in (tmp_path / "work/full_size.md").read_text()

    again = start("--work", "work", "--scale", "0.1", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count(": kept") == len(steps)
    assert json.loads((tmp_path / "work/full_size.json").read_text())["steps"] == steps


@pytest.mark.parametrize("scale", ["0", "1.5"])
def test_a_scale_that_makes_no_network_is_refused(scale: str, tmp_path: Path) -> None:
    done = start("--work", "work", "--scale", scale, cwd=tmp_path)
    assert done.returncode == 2
    assert f"--scale is {scale}; expected more than 0 and at most 1" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_said_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")(10 * full_size.GIB, 9 * full_size.GIB, full_size.GIB)
    monkeypatch.setattr(full_size.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DdmError, match=r"1\.0 GiB free; about 8\.0 GiB are needed at scale 1"):
        full_size.check_disk(tmp_path, 1.0)


def test_a_step_is_measured_with_the_processes_that_it_starts() -> None:
    held = "x = bytearray(300 * 2**20); x[::4096] = bytes(len(x[::4096]))"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}], check=True)"
    # From a small process, as in use: a child counts what its parent held when it was started.
    measure = (
        f"import json, full_size; print(json.dumps(full_size.measure([{sys.executable!r}, '-c', {script!r}], 'step')))"
    )
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run([sys.executable, "-c", measure], env=environment, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert 0.25 < figures["peak_rss_gib"] < 0.6
    assert figures["wall_s"] > 0


def test_a_step_that_fails_is_named_with_its_last_words() -> None:
    script = "import sys; print('first'); sys.exit('the builder gave no plan')"
    with pytest.raises(DdmError, match=r"unet\.build: exit code 1; its last lines: .*the builder gave no plan"):
        full_size.measure([sys.executable, "-c", script], "unet.build")


def test_a_bar_over_all_parts_counts_once_all_are_measured() -> None:
    def step(wall_s: float, peak_rss_gib: float) -> dict[str, float]:
        return {"wall_s": wall_s, "peak_rss_gib": peak_rss_gib}

    steps = {"unet.build": step(181, 7), "unet.export": step(1, 12.5), "text_encoder.export": step(1, 1)}
    assert [bar["met"] for bar in full_size.bars(steps)] == [False, None, None, None]
    steps |= {"vae_decoder.export": step(1, 1), "vae_decoder.build": step(1, 1), "text_encoder.build": step(500, 1)}
    found = [(bar["value"], bar["met"]) for bar in full_size.bars(steps)]
    assert found == [(181, False), (12.5, False), (None, None), (7, True)]


def test_a_step_runs_again_when_the_next_one_needs_its_file(tmp_path: Path) -> None:
    (tmp_path / "unet.onnx").touch()
    assert full_size.needed("unet", {}, tmp_path) == {"export", "convert", "build"}
    assert full_size.needed("unet", {"unet.export": 1, "unet.convert": 1, "unet.build": 1}, tmp_path) == set()
    assert full_size.needed("unet", {"unet.export": 1, "unet.convert": 1}, tmp_path) == {"build"}
    assert full_size.needed("unet", {"unet.export": 1, "unet.build": 1}, tmp_path) == {"export", "convert"}
    (tmp_path / "unet.onnx").unlink()
    assert full_size.needed("unet", {"unet.export": 1, "unet.convert": 1}, tmp_path) == {"export", "convert", "build"}
