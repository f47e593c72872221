"""The GPU benchmark as far as a machine without a GPU can show it: its arithmetic, its files, and how it refuses."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gpu
import pytest
import torch
from gpu_parts import (
    attention_speed,
    machine,
    rig,
    shapes,
    summary,
    wheels,
)
from gpu_parts.record import Record

SCRIPT = Path(gpu.__file__)
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a CUDA device")


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def said_by(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """The command in this process: starting another takes seconds."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    code = gpu.main()
    return code, capsys.readouterr().out


@without_cuda
def test_without_a_device_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    done = start("--out", "results", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith("not exercised: no CUDA device\n")
    assert "missing: " in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_list_names_each_section_and_none_takes_more_than_eight_minutes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = said_by(["--list"], monkeypatch, capsys)
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()] == list(gpu.SECTIONS)
    assert max(section.budget_s for section in gpu.SECTIONS.values()) + gpu.START_S <= gpu.LIMIT_S == 8 * 60


def test_sections_come_in_the_order_of_what_matters_most() -> None:
    order = ["numerics", "attention", "sd15_1", "sd15_8", "sd15_16", "identity", "sdxl_1", "sdxl_4", "training"]
    assert [name for name in gpu.SECTIONS if name in order] == order
    names = list(gpu.SECTIONS)
    for name in names:
        if "_compile" in name:
            assert names[names.index(name) + 1] == name.replace("_compile", "")


def test_an_unknown_section_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        said_by(["--out", str(tmp_path / "results"), "--sections", "numerics,speed"], monkeypatch, capsys)
    assert ended.value.code == 2
    assert "section 'speed' is unknown; sections: numerics, races" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@without_cuda
def test_a_section_that_fails_is_an_error_in_its_record(tmp_path: Path) -> None:
    tree = gpu.supervise("numerics", tmp_path, rig.real(), 60)
    assert tree["error"].startswith("exit code 2")
    assert json.loads((tmp_path / "numerics.json").read_text()) == tree
    assert summary.bars({"numerics": tree})[0]["met"] is False


def test_a_section_that_hangs_is_stopped(tmp_path: Path) -> None:
    error = gpu.supervise("races", tmp_path, rig.real(), 0.01)["error"]
    assert error == "stopped after 0 s; the command goes on with it when it is given again"


def test_a_record_is_on_disk_after_every_row_and_knows_its_budget(tmp_path: Path) -> None:
    now = 100.0
    record = Record("speed", tmp_path / "speed.json", 10, clock=lambda: now, stamp={"device": "d"})
    record.add(batch=1, error=float("inf"))
    now = 106.0
    assert record.room("a", 3)
    assert not record.room("b", 5)
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert kept["rows"] == [{"batch": 1, "error": "inf", "device": "d"}]
    assert (kept["wall_s"], kept["complete"], kept["left_out"]) == (6.0, False, ["b: no time left"])
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]


def test_a_record_goes_on_where_one_of_the_same_key_was_cut_off(tmp_path: Path) -> None:
    key: Mapping[str, Any] = {"commit": "a"}
    first = Record("speed", tmp_path / "speed.json", 10, key=key)
    first.add(batch=1, shape=[2, 3])
    first.raised(RuntimeError("no memory"), batch=2)
    second = Record("speed", tmp_path / "speed.json", 10, key=key)
    assert second.rows == [{"batch": 1, "shape": [2, 3]}]  # what raised is tried again
    assert second.has(batch=1, shape=[2, 3])
    assert not second.has(batch=2)
    second.replace([{"batch": 1, "shape": [4]}], batch=1)
    second.finish()
    assert json.loads((tmp_path / "speed.json").read_text())["complete"] is True
    assert Record("speed", tmp_path / "speed.json", 10, key=key).rows == [{"batch": 1, "shape": [4]}]
    assert Record("speed", tmp_path / "speed.json", 10, key={"commit": "b"}).rows == []


@pytest.mark.parametrize("wanting", ["time", "a row that raised"])
def test_a_record_that_wants_something_is_not_complete(wanting: str, tmp_path: Path) -> None:
    record = Record("speed", tmp_path / "speed.json", 10)
    if wanting == "time":
        record.room("a", 60)
    else:
        record.raised(ValueError("no"), batch=1)
    record.finish()
    assert json.loads((tmp_path / "speed.json").read_text())["complete"] is False


def test_a_run_skips_what_is_complete_and_does_it_again_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def here(name: str, out: Path, used: rig.Rig) -> dict[str, Any]:
        ran.append(name)
        record = Record(name, out / f"{name}.json", 10, key=machine.key(used))
        record.add(op=name, passed=True)
        record.finish()
        return json.loads((out / f"{name}.json").read_text())

    monkeypatch.setattr(gpu, "here", here)
    arguments = ["--dry-run", "--out", str(tmp_path), "--sections", "races"]
    assert said_by(arguments, monkeypatch, capsys)[0] == 0
    code, said = said_by(arguments, monkeypatch, capsys)
    assert (code, ran) == (0, ["races"])
    assert "races: complete for this commit, machine and versions; skipped (--again races does it again)" in said
    said_by([*arguments, "--again", "races"], monkeypatch, capsys)
    assert ran == ["races"] * 2
    monkeypatch.setattr(machine, "versions", lambda: {"torch": "another"})
    said_by(arguments, monkeypatch, capsys)
    assert ran == ["races"] * 3
    assert "DRY RUN" in (tmp_path / "gpu.md").read_text()


