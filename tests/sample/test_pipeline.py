"""The pipeline: codes, seeds, manifests and errors on a fake engine; bytes on the real ones too."""

import dataclasses
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import LATENT_SHAPE, FakeEngine, Quirk, fake_bundle
from fake_text import text_bundle
from PIL import Image

from ddm_rt.bundle import Bundle
from ddm_rt.config import Family
from ddm_rt.errors import DdmError
from ddm_rt.sample.generation import contact_sheet
from ddm_rt.sample.loop.batch_sizes import CANDIDATES
from ddm_rt.sample.loop.noise import Stream, derive, normal
from ddm_rt.sample.pipeline import Cancelled, Pipeline

QUIRKS: tuple[Quirk, ...] = ("none", "batch size", "position", "last position", "neighbours", "size 1")


def pipeline_of(quirk: Quirk = "none", **bundle: Any) -> Pipeline:
    return Pipeline(fake_bundle(**bundle), FakeEngine(quirk))


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"sampler": "dpm++2m"}, {"indicator_guidance_scale": 1.0}])
@pytest.mark.parametrize("quirk", QUIRKS)
def test_bytes_do_not_depend_on_the_batch(quirk: Quirk, options: dict[str, Any]) -> None:
    """Alone, in batches of other sizes, among other neighbours and after a restart."""
    codes = [0, -1, 1, 3, 2, 2, -1, 0, 1, 3, 0]
    whole = pipeline_of(quirk, **options).generate(n=11, seed=9, codes=codes)
    assert len(np.unique(whole.images.reshape(11, -1), axis=0)) == 11
    restarted = pipeline_of(quirk, **options)
    for i, code in enumerate(codes):
        alone = restarted.generate(seed=derive(9, i), codes=[code])
        assert alone.images[0].tobytes() == whole.images[i].tobytes()
    for n in (2, 5, 7):
        first = restarted.generate(n=n, seed=9, codes=codes[:n])
        assert first.images.tobytes() == whole.images[:n].tobytes()
    neighbours = restarted.generate(n=70, seed=9, codes=[codes[0], *([1] * 69)])
    assert neighbours.images[0].tobytes() == whole.images[0].tobytes()


@pytest.mark.parametrize("quirk", QUIRKS[1:])
def test_bytes_would_depend_on_the_batch_without_the_probe(quirk: Quirk) -> None:
    pipeline = pipeline_of(quirk)
    pipeline._sizes.groups[LATENT_SHAPE] = (CANDIDATES,)
    whole = pipeline.generate(n=11, seed=9)
    alone = [pipeline.generate(seed=derive(9, i), codes=[code]).images for i, code in enumerate(whole.codes)]
    split_up = pipeline.generate(n=11, seed=9, indicator_guidance_scale=1.0)
    ones = [
        pipeline.generate(seed=derive(9, i), codes=[code], indicator_guidance_scale=1.0).images
        for i, code in enumerate(whole.codes)
    ]
    assert (np.concatenate(alone) != whole.images).any() or (np.concatenate(ones) != split_up.images).any()


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_bytes_do_not_depend_on_the_batch_on_real_backends(tiny_bundle: Bundle, backend: str, tmp_path: Path) -> None:
    codes = [0, -1, 1, 3, 2, 2, -1, 0, 1]
    whole = Pipeline.load(tiny_bundle, backend, threads=1).generate(n=9, seed=4, codes=codes)
    whole.save(tmp_path / "out")
    restarted = Pipeline.load(tiny_bundle.path, backend, threads=1)
    for i, code in enumerate(codes):
        alone = restarted.generate(seed=derive(4, i), codes=[code])
        assert alone.images[0].tobytes() == whole.images[i].tobytes()
        again = restarted.replay(tmp_path / "out" / "manifest.json", index=i)
        assert again.images[0].tobytes() == whole.images[i].tobytes()
    first = restarted.generate(n=4, seed=4, codes=codes[:4])
    assert first.images.tobytes() == whole.images[:4].tobytes()


@pytest.mark.parametrize(
    ("quirk", "expected"), [("none", (1, 2, 4, 8, 16, 32, 64)), ("batch size", (64,)), ("position", (1,))]
)
def test_calls_have_probed_sizes(quirk: Quirk, expected: tuple[int, ...]) -> None:
    pipeline = pipeline_of(quirk)
    assert pipeline.buckets == expected
    pipeline.engine.denoised.clear()
    pipeline.generate(n=37)
    assert set(pipeline.engine.denoised) <= set(expected)


