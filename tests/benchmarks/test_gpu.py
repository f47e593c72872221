"""The GPU benchmark as far as a machine without a GPU can show it: its arithmetic, its files, and how it refuses."""

import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gpu
import pytest
import torch
from gpu_parts import (
    attention_speed,
    machine,
    models,
    picture,
    rig,
    shapes,
    summary,
    timing,
    trajectories,
    variants,
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


def test_calls_take_turns_and_ratios_are_paired() -> None:
    order: list[str] = []
    times = iter([[1.0, 3.0], [10.0], [2.0, 4.0], [30.0]])

    def bench(call: timing.Call) -> list[float]:
        call()
        return next(times)

    found = timing.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, bench, rounds=2)
    assert order == ["a", "b", "a", "b"]
    quantiles = {"median": 2.5, "q20": 1.6, "q80": 3.4, "p50": 2.5, "p95": 3.85}
    assert found["a"] == pytest.approx(quantiles | {"runs": 4, "rounds": pytest.approx([2.0, 3.0])})
    assert timing.paired_ratio(found["b"], found["a"])["median"] == pytest.approx((10 / 2 + 30 / 3) / 2)


def test_the_layers_are_those_of_the_unet_of_that_size() -> None:
    halvings = {"down_blocks.0": 0, "down_blocks.1": 1, "down_blocks.2": 2, "mid_block": 3}
    halvings |= {"up_blocks.1": 2, "up_blocks.2": 1, "up_blocks.3": 0}
    found: Counter[tuple[int, int]] = Counter()
    for name, module in models.drawn(models.sd15(), "meta", indicator=True).unet.named_modules():
        if name.endswith("attn2"):
            side = 64 >> next(level for block, level in halvings.items() if name.startswith(block))
            found[side * side, module.inner_dim // module.heads] += 1
            assert module.heads == shapes.HEADS
    assert dict(found) == shapes.SD15_LAYERS
    assert sum(shapes.SD15_LAYERS.values()) == sum(shapes.TINY_LAYERS.values()) == summary.LAYERS


def test_flops_and_bytes_are_counted_as_published() -> None:
    assert models.flops("sd15") == pytest.approx({"unet": 0.803e12, "decoder": 2.51e12}, rel=5e-3)
    # The published 2.99 T multiplications leave out attention's products, 4·N²·C in each layer and 4·N·77·C.
    layers = {4096: (640, 10), 1024: (1280, 60)}
    products = sum(count * 4 * n * (n + 77) * channels for n, (channels, count) in layers.items())
    assert models.flops("sdxl")["unet"] == pytest.approx(2 * 2.99e12 + products, rel=5e-3)
    one = shapes.Attention(batch=2, queries=3, heads=1, head_dim=16, text=5, indicator=4)
    assert shapes.bytes_moved(one) == 2 * ((3 + 3 + 5 + 5 + 4 + 4) * 16 * 2 + 4)
    assert shapes.flops(one) == 2 * (3 * 9 * 16) * 4


def speed(**changes: Any) -> dict[str, Any]:
    row = {"dtype": "fp16", "batch": 16, "queries": 64, "head_dim": 160, "layers": 16, "cache": "cold"}
    times = {"fused_ms": 1.0, "copy_ms": 0.8, "flash_ms": 1.0, "unfused_ms": 2.5}
    return row | {"speedup": 2.5, "of_copy": 0.8} | times | changes


def ours(**changes: Any) -> dict[str, Any]:
    row = {"model": "sd15", "batch": 1, "steps": 25, "variant": "engine", "who": "engine", "indicator": False}
    return row | {"images_per_s": 2.0, "over_compiled": 1.2, "over_like": 1.1, "of_peak": 0.3} | changes


def images(model: str, batches: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    """A whole measurement, `changes` in the row of the last batch with the indicator and four steps."""
    found: dict[str, Any] = {}
    for batch in batches:
        for indicator, ending in ((False, ""), (True, "_indicator")):
            rows = [ours(model=model, batch=batch, steps=steps, indicator=indicator) for steps in (25, 4)]
            found[f"{model}_{batch}{ending}"] = {"rows": rows}
    found[f"{model}_{batches[-1]}_indicator"]["rows"][-1] |= changes
    return found


def bars(sections: dict[str, Any]) -> list[tuple[float | None, bool | None]]:
    return [(bar["worst"], bar["met"]) for bar in summary.bars(sections)]


def test_the_kernel_is_judged_over_the_sum_of_the_layers_at_many_rows() -> None:
    # One layer alone is below both bars.
    slow = {"layers": 1, "fused_ms": 1.0, "unfused_ms": 1.0, "copy_ms": 0.1, "speedup": 1.0, "of_copy": 0.1}
    rows = [speed(layers=15), speed(**slow), speed(batch=2, unfused_ms=1.0, copy_ms=0.1)]
    found = bars({"attention": {"rows": rows}})
    assert found[1] == (pytest.approx(38.5 / 16), True)
    assert found[2] == (pytest.approx(12.1 / 16), True)
    found = bars({"attention": {"rows": [*rows, speed(cache="warm", unfused_ms=1.9)]}})
    assert found[1] == (pytest.approx(1.9), False)
    assert bars({"attention": {"rows": rows[:1]}})[1] == (None, None)  # not all of the layers


def test_images_are_judged_by_the_faster_engine_at_every_batch() -> None:
    whole = images("sd15", summary.SD15) | images("sdxl", summary.SDXL)
    assert bars(whole)[3:] == [(1.1, True), (0.3, False), (1.1, True)]
    slower = images("sd15", summary.SD15, over_like=0.9, of_peak=0.45)
    assert bars(slower)[3:5] == [(0.9, False), (0.45, True)]
    slower["sd15_16_indicator"]["rows"].append(ours(batch=16, steps=4, indicator=True, images_per_s=3.0))
    assert bars(slower)[3] == (1.1, True)
    part = images("sd15", (1, 8))
    assert bars(part)[3:5] == [(1.1, None), (0.3, None)]
    part["sd15_1"]["rows"][0]["over_like"] = 0.5
    assert bars(part)[3] == (0.5, False)
    # Without a compiled baseline nothing is compared.
    assert bars({"sd15_1": {"rows": [ours(over_like=None)]}})[3] == (None, None)


def test_a_check_that_fails_or_stops_is_no_pass() -> None:
    good = {"rows": [{"op": "guided_step", "error": 0.0, "passed": True}], "complete": True}
    assert bars({"numerics": good, "identity": good})[0] == (0, True)
    assert bars({"numerics": good})[0] == (0, None)
    assert bars({"numerics": good, "identity": good | {"error": "stopped"}})[0] == (1, False)
    assert bars({"numerics": good, "identity": {"rows": [{"variant": "v", "raised": "E"}]}})[0] == (1, False)
    assert bars({"numerics": good, "identity": {"rows": [{"mix": "alone", "passed": False}]}})[0] == (1, False)
    assert bars({}) == [(0, None), *[(None, None)] * 5]


def test_the_page_and_the_picture_show_what_was_found() -> None:
    versions = {"torch": "2"}
    about = {"gpu": "X", "architecture": "sm_90", "host": "h", "commit": "c", "source": "s", "versions": versions}
    sections = {
        "attention": {"rows": [speed(device="X")], "facts": {"unit": "ms"}, "left_out": ["batch 16: no time left"]},
        "races": {"rows": [], "error": "stopped after 25 s"},
        **images("sd15", (1,)),
    }
    tree = {"machine": about | {"missing": ["m"]}, "sections": sections, "bars": summary.bars(sections)}
    page = summary.markdown(tree)
    for words in ("X (sm_90)", "- missing: m", "not measured", "NOT MET", "Stopped: stopped after 25 s"):
        assert words in page
    assert "left out: batch 16: no time left" in page
    assert "## The 16 cross-attention layers of a step together" in page
    assert "| fp16 | 16 | 64 | 160 |" in page
    assert "device" not in page  # once in the head, not in each row
    drawn = ElementTree.fromstring(picture.svg(summary.image_rows(sections), "A & B"))
    texts = [element.text or "" for element in drawn.iter() if element.tag.endswith("text")]
    assert "A & B" in texts
    assert "sd15, batch 1, 25 steps" in texts
    assert "2 (1.20x)" in texts
    assert len([element for element in drawn.iter() if element.tag.endswith("rect")]) == 1 + 4
    assert "nothing is a measurement" in summary.markdown(tree | {"notes": {"dry run": "nothing is a measurement"}})


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


def test_a_variant_that_is_not_compiled_yet_waits_for_the_section_that_compiles(tmp_path: Path) -> None:
    key = {"commit": "a"}
    compiling = Record("sd15_1_compile", tmp_path / "sd15_1_compile.json", 9, key=key)
    compiling.facts["sdpa"] = "flash"
    compiling.add(variant=variants.PLAIN[2].name)
    record = Record("sd15_1", tmp_path / "sd15_1.json", 440, key=key)
    kept = trajectories.compiled_before(record, "sd15", 1)
    assert kept == {"variants": [variants.PLAIN[2].name], "sdpa": "flash"}
    assert trajectories.has_time(record, rig.real(), variants.PLAIN[2], kept["variants"])
    assert not trajectories.has_time(record, rig.real(), variants.PLAIN[4], kept["variants"])
    assert "not compiled yet" in record.left_out[0]
    assert trajectories.compiled_before(record, "sd15", 8) == {}


def test_ratios_are_to_the_compiled_baselines_of_the_same_run() -> None:
    found = variants.INDICATED + variants.BASELINES
    engine = next(variant for variant in found if variant.ours and variant.mode is not None)
    baselines = trajectories.baselines_of(engine, found)
    assert {each.name for each in baselines["over_compiled"]} == {
        "diffusers without indicator, default",
        "diffusers without indicator, max-autotune",
    }
    assert {each.who for each in baselines["over_like"]} == {"module"}
    assert all(each.mode is not None for each in baselines["over_like"])


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


class Traced(rig.Fake):
    """torch.compile up to its graphs: each variant must be one, without a break."""

    def compiled(self, module: Any, mode: str) -> Any:
        torch._dynamo.config.cache_size_limit = rig.COMPILED_SHAPES
        return torch.compile(module, backend="eager", fullgraph=True, dynamic=False)

    def sdpa(self, order: str) -> AbstractContextManager[Any]:
        return rig.Rig.sdpa(self, order)  # a CPU takes the last of each order

    def fastest_convolutions(self) -> AbstractContextManager[Any]:
        return rig.Rig.fastest_convolutions(self)

    def new_call(self) -> None:
        rig.Rig.new_call(self)


@pytest.mark.slow(reason="tracing takes half a minute")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call")
@pytest.mark.parametrize("name", list(models.ARCHITECTURES))
def test_whatever_is_compiled_is_one_graph_that_serves_all_calls(name: str) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    used = Traced(dry=True, device="cpu", steps=(2, 1), tiny=True)
    workshop = variants.Workshop(models.ARCHITECTURES[name](tiny=True), 2, used)
    stats = torch._dynamo.utils.counters["stats"]
    for variant in variants.PLAIN + variants.INDICATED:
        if variant.mode in ("default", variants.ENGINE_MODE):
            made = partial(trajectories.settings(variant, used, "cudnn"), workshop.images(variant))
            made(2)
            graphs = stats["unique_graphs"]
            made(2)
            made(1)
            assert stats["unique_graphs"] == graphs
    assert graphs <= 2 * 4  # a UNet and a decoder each


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
