"""Shards of one request: the images of that request, whoever makes them, in what order, and how often."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, factor_bundle, fake_bundle
from fake_text import text_bundle
from shard_reading import check_same, read_shards, read_tars, read_webdataset

from ddm_rt.bundle import Former
from ddm_rt.errors import DdmError
from ddm_rt.sample import shards as module
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.sample.shard_formats import ShardFormat
from ddm_rt.sample.shards import Shard, ShardDirectory, ShardManifest, plan_shards, recorded_manifest, write_shard

FORMATS = [ShardFormat.WEBDATASET, ShardFormat.PARQUET]


@pytest.fixture
def pipeline() -> Pipeline:
    """Of a bundle with four codes in two top codes, on the fake engine."""
    return Pipeline(fake_bundle(), FakeEngine())


def make(
    pipeline: Pipeline, out: Path, size: int, shard_format: ShardFormat = ShardFormat.WEBDATASET, **request: Any
) -> ShardManifest:
    """A run in this process, from the last shard to the first."""
    plan = plan_shards(pipeline, size, shard_format, Request(**request))
    with ShardDirectory.open(out, plan.manifest) as directory:
        for number in reversed(directory.missing()):
            directory.add(last(write_shard(pipeline, out, plan.manifest, number, plan.codes_of(number))))
        return directory.manifest


def last(reports: Iterator[int | Shard]) -> Shard:
    *_, shard = reports
    assert isinstance(shard, Shard)
    return shard


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("shard_format", FORMATS)
@pytest.mark.parametrize(("n", "size"), [(60, 16), (1, 5), (7, 1), (12, 4), (150, 70), (3, 1000)])
def test_shards_are_the_images_of_the_request(
    pipeline: Pipeline, tmp_path: Path, n: int, size: int, shard_format: ShardFormat
) -> None:
    manifest = make(pipeline, tmp_path, size, shard_format, n=n, seed=2**63 + 5)
    assert [shard.count for shard in manifest.shards] == [size] * (n // size) + [n % size] * (n % size > 0)
    check_same(read_shards(tmp_path), pipeline.generate(n=n, seed=2**63 + 5))


@pytest.mark.slow(reason="needs ddm-rt[integration]")
def test_webdataset_reads_the_same(pipeline: Pipeline, tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="needs ddm-rt[integration]")
    make(pipeline, tmp_path, 7, n=30)
    shards = sorted(tmp_path.glob("shard-*.tar"))
    assert [*read_webdataset(shards)] == [*read_tars(shards)]


@pytest.mark.parametrize("shard_format", FORMATS)
def test_the_shipped_bundle(tmp_path: Path, shard_format: ShardFormat) -> None:
    digits = Pipeline.load("digits", backend="onnxruntime", threads=1)
    make(digits, tmp_path, 16, shard_format, n=60, seed=1, num_steps=2)
    rows = read_shards(tmp_path)
    check_same(rows, digits.generate(n=60, seed=1, num_steps=2))
    assert Counter(fields["top_code"] for _, fields in rows) == {0: 30, 1: 30}


def test_the_whole_is_balanced_and_every_prefix_of_shards(pipeline: Pipeline, tmp_path: Path) -> None:
    make(pipeline, tmp_path, 7, n=100, target="code:0=.3,code:1=.7")
    tops = [fields["top_code"] for _, fields in read_shards(tmp_path)]
    assert tops.count(0) == 30
    for stop in range(7, 100, 7):
        assert abs(tops[:stop].count(0) - 0.3 * stop) < 1


@pytest.mark.parametrize("shard_format", FORMATS)
@pytest.mark.parametrize("prompt", ["a nurse", ["a nurse", "a judge", "a woman"]])
def test_prompts_stand_with_their_images(tmp_path: Path, shard_format: ShardFormat, prompt: str | list[str]) -> None:
    pipeline = Pipeline(text_bundle(tmp_path / "bundle"), FakeEngine())
    request = {"prompt": prompt, "n": 10, "leave_alone": ["woman"]}
    make(pipeline, tmp_path / "out", 4, shard_format, **request)
    check_same(read_shards(tmp_path / "out"), pipeline.generate(**request))


@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_shard_made_again_has_the_same_bytes(pipeline: Pipeline, tmp_path: Path, shard_format: ShardFormat) -> None:
    first = make(pipeline, tmp_path, 16, shard_format, n=60)
    before = contents(tmp_path)
    (tmp_path / first.file(1)).unlink()
    (tmp_path / first.file(3)).write_bytes(before[first.file(3)][:-1])
    damaged = bytearray(before[first.file(2)])
    damaged[100] ^= 1
    (tmp_path / first.file(2)).write_bytes(damaged)
    for left in (f".{first.file(0)}.abc", ".manifest.json.abc"):
        (tmp_path / left).write_bytes(b"half")
    plan = plan_shards(pipeline, 16, shard_format, Request(n=60))
    with ShardDirectory.open(tmp_path, plan.manifest) as directory:
        assert directory.missing() == [1, 2, 3]
        assert directory.images_done == 16
    assert make(pipeline, tmp_path, 16, shard_format, n=60) == first
    assert contents(tmp_path) == before


def test_a_shard_appears_when_it_is_whole(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_shards(pipeline, 150, ShardFormat.WEBDATASET, Request(n=150))
    reports = write_shard(pipeline, tmp_path, plan.manifest, 0, plan.codes)
    assert [next(reports), next(reports)] == [64, 128]
    assert [path.name[:7] for path in tmp_path.iterdir()] == [".shard-"]

    def full(image: object, xmp: bytes | None) -> bytes:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(module, "encoded", full)
    with pytest.raises(OSError, match="No space left"):
        next(reports)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_is_not_as_planned_makes_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    plan = plan_shards(pipeline, 5, ShardFormat.WEBDATASET, Request(n=5))
    other = plan.manifest.model_copy(update={"threads": plan.manifest.threads + 1})
    with pytest.raises(DdmError, match=r"^threads is \d+ in the process"):
        next(write_shard(pipeline, tmp_path, other, 0, plan.codes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": 21}, "field request.n is 20, and 21 in this run"),
        ({"seed": 1}, "field request.seed is 0, and 1"),
        ({"num_steps": 3}, "field num_steps is 4, and 3"),
        ({"target": "code:0=.3,code:1=.7"}, "field target is 'uniform', and 'code:0=.3,code:1=.7'"),
        ({"balance": "off"}, "field request.balance is 'auto', and 'off'"),
        ({"size": 6}, "field shard_size is 5, and 6"),
        ({"shard_format": ShardFormat.PARQUET}, "field shard_format is 'webdataset', and 'parquet'"),
    ],
    ids=str,
)
def test_other_settings_are_refused(pipeline: Pipeline, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    asked = {"n": 20, "size": 5, "num_steps": 4}
    make(pipeline, tmp_path, **asked)
    before = contents(tmp_path)
    with pytest.raises(DdmError, match=r"manifest\.json: ") as refused:
        make(pipeline, tmp_path, **asked | change)
    assert said in str(refused.value)
    assert contents(tmp_path) == before


def test_a_directory_goes_on_after_the_bundle_was_upgraded(pipeline: Pipeline, tmp_path: Path) -> None:
    begun = plan_shards(pipeline, 5, ShardFormat.WEBDATASET, Request(n=10)).manifest
    former = (Former(bundle_id=begun.bundle_id, files={}),)
    index = pipeline.bundle.index.model_copy(update={"bundle_id": "cd" * 32, "former": former})
    upgraded = Pipeline(dataclasses.replace(pipeline.bundle, index=index), pipeline.engine)
    plan = plan_shards(upgraded, 5, ShardFormat.WEBDATASET, Request(n=10), begun)
    assert plan.manifest == begun
    assert plan_shards(upgraded, 5, ShardFormat.WEBDATASET, Request(n=10)).manifest.bundle_id == "cd" * 32
    foreign = begun.model_copy(update={"bundle_id": "ef" * 32})
    assert plan_shards(upgraded, 5, ShardFormat.WEBDATASET, Request(n=10), foreign).manifest.bundle_id == "cd" * 32
    for number in range(2):
        [*_, shard] = write_shard(upgraded, tmp_path, plan.manifest, number, plan.codes_of(number))
        assert isinstance(shard, Shard)
    make(pipeline, tmp_path / "before", 5, n=10)
    for number in range(2):  # also what the files say of their bundle
        assert (tmp_path / begun.file(number)).read_bytes() == (tmp_path / "before" / begun.file(number)).read_bytes()


def test_a_directory_of_a_version_whose_files_said_nothing_goes_on_as_such(pipeline: Pipeline, tmp_path: Path) -> None:
    make(pipeline, tmp_path, 5, n=10, provenance=False)
    with pytest.raises(DdmError, match=r"field request\.provenance is None.*repeat it with --no-provenance, or"):
        make(pipeline, tmp_path, 5, n=10)
    make(pipeline, tmp_path, 5, n=10, provenance=False)


def test_versions_count(pipeline: Pipeline, tmp_path: Path) -> None:
    make(pipeline, tmp_path, 5, n=5)
    tree = json.loads((tmp_path / "manifest.json").read_bytes())
    tree["versions"] = {"numpy": "0"}
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(DdmError, match=r"field versions\.numpy is '0'"):
        make(pipeline, tmp_path, 5, n=5)


@pytest.mark.parametrize(
    ("size", "request_", "said"),
    [
        (0, {}, "shard size is 0; expected at least 1"),
        (5, {"scope": "campaign"}, "scope: .* can't go on with a scope"),
        (5, {"n": 0}, "n is 0"),
    ],
)
def test_what_cannot_be_planned(pipeline: Pipeline, size: int, request_: dict[str, Any], said: str) -> None:
    with pytest.raises(DdmError, match=said):
        plan_shards(pipeline, size, ShardFormat.WEBDATASET, Request(**{"n": 20} | request_))


def test_a_directory_with_something_else(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    (tmp_path / "images").mkdir()
    pipeline.generate(n=2).save(tmp_path / "images")
    for name, said in [("other", "has no manifest.json of shards"), ("images", "field shard_format: Field required")]:
        with pytest.raises(DdmError, match=said):
            make(pipeline, tmp_path / name, 5, n=5)
    with pytest.raises(DdmError, match="is a file; expected a directory"):
        make(pipeline, tmp_path / "other" / "file", 5, n=5)
    assert contents(tmp_path / "other") == {"file": b"mine"}


@pytest.mark.parametrize(
    "change", [{"file": "shard-000001.tar"}, {"first": 5}, {"count": 4}, {"first": 50, "file": "shard-000010.tar"}]
)
def test_a_manifest_whose_shards_do_not_fit(pipeline: Pipeline, tmp_path: Path, change: dict[str, Any]) -> None:
    make(pipeline, tmp_path, 5, n=10)
    tree = json.loads((tmp_path / "manifest.json").read_bytes())
    tree["shards"] = [tree["shards"][0] | change]
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(DdmError, match=r"manifest.json: field shards\.0: "):
        recorded_manifest(tmp_path)


def test_one_process_at_a_time(pipeline: Pipeline, tmp_path: Path) -> None:
    plan = plan_shards(pipeline, 5, ShardFormat.WEBDATASET, Request(n=10))
    with (
        ShardDirectory.open(tmp_path, plan.manifest),
        pytest.raises(DdmError, match="another process is making shards"),
        ShardDirectory.open(tmp_path, plan.manifest),
    ):
        pass
    make(pipeline, tmp_path, 5, n=10)


def test_a_target_over_factors_goes_on_however_it_is_written(tmp_path: Path) -> None:
    pipeline = Pipeline(factor_bundle(missing=True), FakeEngine())
    one, other = "gender:male=.75,gender:female=.25", "gender : female = 0.25 , gender:male=0.75"
    first = make(pipeline, tmp_path, 8, n=20, seed=3, target=one)
    assert first.target == "gender:female=0.25,gender:male=0.75"
    before = contents(tmp_path)
    assert make(pipeline, tmp_path, 8, n=20, seed=3, target=other) == first
    assert contents(tmp_path) == before
    plan = plan_shards(pipeline, 8, ShardFormat.WEBDATASET, Request(n=20, seed=3, target=other))
    assert plan.codes == pipeline.generate(n=20, seed=3, target=one).codes