@pytest.mark.parametrize(
    ("pixels", "expected"), [(None, (1, 2, 4, 8, 16, 32, 64)), (5 * 8 * 8, (1, 2, 4)), (8 * 8 - 1, (1,))]
)
def test_a_call_of_a_vae_makes_as_many_pixels_as_the_engine_says(
    tmp_path: Path, pixels: int | None, expected: tuple[int, ...]
) -> None:
    """The fake engine counts rows: calls are as large as they may be, and never one by one where they needn't."""
    bundle = text_bundle(tmp_path)
    latent = dataclasses.replace(bundle, config=bundle.config.model_copy(update={"family": Family.SD}))
    engine = FakeEngine()
    engine.max_pixels = pixels  # type: ignore[assignment]
    pipeline = Pipeline(latent, engine)
    assert pipeline.buckets == expected
    engine.denoised.clear()
    pipeline.generate(n=16, prompt="a nurse")
    assert min(engine.denoised) == min(2 * 16, expected[-1])


def test_images_are_what_the_formula_says() -> None:
    """One step of the toy denoiser, which predicts x0, by hand."""
    generation = pipeline_of(num_codes=0, num_steps=1, sampler="dpm++2m").generate(seed=3)
    z = normal(np.array([3], np.uint64), 0, Stream.INITIAL, LATENT_SHAPE)[0].astype(np.float64)
    x0 = np.clip(0.5 * z + 0.3 * np.sin(1.0) + 999 / 4000, -1, 1)
    grey = np.empty((8, 8))
    for c in range(4):
        grey[c // 2 :: 2, c % 2 :: 2] = x0[c]
    expected = np.rint((grey + 1) * 127.5)
    assert generation.images.shape == (1, 8, 8, 3)
    assert generation.images.dtype == np.uint8
    assert generation.codes == (-1,)
    for channel in range(3):
        np.testing.assert_array_equal(generation.images[0, :, :, channel], expected)


def test_noise_and_codes_of_a_request_are_prefixes_of_a_longer_one() -> None:
    pipeline = pipeline_of()
    short, long = pipeline.generate(n=5, seed=1), pipeline.generate(n=90, seed=1)
    assert long.codes[:5] == short.codes
    assert long.images[:5].tobytes() == short.images.tobytes()


def test_a_result_has_the_seed_that_makes_it_again() -> None:
    pipeline = pipeline_of()
    made = pipeline.generate(n=2, seed=7)
    assert made.seed == 7
    np.testing.assert_array_equal(pipeline.generate(n=2, seed=made.seed).images, made.images)


def test_uniform_target_fills_the_tree_evenly() -> None:
    generation = pipeline_of().generate(n=80)
    assert Counter(generation.codes) == dict.fromkeys(range(4), 20)
    tops = [image["top_code"] for image in generation.manifest["images"]]
    for n in range(1, 81):
        assert abs(tops[:n].count(0) - n / 2) < 1
    assert all(code % 2 == top for code, top in zip(generation.codes, tops, strict=True))


def test_target_gives_the_shares() -> None:
    generation = pipeline_of().generate(n=50, target="code:0=.3,code:1=.7")
    assert Counter(code % 2 for code in generation.codes) == {0: 15, 1: 35}
    assert generation.manifest["target"] == "code:0=.3,code:1=.7"


def test_null_codes_where_balance_is_off_or_nothing_is_there_to_balance() -> None:
    for pipeline, options in ((pipeline_of(), {"balance": "off"}), (pipeline_of(num_codes=0), {})):
        generation = pipeline.generate(n=3, **options)
        assert generation.codes == (-1, -1, -1)
        assert generation.manifest["target"] is None
        assert [image["top_code"] for image in generation.manifest["images"]] == [-1] * 3
        assert set(pipeline.engine.conditioned) <= {-1, 0, 1, 2, 3}


def test_conditioner_runs_once_per_code() -> None:
    pipeline = pipeline_of()
    pipeline.generate(n=20)
    pipeline.generate(n=20, seed=5)
    assert sorted(pipeline.engine.conditioned) == [-1, 0, 1, 2, 3]


def rows_per_step(**options: Any) -> int:
    pipeline = pipeline_of()
    pipeline.buckets  # noqa: B018 - the probe has calls of its own
    pipeline.engine.denoised.clear()
    pipeline.generate(n=8, num_steps=3, **options)
    return sum(pipeline.engine.denoised) // 3


def test_branches_that_count_nothing_are_not_computed() -> None:
    assert rows_per_step() == 16
    assert rows_per_step(indicator_guidance_scale=1.0) == 8
    assert rows_per_step(indicator_guidance_scale=0.0) == 8
    assert rows_per_step(balance="off") == 8
    assert rows_per_step(codes=[-1, -1, -1, -1, 0, 1, 2, 3]) == 12


def test_no_guidance_is_the_null_code() -> None:
    pipeline = pipeline_of()
    null = pipeline.generate(n=4, balance="off")
    assert pipeline.generate(n=4, indicator_guidance_scale=0.0).images.tobytes() == null.images.tobytes()
    assert pipeline.generate(n=4).images.tobytes() != null.images.tobytes()


def test_other_image_sizes() -> None:
    pipeline = pipeline_of()
    assert pipeline.generate(n=2, height=12, width=20).images.shape == (2, 12, 20, 3)


def test_progress_and_cancel() -> None:
    seen: list[tuple[int, int]] = []
    pipeline_of().generate(n=40, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 8) for i in range(1, 9)]  # 40 images of two branches in two batches, four steps each
    with pytest.raises(Cancelled):
        pipeline_of().generate(cancel=lambda: True)


