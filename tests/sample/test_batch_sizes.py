"""Which batch sizes calls have where the batch size changes bits."""

import logging

import pytest
from fake_engine import LATENT_SHAPE, FakeEngine, fake_bundle

from ddm_rt.errors import DdmError
from ddm_rt.sample.loop.batch_sizes import Mode
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request


@pytest.mark.parametrize(("mode", "size", "other"), [("throughput", 64, "latency"), ("latency", 1, "throughput")])
def test_where_the_batch_size_changes_bits_the_mode_decides_and_the_manifest_says_which(
    mode: str, size: int, other: str
) -> None:
    engine = FakeEngine("batch size")
    pipeline = Pipeline(fake_bundle(), engine, mode=Mode(mode))
    with pipeline.prepare(Request(n=3, seed=5)) as request:
        assert request.manifest.bucket == (None if mode == "throughput" else size), "also before anything was probed"
    _ = pipeline.buckets
    engine.denoised.clear()
    made = pipeline.generate(n=3, seed=5)
    assert set(engine.denoised) == {size}
    assert made.manifest.get("bucket") == (None if mode == "throughput" else size)
    elsewhere = Pipeline(fake_bundle(), FakeEngine("batch size"), mode=Mode(other))
    assert elsewhere.generate(n=3, seed=5).images.tobytes() != made.images.tobytes()
    assert elsewhere.replay(made.manifest).images.tobytes() == made.images.tobytes()


def test_a_replay_where_the_bucket_is_not_there_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    made = Pipeline(fake_bundle(), FakeEngine("batch size"), mode=Mode.LATENCY).generate(n=1)
    with caplog.at_level(logging.WARNING, "ddm_rt"):
        pipeline = Pipeline(fake_bundle(), FakeEngine())
        pipeline._sizes.groups[LATENT_SHAPE] = ((2, 4, 8),)
        pipeline.replay(made.manifest)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["the manifest's bucket is 1; batch sizes here are ((2, 4, 8),): bytes may differ"]


def test_a_manifest_of_the_default_mode_names_no_bucket() -> None:
    assert "bucket" not in Pipeline(fake_bundle(), FakeEngine()).generate(n=1).manifest


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(DdmError, match="mode is 'fast'; expected one of: throughput, latency"):
        Pipeline.load("digits", mode="fast")
