"""The GPU benchmark as far as a machine without a GPU can show it: its arithmetic, its files, and how it refuses."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from gpu_parts import attention_speed, engines, shapes, summary, timing, unet_speed
from gpu_parts.record import Record

SCRIPT = Path(gpu.__file__)
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a CUDA device")


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@without_cuda
def test_without_a_device_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    done = start("--out", "results", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith("not exercised: no CUDA device\n")
    assert "missing: " in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_needs_no_device_and_the_budgets_fit_eight_minutes(tmp_path: Path) -> None:
    done = start("--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert all(name in done.stdout for name in gpu.SECTIONS)
    assert sum(s.budget_s + gpu.START_S for s in gpu.SECTIONS.values()) <= gpu.LIMIT_S == 8 * 60


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    done = start("--out", "results", "--sections", "numerics,speed", cwd=tmp_path)
    assert done.returncode == 2
    assert "section 'speed' is unknown; sections: numerics, races" in done.stderr
    assert list(tmp_path.iterdir()) == []


@without_cuda
def test_a_section_that_fails_is_an_error_in_its_record(tmp_path: Path) -> None:
    tree = gpu.supervise("numerics", tmp_path, 60)
    assert tree["error"].startswith("exit code 2")
    assert json.loads((tmp_path / "numerics.json").read_text()) == tree
    assert summary.bars({"numerics": tree})[0]["met"] is False


def test_a_section_that_hangs_is_stopped(tmp_path: Path) -> None:
    assert gpu.supervise("races", tmp_path, 0.01)["error"] == "stopped after 0 s"


def test_a_record_is_on_disk_after_every_row_and_knows_its_budget(tmp_path: Path) -> None:
    now = 100.0
    record = Record("speed", tmp_path / "speed.json", 10, clock=lambda: now)
    record.add(batch=1, error=float("inf"))
    now = 106.0
    assert record.room("a", 3)
    assert not record.room("b", 5)
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert (kept["rows"], kept["wall_s"], kept["complete"]) == ([{"batch": 1, "error": "inf"}], 6.0, False)
    assert kept["left_out"] == ["b: no time left"]
    record.finish()
    assert json.loads((tmp_path / "speed.json").read_text())["complete"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]


def test_calls_take_turns_and_ratios_are_paired() -> None:
    order: list[str] = []
    times = iter([[1.0, 3.0], [10.0], [2.0, 4.0], [30.0]])

    def bench(call: timing.Call) -> list[float]:
        call()
        return next(times)

    found = timing.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, bench, rounds=2)
    assert order == ["a", "b", "a", "b"]
    assert found["a"] == {"median": 2.5, "q20": pytest.approx(1.6), "q80": pytest.approx(3.4), "rounds": [2.0, 3.0]}
    assert timing.paired_ratio(found["b"], found["a"])["median"] == pytest.approx((10 / 2 + 30 / 3) / 2)


@pytest.fixture(scope="module")
def sd15() -> unet_speed.Network:
    """Without its weights."""
    return unet_speed.network("sd15", torch.float16, "meta")


def test_the_layers_are_those_of_the_unet_of_that_size(sd15: unet_speed.Network) -> None:
    halvings = {"down_blocks.0": 0, "down_blocks.1": 1, "down_blocks.2": 2, "mid_block": 3}
    halvings |= {"up_blocks.1": 2, "up_blocks.2": 1, "up_blocks.3": 0}
    found: Counter[tuple[int, int]] = Counter()
    for name, module in sd15.unet.named_modules():
        if name.endswith("attn2"):
            side = 64 >> next(level for block, level in halvings.items() if name.startswith(block))
            found[side * side, module.inner_dim // module.heads] += 1
            assert module.heads == shapes.HEADS
    assert dict(found) == shapes.SD15_LAYERS


def test_flops_and_bytes_are_counted_as_published(sd15: unet_speed.Network) -> None:
    assert unet_speed.flops_per_image(sd15, torch.float16, "meta") == pytest.approx(0.803e12, rel=1e-3)
    one = shapes.Attention(batch=2, queries=3, heads=1, head_dim=16, text=5, indicator=4)
    assert shapes.bytes_moved(one) == 2 * ((3 + 3 + 5 + 5 + 4 + 4) * 16 * 2 + 4)
    assert shapes.flops(one) == 2 * (3 * 9 * 16) * 4


def speed(**changes: Any) -> dict[str, Any]:
    row = {"dtype": "fp16", "batch": 8, "queries": 64, "head_dim": 160, "layers": 16}
    return row | {"speedup": 2.5, "of_copy": 0.9} | dict.fromkeys(("fused_ms", "copy_ms", "flash_ms"), 1.0) | changes


def test_a_bar_is_held_by_its_worst_row_at_large_batches() -> None:
    rows = [
        speed(unfused_ms=2.5),
        speed(batch=16, speedup=1.9, unfused_ms=1.9),
        speed(batch=1, of_copy=0.1, unfused_ms=1),
    ]
    steps = [{"model": "sd15", "batch": 8, "cost": 0.005}, {"model": "digits", "batch": 8, "cost": 0.5}]
    sections = {
        "numerics": {"rows": [{"op": "guided_step", "error": 0.0, "passed": True}]},
        "attention": {"rows": rows},
        "unet_step": {"rows": steps},
    }
    bars = {bar["figure"]: (bar["worst"], bar["met"]) for bar in summary.bars(sections)}
    assert bars == {"failed": (0, True), "speedup": (1.9, False), "of_copy": (0.9, True), "cost": (0.005, True)}
    sections["races"] = {"rows": [{"op": "guided_step", "passed": False}]}
    assert summary.bars(sections)[0]["met"] is False
    assert [bar["met"] for bar in summary.bars({})] == [None] * 4


def test_the_page_shows_bars_what_is_missing_and_every_row() -> None:
    machine = {
        "gpu": "X",
        "architecture": "sm_90",
        "host": "h",
        "commit": "c",
        "versions": {"torch": "2"},
        "missing": ["m"],
    }
    sections = {
        "attention": {"rows": [speed(unfused_ms=2.5)], "facts": {"unit": "ms"}, "left_out": ["batch 16: no time left"]},
        "races": {"rows": [], "error": "stopped after 25 s"},
    }
    page = summary.markdown({"machine": machine, "sections": sections, "bars": summary.bars(sections)})
    for words in (
        "X (sm_90)",
        "- missing: m",
        "not measured",
        "NOT MET",
        "Stopped: stopped after 25 s",
        "| fp16 | 8 | 64",
    ):
        assert words in page
    assert "left out: batch 16: no time left" in page
    assert "## The 16 cross-attention layers of a step together" in page


def in_a_fresh_process(script: str, tmp_path: Path, *flags: str, **environment: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)} | environment
    command = [sys.executable, *flags, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # tests/kernels/test_fused_*.py show these numerics; this, the benchmark's own comparison
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


@pytest.fixture
def mocked_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are the reference, a CUDA graph makes its call once, and every run takes a millisecond."""
    from ddm_rt.kernels.guided_step import fused as step
    from ddm_rt.kernels.guided_step import guided_step_reference
    from ddm_rt.kernels.indicator_attention import fused, indicator_attention_reference

    def bench(call: timing.Call) -> list[float]:
        call()
        return [1.0]

    def captured(call: timing.Call) -> timing.Call:
        call()
        return lambda: None

    monkeypatch.setattr(fused, "indicator_attention_fused", lambda *x, tile=None: indicator_attention_reference(*x))
    monkeypatch.setattr(fused, "architecture", lambda index: "sm_90")
    monkeypatch.setattr(step, "guided_step_fused", guided_step_reference)
    for module in (attention_speed, unet_speed):
        monkeypatch.setattr(module, "captured", captured)
        monkeypatch.setattr(module, "do_bench", lambda rep_ms=25: bench)
        monkeypatch.setattr(module, "DTYPES", {"fp32": torch.float32})
    monkeypatch.setattr(unet_speed, "PEAK_SIZE", 8)