def test_manifest_holds_what_made_each_image() -> None:
    generation = pipeline_of().generate(n=3, seed=2**64 - 1, num_steps=7, sampler="euler")
    manifest = generation.manifest
    assert list(manifest) == [
        *("schema", "bundle_id", "calibration_id", "request", "target", "sampler", "num_steps"),
        *("backend", "precision", "threads", "versions", "images"),
    ]
    assert (manifest["schema"], manifest["sampler"], manifest["num_steps"]) == (1, "euler", 7)
    assert manifest["images"][0] == {
        "file": "00000.png",
        "seed": 2**64 - 1,
        "code": generation.codes[0],
        "top_code": generation.codes[0] % 2,
        "position": None,
    }
    assert [image["seed"] for image in manifest["images"]] == [derive(2**64 - 1, i) for i in range(3)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": "ddpm", "num_steps": 6, "indicator_guidance_scale": 2.5},
        {"balance": "off", "height": 12},
        {"codes": [1, -1, 2, 0, 3]},
        {"target": "code:1=1"},
    ],
)
def test_replay_gives_the_same_bytes(options: dict[str, Any], tmp_path: Path) -> None:
    made = pipeline_of(eta=0.5).generate(n=5, seed=8, **options)
    made.save(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    assert json.loads(path.read_text()) == made.manifest
    pipeline = pipeline_of(num_steps=9, indicator_guidance_scale=7.0)  # replay takes nothing from the defaults
    again = pipeline.replay(path)
    assert again.images.tobytes() == made.images.tobytes()
    assert again.manifest == made.manifest
    one = pipeline.replay(made.manifest, index=3)
    assert one.images.tobytes() == made.images[3:4].tobytes()
    assert one.manifest["images"] == made.manifest["images"][3:4]


def test_replay_says_when_bytes_may_differ(caplog: pytest.LogCaptureFixture) -> None:
    manifest = pipeline_of().generate().manifest
    pipeline_of().replay(manifest)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    pipeline_of().replay(manifest | {"threads": 3})
    assert "threads" in caplog.text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"bundle_id": "cd" * 32}, "bundle_id"),
        ({"bundle_id": None}, "bundle_id"),
        ({"schema": 2}, "schema"),
        ({"images": []}, "images"),
        ({"images": [{"file": "../../x.png", "seed": 0, "code": 0, "top_code": 0}]}, "file"),
        ({"images": [{"file": "00000.png", "seed": 2**64, "code": 0, "top_code": 0}]}, "seed"),
        ({"images": [{"file": "00000.png", "seed": 0, "code": 4, "top_code": 0}]}, "images"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 5000}, "num_steps"),
        ({"sampler": "magic"}, "sampler"),
        ({"request": {}}, "request"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_bad_manifest_names_the_field(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(pipeline_of().generate().manifest | change))
    with pytest.raises(DdmError, match=field):
        pipeline_of().replay(path)


def test_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DdmError, match="cannot be read"):
            pipeline_of().replay(path)
    (tmp_path / "cut.json").write_text('{"schema": 1, "bun')
    with pytest.raises(DdmError, match=r"cut\.json"):
        pipeline_of().replay(tmp_path / "cut.json")
    manifest = pipeline_of().generate().manifest
    for index in (-1, 1):
        with pytest.raises(DdmError, match="index"):
            pipeline_of().replay(manifest, index=index)