def test_the_wheels_are_the_versions_that_the_project_asks_for_and_bring_no_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((SCRIPT.parents[1] / "pyproject.toml").read_text())["project"]
    asked = {*project["dependencies"], *project["optional-dependencies"]["train"]}
    named = wheels.WITH_DEPENDENCIES | wheels.ALONE
    assert {named[name] for name in named if name != "psutil"} <= asked
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(wheels, "_pip", lambda *arguments: calls.append(arguments))
    (tmp_path / "a-1-py3-none-any.whl").touch()
    assert wheels.fetch(tmp_path, "3.12") == ["a-1-py3-none-any.whl"]
    (whole, alone) = calls
    assert set(wheels.ALONE.values()) < set(alone)
    assert "--no-deps" in alone
    assert "--no-deps" not in whole
    (tmp_path / "torch-2-py3-none-any.whl").touch()
    with pytest.raises(RuntimeError, match=r"torch-2-py3-none-any[.]whl came along"):
        wheels.fetch(tmp_path)


def test_wheels_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(wheels, "_pip", lambda *arguments: calls.append(arguments))
    with pytest.raises(RuntimeError, match="holds no wheels"):
        wheels.install(tmp_path, tmp_path / "site")
    (tmp_path / "a-1-py3-none-any.whl").touch()
    for _ in range(2):
        wheels.install(tmp_path, tmp_path / "site")
    assert len(calls) == 1
    assert {"--no-index", "--target", str(tmp_path / "a-1-py3-none-any.whl")} < set(calls[0])


def in_a_fresh_process(script: str, tmp_path: Path, *flags: str, **environment: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)} | environment
    command = [sys.executable, *flags, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_runs_from_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    for folder, text in (("ddm_rt", ""), ("kernels/op", "NAME = __name__")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").write_text(text)
    script = """
import sys
from pathlib import Path
from gpu_parts import checkout
checkout.provide(Path(sys.argv[1]))
from ddm_rt.kernels.op import NAME
assert NAME == "ddm_rt.kernels.op"
"""
    in_a_fresh_process(script, tmp_path, "-S")  # without site-packages: nothing is installed


def test_a_section_of_the_kernel_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    used, key = rig.fake(), {"commit": "a"}
    record = Record("attention", tmp_path / "attention.json", 300, key=key)
    attention_speed.section_attention(record, used)
    assert {row["speedup"] for row in record.rows} == {1.0}
    assert len(summary.layer_sums(record.rows)) == len(shapes.ROWS) * 2 * 2  # dtypes, caches
    whole = [dict(row) for row in record.rows]
    record.rows[-2:] = []
    record.add_all([])
    again = Record("attention", tmp_path / "attention.json", 300, key=key)
    attention_speed.section_attention(again, used)
    assert [row | {"fused_ms": 0} for row in again.rows] == [row | {"fused_ms": 0} for row in whole]


@pytest.mark.slow(reason="tests/kernels/test_fused_*.py show these numerics; this, the benchmark's own comparison")
def test_numerics_of_both_kernels_in_the_interpreter(tmp_path: Path) -> None:
    """fp32 and fp16; the interpreter multiplies bf16 matrices wrongly, so that waits for a device."""
    script = """
import sys, torch
from pathlib import Path
from gpu_parts import numerics
from gpu_parts.record import Record
from gpu_parts.shapes import Attention
from ddm_rt.kernels.guided_step.fused import guided_step_fused
from ddm_rt.kernels.indicator_attention.fused import indicator_attention_fused
record = Record("numerics", Path(sys.argv[1]) / "numerics.json", 300)
shape = [Attention(2, 5, 2, 40, 7, 3)]
numerics.attention(record, [torch.float32, torch.float16], shape, "cpu", indicator_attention_fused)
numerics.guided_step(record, "cpu", guided_step_fused, shapes=[(2, 3, 5, 3)])
"""
    in_a_fresh_process(script, tmp_path, TRITON_INTERPRET="1")
    rows = json.loads((tmp_path / "numerics.json").read_text())["rows"]
    assert [row["passed"] for row in rows] == [True] * (2 + 6), rows


@pytest.mark.slow(reason="it goes through every section, which takes most of a minute")
def test_a_dry_run_goes_through_every_section_and_claims_nothing(tmp_path: Path) -> None:
    done = start("--out", "results", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    tree = json.loads((tmp_path / "results/gpu.json").read_text())
    assert tree["dry"]
    assert list(tree["sections"]) == list(gpu.SECTIONS)
    for name, section in tree["sections"].items():
        assert section["complete"], name
        assert section["rows"] or name == "engines", name
        assert all(row["dry"] and row["device"].startswith("none: dry run") for row in section["rows"]), name
    for name in ("sd15_1", "sd15_8_indicator", "sdxl_4"):
        wanted = {"device", "dtype", "batch", "steps", "commit", "versions", "rounds", "p50_ms", "p95_ms"}
        for row in tree["sections"][name]["rows"]:
            assert wanted | {"over_compiled", "over_like", "memory_gib", "images_per_s", "of_peak"} <= row.keys()
    page = (tmp_path / "results/gpu.md").read_text()
    assert "**DRY RUN: no GPU took part and no figure here is a measurement" in page
    assert "| met |" not in page
    ElementTree.parse(tmp_path / "results/gpu.svg")
    again = start("--out", "results", "--dry-run", cwd=tmp_path)
    assert again.stdout.count("complete for this commit, machine and versions; skipped") == len(gpu.SECTIONS)
    assert json.loads((tmp_path / "results/gpu.json").read_text())["sections"] == tree["sections"]
