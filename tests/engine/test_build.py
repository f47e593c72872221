"""Builds of TensorRT-RTX plans: real ones on this machine, without a GPU; and what happens when they can't be.

A build is no run: nothing here executes a plan.
"""

import dataclasses
import resource
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import pytest

from ddm_rt import graph_files
from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.tensorrt import build, build_process, flavours, plans
from ddm_rt.engine.tensorrt.build_worker import Request
from ddm_rt.errors import BackendUnavailable, DdmError
from ddm_rt.runtime import TextSpec

pytest.importorskip("tensorrt_rtx")

RTX = flavours.TABLE["tensorrt-rtx"]
SM_89 = build.Target("sm_89", plans.NO_GPU)


ALL_BATCHES = build.default_batch(RTX)


def options_of(bundle: Bundle, *batch: plans.Range) -> plans.Options:
    return build.options(bundle.config, batch or ALL_BATCHES)


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    return Bundle.load(shutil.copytree(bundle.path, folder / "bundle"))


LATENT = ("denoiser", "decoder")


def batches_of(engine: plans.EngineFile, tensor: str) -> list[tuple[int, ...]]:
    """Batch sizes of each profile: the least, the best, the largest."""
    return [tuple(shape[0] for shape in profile[tensor]) for profile in engine.profiles]


def test_all_three_graphs_are_built_and_keyed(built: Bundle, tiny_bundle: Bundle) -> None:
    plan = plans.find(built, RTX, flavours.version(RTX), "sm_89", "any GPU of this architecture")
    for name in plans.ENGINES:
        assert plan.engine(name).stat().st_size > 10_000
        assert plan.key.build[name]["peak_rss_mib"] > 50
    latents = {name: batches_of(plan.key.engines[name], "x0" if name == "decoder" else "x_t") for name in LATENT}
    assert latents == {"denoiser": [(1, 8, 32)], "decoder": [(1, 4, 4)]}
    assert batches_of(plan.key.engines["conditioner"], "code") == [(1, 1, 32)]  # int64, as it is in the graph
    assert built.bundle_id == tiny_bundle.bundle_id


@pytest.mark.slow(reason="four real builds; those of `built` are quick")
def test_a_bundle_with_prompts_is_built_with_its_text_encoder(
    latent_bundles: Mapping[str, Bundle], tmp_path: Path
) -> None:
    """The family with most inputs: two tokenizers, pooled text and sizes."""
    bundle = copy_of(latent_bundles["sdxl"], tmp_path)
    plan = build.build(bundle, RTX, SM_89, options_of(bundle)).plan
    assert set(plan.key.engines) == {"text_encoder", *plans.ENGINES}
    ids = ((1, 77), (1, 77), (32, 77))
    assert plan.key.engines["text_encoder"].profiles == ({"input_ids": ids, "input_ids_2": ids},)
    (profile,) = plan.key.engines["conditioner"].profiles
    assert profile.keys() == {"context", "code", "indicator_scale", "text_embeds", "time_ids"}
    assert profile["context"] == ((1, 77, 32), (1, 77, 32), (32, 77, 32))
    assert profile["time_ids"] == ((1, 6), (1, 6), (32, 6))
    found = plans.find(Bundle.load(bundle.path), RTX, flavours.version(RTX), "sm_89", "any GPU of this architecture")
    assert found.engine("text_encoder").stat().st_size > 10_000


