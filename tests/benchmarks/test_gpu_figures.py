"""What the GPU benchmark counts, compares and judges, with rows that are made up; and what it compiles."""

from collections import Counter
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from gpu_parts import models, picture, rig, shapes, summary, timing, trajectories, variants
from gpu_parts.record import Record


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
    row = {"model": "sd15", "batch": 1, "steps": 25, "who": "engine", "indicator": False}
    row |= {"images_per_s": 2.0, "over_compiled": 1.2, "over_like": 1.1, "of_peak": 0.3} | changes
    return row | {"variant": f"engine {row['indicator']}"}


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


class Refusing(rig.Fake):
    """One order of attention kernels doesn't take the shapes."""

    def sdpa(self, order: str) -> AbstractContextManager[Any]:
        if order == "cudnn":
            raise RuntimeError("no execution plan")
        return super().sdpa(order)


class Workshop:
    def images(self, variant: variants.Variant) -> variants.Images:
        return lambda steps: None


def test_attention_that_refuses_the_shapes_is_left_out_of_the_choice(tmp_path: Path) -> None:
    record = Record("sd15_1", tmp_path / "sd15_1.json", 440)
    chosen = trajectories.chosen_sdpa(record, Refusing(dry=True, device="cpu"), Workshop())
    assert chosen in (rig.OWN, "flash")
    assert record.facts["sdpa_ms"].keys() == {rig.OWN, "flash"}
    assert record.left_out == ["attention by cudnn: no execution plan"]