def test_save_writes_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = pipeline_of().generate(n=3)
    out = generation.save(tmp_path / "deep" / "out")
    assert sorted(file.name for file in out.iterdir()) == [
        *("00000.png", "00001.png", "00002.png", "contact_sheet.png", "manifest.json")
    ]
    for i, image in enumerate(generation.images):
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{i:05d}.png")), image)
    with pytest.raises(DdmError, match="not an empty directory"):
        generation.save(out)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DdmError, match="No space left"):
        generation.save(tmp_path / "other")
    assert [file.name for file in tmp_path.iterdir()] == ["deep"]


def test_contact_sheet_holds_every_image() -> None:
    images = np.zeros((5, 8, 6, 3), np.uint8)
    sheet = contact_sheet(images)
    assert sheet.shape == (2 * 10 + 2, 3 * 8 + 2, 3)
    assert (sheet == 0).all(axis=2).sum() == 5 * 8 * 6
    assert contact_sheet(np.zeros((300, 4, 4, 3), np.uint8)).shape == (16 * 6 + 2, 16 * 6 + 2, 3)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"n": 0}, "n is 0"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 1001}, "num_steps"),
        ({"sampler": "magic"}, "sampler .*ddpm, ddim, euler, dpm"),
        ({"balance": "maybe"}, "balance .*on, off, auto"),
        ({"height": 10}, "height .*multiple of 4"),
        ({"width": 0}, "width"),
        ({"width": -8}, "width"),
        ({"target": "women"}, "target"),
        ({"target": "code:0=.5"}, "target"),
        ({"target": "code:0=1", "balance": "off"}, "target"),
        ({"target": "code:0=1", "codes": [0]}, "target"),
        ({"codes": [0, 1]}, "codes"),
        ({"codes": [4]}, "codes"),
        ({"codes": [-2]}, "codes"),
        ({"codes": [0], "balance": "off"}, "balance"),
        ({"codes": [0], "balance": "on"}, "balance"),
        ({"indicator_guidance_scale": -1.0}, "indicator_guidance_scale"),
        ({"indicator_guidance_scale": float("nan")}, "indicator_guidance_scale"),
        ({"guidance_scale": 3.0}, "guidance_scale"),
        ({"prompt": "a digit"}, "prompt"),
        ({"prompt": ["", "a digit"]}, "prompt"),
        ({"negative_prompt": "blurry"}, "negative_prompt"),
        ({"scope": ""}, "scope .*printable"),
        ({"scope": "two\nlines"}, "scope .*printable"),
        ({"scope": "\ud800"}, "scope .*printable"),
        ({"scope": "x" * 201}, "scope .*200"),
        ({"scope": "today", "balance": "off"}, "scope .*no quota"),
        ({"scope": "today", "codes": [0]}, "scope .*no quota"),
        ({"shuffle": True, "codes": [0]}, "shuffle .*no quota"),
    ],
)
def test_bad_requests_name_the_argument(options: dict[str, Any], field: str) -> None:
    pipeline = pipeline_of()
    with pytest.raises(DdmError, match=field):
        pipeline.generate(**options)
    assert not pipeline.engine.denoised


def test_empty_prompts_are_no_prompts() -> None:
    pipeline = pipeline_of()
    expected = pipeline.generate().images.tobytes()
    for prompt in (None, "", [""], []):
        assert pipeline.generate(prompt, negative_prompt="").images.tobytes() == expected


def test_bundles_that_cannot_serve_the_request() -> None:
    with pytest.raises(DdmError, match="no codes"):
        pipeline_of(num_codes=0).generate(balance="on")
    with pytest.raises(DdmError, match="null code"):
        pipeline_of(num_codes=0).generate(codes=[0])


def test_unknown_backend_lists_the_choices(tiny_bundle: Bundle) -> None:
    with pytest.raises(DdmError, match="onnxruntime"):
        Pipeline.load(tiny_bundle, backend="magic")