def test_attention_sections_record_their_rows_on_a_mocked_device(
    mocked_device: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(attention_speed, "BATCHES", (1,))
    monkeypatch.setattr(attention_speed, "SD15_LAYERS", {(64, 160): 16})
    monkeypatch.setattr(attention_speed, "sd15", lambda batch: [shapes.Attention(batch, 64, 2, 160, 7, 4)])
    monkeypatch.setattr(attention_speed, "flash", attention_speed.sdpa)
    record = Record("attention", tmp_path / "attention.json", 300)
    attention_speed.section_attention(record, "cpu")
    (row,) = record.rows
    assert (row["speedup"], row["of_copy"], row["fused_ms"]) == (1.0, 1.0, 1.0)
    assert summary.layer_sums(record.rows)[0]["fused_ms"] == 16


def test_tactics_name_the_best_tile_on_a_mocked_device(
    mocked_device: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ddm_rt.kernels.indicator_attention import table

    monkeypatch.setattr(attention_speed, "DTYPES", {"fp16": torch.float16})
    monkeypatch.setattr(attention_speed, "SD15_LAYERS", {(64, 40): 1})
    monkeypatch.setattr(table, "HEAD_DIMS", (40,))
    record = Record("tactics", tmp_path / "tactics.json", 300)
    attention_speed.section_tactics(record, "cpu")
    (row,) = record.rows
    assert row["head_dim"] == 40
    assert row["shipped"] == row["best"] == "x".join(map(str, table.tile(40, "fp16", "sm_90")))
    assert len(row["times"]) == len(table.tactics(40, "fp16", "sm_90"))


def test_unet_sections_record_their_rows_on_a_mocked_device(
    mocked_device: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = unet_speed.network
    monkeypatch.setattr(unet_speed, "network", lambda name, dtype, device: small("digits", dtype, device))
    monkeypatch.setattr(unet_speed, "BATCHES", (2,))
    monkeypatch.setattr(unet_speed, "THROUGHPUT_BATCHES", (3,))
    step = Record("unet_step", tmp_path / "unet_step.json", 300)
    unet_speed.section_unet_step(step, "cpu")
    assert [(row["batch"], row["cost"]) for row in step.rows] == [(2, 0.0)] * 2
    throughput = Record("throughput", tmp_path / "throughput.json", 300)
    unet_speed.section_throughput(throughput, "cpu")
    assert [row["images_per_s"] for row in throughput.rows] == [pytest.approx(3 / (25 * 1e-3))] * 2
    assert all(row["of_peak"] > 0 for row in throughput.rows)


@without_cuda
def test_engines_that_cant_be_built_are_left_out_with_the_reason(tmp_path: Path) -> None:
    record = Record("engines", tmp_path / "engines.json", 300)
    engines.section_engines(record)
    assert record.rows == []
    left_out = dict(line.split(": ", 1) for line in record.left_out)
    assert left_out.keys() == {"ONNX Runtime on the GPU", *engines.FLAVOURS}
    assert "libcuda" in left_out["tensorrt-rtx"] or "not installed" in left_out["tensorrt-rtx"]
