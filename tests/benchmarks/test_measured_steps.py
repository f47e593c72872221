"""Steps in processes of their own: what is measured, and which of them run again."""

import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import measured_steps
import pytest
from measured_steps import Bar

from ddm_rt.errors import DdmError


def test_too_little_disk_is_said_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")(10 * measured_steps.GIB, 9 * measured_steps.GIB, measured_steps.GIB)
    monkeypatch.setattr(measured_steps.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DdmError, match=r"1\.0 GiB free; about 8\.0 GiB are needed at scale 1"):
        measured_steps.check_disk(tmp_path, 8.0, 1.0)


def test_a_step_is_measured_with_the_processes_that_it_starts() -> None:
    held = "x = bytearray(300 * 2**20); x[::4096] = bytes(len(x[::4096]))"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}], check=True)"
    # From a small process, as in use: a child counts what its parent held when it was started.
    call = f"measured_steps.measure([{sys.executable!r}, '-c', {script!r}], 'step')"
    measure = f"import json, measured_steps; print(json.dumps({call}))"
    environment = os.environ | {"PYTHONPATH": str(Path(measured_steps.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", measure], env=environment, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert 0.25 < figures["peak_rss_gib"] < 0.6
    assert figures["wall_s"] > 0


def test_a_step_that_fails_is_named_with_its_last_words() -> None:
    script = "import sys; print('first'); sys.exit('the builder gave no plan')"
    with pytest.raises(DdmError, match=r"unet\.build: exit code 1; its last lines: .*the builder gave no plan"):
        measured_steps.measure([sys.executable, "-c", script], "unet.build")


def test_a_bar_over_several_steps_counts_once_all_are_measured() -> None:
    bars = (
        Bar("unet, build", ("unet.build",), "wall_s", 180, "s"),
        Bar("every export", ("unet.export", "vae.export"), "peak_rss_gib", 12, "GiB"),
    )
    results = {"unet.build": {"wall_s": 181, "peak_rss_gib": 7}, "unet.export": {"wall_s": 1, "peak_rss_gib": 12.5}}
    assert [bar["met"] for bar in measured_steps.held(bars, results)] == [False, None]
    results["vae.export"] = {"wall_s": 1, "peak_rss_gib": 1}
    found = measured_steps.held(bars, results)
    assert [(bar["value"], bar["met"]) for bar in found] == [(181, False), (12.5, False)]
    assert measured_steps.bar_lines(found)[0] == "- unet, build: wall_s at most 180 s: 181.00, NOT MET"
    assert measured_steps.bar_lines(measured_steps.held(bars[1:], {}))[0].endswith(": -, not measured")


def test_a_step_runs_again_when_the_next_one_needs_what_it_left(tmp_path: Path) -> None:
    chain = {step: tmp_path / f"{step}.onnx" for step in ("export", "convert", "build")}
    chain["convert"].touch()
    assert measured_steps.needed(chain, {}) == {"export", "convert", "build"}
    assert measured_steps.needed(chain, {"export": 1, "convert": 1, "build": 1}) == set()
    assert measured_steps.needed(chain, {"export": 1, "convert": 1}) == {"build"}
    assert measured_steps.needed(chain, {"export": 1, "build": 1}) == {"export", "convert"}
    chain["convert"].unlink()
    assert measured_steps.needed(chain, {"export": 1, "convert": 1}) == {"export", "convert", "build"}
