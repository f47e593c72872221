"""Bundles of steered runs: quotas, scopes and the null code work over them, and graphs are torch's."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tolerances import IMAGE_GREY_LEVELS, PRECISION_REL

from ddm_rt import graph_files
from ddm_rt.bundle import Bundle
from ddm_rt.config import Balance, Precision
from ddm_rt.engine import backends
from ddm_rt.errors import DdmError
from ddm_rt.export.diffusers import export_diffusers
from ddm_rt.export.precision import quantize
from ddm_rt.export.precision.convert import convert
from ddm_rt.export.run import export_run
from ddm_rt.model.checkpoint.importing import import_run
from ddm_rt.model.steering import packed_width
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.train.distill.run import distill
from ddm_rt.train.steering.run import steer


def pipeline(bundle: Bundle, backend: str = "onnxruntime", **more: object) -> Pipeline:
    return Pipeline(bundle, backends.load(bundle, backend, threads=1), **more)


@pytest.fixture(scope="module")
def plain(plain_x0_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of the run that was steered."""
    return export_run(plain_x0_run, tmp_path_factory.mktemp("plain") / "bundle")


def test_a_bundle_says_what_its_conditioner_gives(steered_bundle: Bundle) -> None:
    config = steered_bundle.config
    assert [spec.name for spec in config.cond] == ["text_tokens", "steering", "code_scale"]
    assert config.cond[1].shape == (packed_width(steered_bundle.model.steering),)
    assert steered_bundle.codes.num_codes == 2
    training = steered_bundle.training
    assert training.run.steering is not None
    provenance = steered_bundle.index.provenance["training"]
    assert provenance["steering"] == training.run.steering.model_dump(mode="json")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_without_balance_images_are_the_plain_model_s(steered_bundle: Bundle, plain: Bundle, backend: str) -> None:
    request = {"n": 3, "seed": 2, "balance": Balance.OFF}
    found = pipeline(steered_bundle, backend).generate(**request)
    wanted = pipeline(plain, backend).generate(**request)
    assert set(found.codes) == {-1}
    assert np.array_equal(found.images, wanted.images)


def test_codes_are_handed_out_by_quota_and_move_the_images(steered_bundle: Bundle) -> None:
    pipe = pipeline(steered_bundle)
    found = pipe.generate(n=6, seed=2)
    assert Counter(found.codes) == {0: 3, 1: 3}
    other = pipe.generate(n=6, seed=2, codes=[1 - code for code in found.codes])
    assert all((a != b).any() for a, b in zip(found.images, other.images, strict=True))


def test_a_scope_keeps_its_counts_over_requests(steered_bundle: Bundle, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "counts.ledger")
    pipe = pipeline(steered_bundle, ledger=ledger)
    drawn = [code for _ in range(4) for code in pipe.generate(n=1, scope="page").codes]
    assert Counter(drawn) == {0: 2, 1: 2}


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_images_are_the_same_on_every_backend(steered_bundle: Bundle, backend: str) -> None:
    wanted = pipeline(steered_bundle).generate(n=4, seed=3).images.astype(int)
    assert np.abs(pipeline(steered_bundle, backend).generate(n=4, seed=3).images - wanted).max() <= IMAGE_GREY_LEVELS


def test_a_steered_model_has_one_branch(steered_bundle: Bundle) -> None:
    assert steered_bundle.config.sampling.indicator_guidance_scale == 1.0


def test_in_half_precision_the_same_codes_give_nearly_the_same_images(steered_bundle: Bundle, tmp_path: Path) -> None:
    half = convert(steered_bundle, tmp_path / "half", Precision.FP16)
    wanted = pipeline(steered_bundle).generate(n=4, seed=3).images.astype(int)
    found = pipeline(half).generate(n=4, seed=3).images
    assert np.abs(found - wanted).mean() <= 255 * PRECISION_REL["fp16"][1]


def test_in_int8_the_last_convolution_stays_as_it_is(steered_bundle: Bundle, plain: Bundle) -> None:
    """Its errors are averaged out by nothing, and steering stands behind it."""
    kept = []
    for bundle in (steered_bundle, plain):
        path = bundle.graphs["denoiser"]
        kept.append({layer.key for layer in quantize.layers(graph_files.read_model(path), path)})
    assert kept[0] == kept[1]
    assert kept[0]


def test_it_has_no_student(steered_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DdmError, match="is steered, and a student of it would be steered twice"):
        distill(steered_run, tmp_path / "student")


def test_it_becomes_no_diffusers_pipeline(steered_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DdmError, match="only runs with one become a pipeline"):
        export_diffusers(steered_run, tmp_path / "pipe")


@pytest.mark.slow(reason="traces a checkpoint, which takes half a minute")
def test_a_checkpoint_s_bundle_is_steered_and_its_null_code_is_the_checkpoint(
    checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    contrast = ("a bar", "a white circle on black")
    run = steer(checkpoints["sd15"], tmp_path / "run", contrast=contrast, images=2, strength=20.0)
    import_run(checkpoints["sd15"], tmp_path / "imported")
    plain, tokens = (export_run(made, tmp_path / f"{made.name}.bundle") for made in (tmp_path / "imported", run))
    ready = export_run(run, tmp_path / "ready", precompute_kv=True)
    request = {"n": 2, "seed": 3, "num_steps": 4, "prompt": "a bar"}
    wanted = pipeline(plain).generate(**request).images.astype(int)
    for bundle in (tokens, ready):
        off = pipeline(bundle).generate(**request, balance=Balance.OFF).images
        assert np.abs(off - wanted).max() <= IMAGE_GREY_LEVELS
        steered = pipeline(bundle).generate(**request).images
        assert np.abs(steered.astype(int) - wanted).max() > IMAGE_GREY_LEVELS
        again = pipeline(bundle, "torch").generate(**request).images
        assert np.abs(again - steered.astype(int)).max() <= IMAGE_GREY_LEVELS