@pytest.mark.slow(reason="three real builds; those of `built` are quick")
def test_the_denoiser_is_built_in_half_precision_for_a_card_that_takes_no_other(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    from ddm_rt.export.precision.convert import convert

    half = convert(tiny_bundle, tmp_path / "half", Precision.FP16)
    made = build.build(half, RTX, build.Target("sm_75", plans.NO_GPU), options_of(half))
    assert made.plan.key.parts.options.precision is Precision.FP16
    assert made.plan.key.kernels == "no kernels are shipped for sm_75"
    assert made.plan.engine("denoiser").stat().st_size > 10_000


@pytest.mark.slow(reason="three real builds; those of `built` are quick")
def test_ready_keys_and_values_pass_between_plans_in_half_precision(precomputed_bundle: Bundle, tmp_path: Path) -> None:
    from ddm_rt.export.precision.convert import convert

    half = convert(precomputed_bundle, tmp_path / "half", Precision.FP16)
    made = build.build(half, RTX, SM_89, options_of(half))
    assert made.plan.key.engines.keys() == {"conditioner", "denoiser", "decoder"}


def test_the_kernels_lie_beside_the_plan(built: Bundle) -> None:
    pytest.importorskip("triton")
    from ddm_rt.kernels.pack import read_pack

    plan = plans.find(built, RTX, flavours.version(RTX), "sm_89", "any")
    assert plan.key.kernels is None
    pack = read_pack(plan.path / plans.KERNELS)
    assert pack.cubin(pack.find("guided_step", "sm_89", branches=2, noise=True))


def test_without_the_kernels_compiler_nothing_is_built(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = flavours.find_spec
    monkeypatch.setattr(flavours, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    monkeypatch.setattr(build_process, "run", lambda *_: pytest.fail("something was built"))
    words = r"the package triton is not installed.*pip install 'ddm-rt\[tensorrt-rtx\]'"
    for target in (SM_89, build.Target("sm_75", plans.NO_GPU)):
        with pytest.raises(BackendUnavailable, match=words):
            build.build(tiny_bundle, RTX, target, options_of(tiny_bundle))


def fake_run(request: Request, *_: object) -> build_process.Result:
    request.plan.write_bytes(b"a fake plan")
    return build_process.Result(profiles=(), figures={})


def test_an_up_to_date_plan_is_kept_until_something_changes_on_a_fake_builder(
    built: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_process, "run", fake_run)
    monkeypatch.setattr(build_process, "kernels", lambda *_: "none in this test")
    bundle = copy_of(built, tmp_path)
    plan = bundle.path / "plans" / "tensorrt-rtx-sm_89" / "denoiser.plan"
    before = plan.stat().st_mtime_ns
    assert not build.build(bundle, RTX, SM_89, options_of(bundle)).fresh
    assert plan.stat().st_mtime_ns == before
    small = options_of(bundle, plans.Range(min=1, opt=1, max=2))
    made = build.build(bundle, RTX, SM_89, small)
    assert made.fresh
    assert made.plan.key.parts.options.batch[0].max == 2
    bundle = Bundle.load(bundle.path)
    plan.write_bytes(b"altered")
    assert build.build(bundle, RTX, SM_89, small).fresh
    assert build.build(Bundle.load(bundle.path), RTX, SM_89, small, force=True).fresh
    plans.find(Bundle.load(bundle.path), RTX, flavours.version(RTX), "sm_89", "any")


def test_options_follow_the_bundle(tiny_bundle: Bundle) -> None:
    size = plans.Range(min=16, opt=16, max=32)
    made = build.options(tiny_bundle.config, ALL_BATCHES, size)
    assert made.height == made.width == plans.Range(min=8, opt=8, max=16)  # 2 pixels for each number
    assert made.tokens == plans.Range(min=1, opt=1, max=1)
    assert not made.plain


@pytest.mark.parametrize(
    ("batch", "decoder"),
    [((1, 2, 3), (1, 2, 3)), ((1, 16, 64), (1, 4, 4)), ((8, 8, 8), (1, 4, 4)), ((1, 1, 1), (1, 1, 1))],
)
def test_the_decoder_takes_few_rows_and_always_a_single_one(
    tiny_bundle: Bundle, batch: tuple[int, int, int], decoder: tuple[int, int, int]
) -> None:
    made = options_of(tiny_bundle, plans.Range(**dict(zip(("min", "opt", "max"), batch, strict=True))))
    assert [(axis.min, axis.opt, axis.max) for axis in made.decoder_batch] == [decoder]


@pytest.mark.parametrize("flavour", flavours.TABLE.values(), ids=lambda flavour: flavour.name)
def test_the_default_profile_that_is_tuned_for_the_nearest_size_takes_it(flavour: flavours.Flavour) -> None:
    ranges = build.default_batch(flavour)
    assert [axis.opt for axis in ranges] == {"tensorrt": [2, 8, 32], "tensorrt-rtx": [8]}[flavour.name]
    decoder = {(axis.min, axis.opt, axis.max) for axis in build.decoder_batch(ranges)}
    assert decoder == {"tensorrt": {(1, 2, 4), (1, 4, 4)}, "tensorrt-rtx": {(1, 4, 4)}}[flavour.name]
    for size in range(1, 33):
        nearest = min(ranges, key=lambda axis: abs(axis.opt - size))
        assert nearest.min <= size <= nearest.max


def test_contexts_are_as_long_as_the_tokenizers_say(tiny_bundle: Bundle) -> None:
    def options(*lengths: int) -> plans.Options:
        text = tuple(TextSpec(tokenizer="tokenizer/t.json", input="ids", max_length=n, pad_id=0) for n in lengths)
        return build.options(tiny_bundle.config.model_copy(update={"text": text}), ALL_BATCHES)

    assert options(77, 77).tokens == plans.Range(min=77, opt=77, max=77)
    with pytest.raises(DdmError, match=r"bundle: field text: lengths \[77, 128\]; expected one"):
        options(77, 128)


@pytest.mark.parametrize(("low", "best", "high"), [(4, 2, 8), (1, 9, 8), (8, 8, 1)])
def test_a_profile_whose_min_exceeds_its_max_is_refused(tiny_bundle: Bundle, low: int, best: int, high: int) -> None:
    axis = plans.Range(min=low, opt=best, max=high)
    with pytest.raises(DdmError, match=f"--batch: min {low}, opt {best}, max {high}; expected min <= opt <= max"):
        build.options(tiny_bundle.config, [axis])


def test_a_size_that_the_model_cannot_have_is_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(DdmError, match="--size: 17 pixels; this bundle's sides are multiples of 2"):
        build.options(tiny_bundle.config, ALL_BATCHES, plans.Range(min=16, opt=17, max=20))


def test_targets_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.cuda, "unavailable", lambda: "no CUDA driver: libcuda.so.1 was not found")
    assert build.targets(RTX, ["sm_89", "sm_86", "sm_89"]) == [SM_89, build.Target("sm_86", plans.NO_GPU)]
    with pytest.raises(DdmError, match=r"--sm: no CUDA driver.*; expected architectures to build for: sm_75, sm_80"):
        build.targets(RTX, [])
    with pytest.raises(BackendUnavailable, match=r"no CUDA driver.*measure on the device"):
        build.targets(flavours.TABLE["tensorrt"], ["sm_90"])


def test_a_timing_cache_is_refused_where_none_is_kept(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DdmError, match="--timing-cache: tensorrt-rtx keeps none"):
        build.build(tiny_bundle, RTX, SM_89, options_of(tiny_bundle), timing_cache=tmp_path / "cache")


def test_a_plan_keeps_its_timing_cache_for_the_next_one_on_a_fake_builder(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_to_cache(request: Request, *_: object) -> build_process.Result:
        assert request.timing_cache is not None
        before = request.timing_cache.read_bytes() if request.timing_cache.exists() else b""
        request.timing_cache.write_bytes(before + b"1")
        return fake_run(request)

    monkeypatch.setattr(build_process, "run", add_to_cache)
    monkeypatch.setattr(build_process, "kernels", lambda *_: "none in this test")
    keeps = dataclasses.replace(RTX, timing_cache=True)
    bundle = copy_of(tiny_bundle, tmp_path)
    first = build.build(bundle, keeps, SM_89, options_of(bundle))
    second = build.build(first.bundle, keeps, SM_89, options_of(bundle), force=True)
    assert (second.plan.path / "timing.cache").read_bytes() == b"111111"  # three engines, twice
    own = tmp_path / "own.cache"
    build.build(second.bundle, keeps, SM_89, options_of(bundle), force=True, timing_cache=own)
    assert own.read_bytes() == b"111"


# A whole bundle, when something goes wrong on the way.


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Iterator[Bundle]:
    """A copy of the tiny bundle that a failed build must leave as it was."""
    bundle = copy_of(tiny_bundle, tmp_path)
    yield bundle
    assert Bundle.load(bundle.path).index == tiny_bundle.index
    assert not (bundle.path / "plans").exists() or list((bundle.path / "plans").iterdir()) == []


def test_interrupted_halfway_nothing_is_left(bundle: Bundle) -> None:
    def interrupt(text: str) -> None:
        if text.startswith("sm_89 denoiser: build"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.build(bundle, RTX, SM_89, options_of(bundle), progress=interrupt)


def test_too_little_disk_is_told_before_the_build(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(bundle.path)._replace(free=3 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DdmError, match=r"3 MiB are free on its disk; the plan needs about \d+ MiB"):
        build.build(bundle, RTX, SM_89, options_of(bundle))


def test_a_disk_that_refuses_the_plan_halfway(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands in for a disk that fills up during the build."""
    popen = subprocess.Popen

    def limited(*args: object, **kwargs: object) -> "subprocess.Popen[str]":
        limit = (300_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        return popen(*args, **kwargs, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))

    monkeypatch.setattr(subprocess, "Popen", limited)
    with pytest.raises(DdmError, match=r"could not be written: conditioner\.plan: File too large"):
        build.build(bundle, RTX, SM_89, options_of(bundle))


def test_weights_that_have_moved_are_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(path: Path) -> onnx.ModelProto:
        model = onnx.load(path)
        if path.name == "denoiser.onnx":
            onnx.external_data_helper.convert_model_to_external_data(model, location="denoiser.onnx.data")
        return model

    monkeypatch.setattr(graph_files, "parse", parse)
    with pytest.raises(DdmError, match=r"denoiser\.onnx\.data: missing or moved"):
        build.build(bundle, RTX, SM_89, options_of(bundle))
