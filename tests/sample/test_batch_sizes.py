"""Which batch sizes calls have where the batch size changes bits."""

import logging
from pathlib import Path
from typing import Any

import pytest
from fake_engine import LATENT_SHAPE, FakeEngine, fake_bundle

from ddm_rt.bundle import Bundle
from ddm_rt.engine.user_cache import CACHE
from ddm_rt.errors import DdmError
from ddm_rt.sample.loop import batch_sizes
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


def test_the_next_process_takes_the_answer_of_this_ones_probe(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    probes = []
    real = batch_sizes.probe

    def probe(*arguments: Any) -> Any:
        probes.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(batch_sizes, "probe", probe)
    monkeypatch.setenv(CACHE, str(tmp_path))

    def buckets(threads: int = 1) -> tuple[int, ...]:
        return Pipeline.load(tiny_bundle, "onnxruntime", threads=threads).buckets

    first = buckets()
    assert buckets() == first
    assert len(probes) == 1
    buckets(threads=2)
    assert len(probes) == 2, "with other threads a backend may round otherwise"
    for path in (tmp_path / "batch-sizes").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert buckets() == first
    assert len(probes) == 3
    assert "it is broken, or was not made here" in caplog.text


def test_of_an_engine_that_cannot_say_what_its_bits_depend_on_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    assert Pipeline(fake_bundle(), FakeEngine()).buckets
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_done_without(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE, str(tmp_path / "file"))
    with caplog.at_level(logging.INFO, "ddm_rt"):
        assert Pipeline.load(tiny_bundle, "onnxruntime", threads=1).buckets
    assert "which batch sizes give the same bits is found at every start" in caplog.text
