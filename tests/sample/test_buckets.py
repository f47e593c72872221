"""Shards in object storage: the bytes of a folder's, whole or not there, resumed, and one writer's.

Slow: needs ddm-rt[integration], whose moto is the store.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, fake_bundle
from object_storage import BUCKET, Storage, storage

from ddm_rt.errors import DdmError
from ddm_rt.sample import shard_places
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.sample.shard_formats import ShardFormat
from ddm_rt.sample.shard_places import Bucket, Where, place_of
from ddm_rt.sample.shards import Shard, ShardDirectory, ShardManifest, plan_shards, recorded_manifest, write_shard

pytestmark = pytest.mark.slow(reason="needs ddm-rt[integration]")

N, SIZE = 30, 8


@pytest.fixture(scope="module")
def server() -> Iterator[Storage]:
    pytest.importorskip("moto", reason="needs ddm-rt[integration]")
    pytest.importorskip("s3fs", reason="needs ddm-rt[s3]")
    with storage() as server:
        yield server


@pytest.fixture
def store(server: Storage, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """Each test has its own."""
    return f"{request.node.name}/shards"


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(fake_bundle(), FakeEngine())


def make(pipeline: Pipeline, where: Where, shard_format: ShardFormat = ShardFormat.WEBDATASET, **request: Any) -> None:
    place = place_of(where)
    plan = plan_shards(pipeline, SIZE, shard_format, Request(**{"n": N} | request), recorded_manifest(place))
    with ShardDirectory.open(place, plan.manifest) as directory:
        for number in directory.missing():
            directory.add(shard(pipeline, place, plan.manifest, number, plan.codes_of(number)))


def shard(pipeline: Pipeline, where: Where, manifest: ShardManifest, number: int, codes: tuple[int, ...]) -> Shard:
    *_, made = write_shard(pipeline, where, manifest, number, codes)
    assert isinstance(made, Shard)
    return made


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("shard_format", ShardFormat)
def test_a_bucket_has_what_a_folder_has(
    pipeline: Pipeline, store: Storage, prefix: str, tmp_path: Path, shard_format: ShardFormat
) -> None:
    make(pipeline, tmp_path, shard_format)
    store.client.pipe_file(f"{BUCKET}/{prefix}-of-another", b"mine")
    url = f"s3://{BUCKET}/{prefix}"
    make(pipeline, f"{url}/", shard_format)
    assert store.contents(prefix) == files(tmp_path)
    make(pipeline, url, shard_format)
    assert store.contents(prefix) == files(tmp_path)


def test_what_is_missing_or_damaged_is_made_again(pipeline: Pipeline, store: Storage, prefix: str) -> None:
    url, client = f"s3://{BUCKET}/{prefix}", store.client
    make(pipeline, url)
    before = store.contents(prefix)
    client.rm(f"{BUCKET}/{prefix}/shard-000001.tar")
    client.pipe_file(f"{BUCKET}/{prefix}/shard-000003.tar", before["shard-000003.tar"][:-1])
    damaged = bytearray(before["shard-000002.tar"])
    damaged[100] ^= 1
    client.pipe_file(f"{BUCKET}/{prefix}/shard-000002.tar", bytes(damaged))
    plan = plan_shards(pipeline, SIZE, ShardFormat.WEBDATASET, Request(n=N))
    with ShardDirectory.open(url, plan.manifest) as directory:
        assert directory.missing() == [1, 2, 3]
        assert directory.images_done == SIZE
    make(pipeline, url)
    assert store.contents(prefix) == before


def test_a_shard_appears_when_it_is_whole(pipeline: Pipeline, store: Storage, prefix: str) -> None:
    plan = plan_shards(pipeline, 150, ShardFormat.WEBDATASET, Request(n=150))
    reports = write_shard(pipeline, f"s3://{BUCKET}/{prefix}", plan.manifest, 0, plan.codes)
    assert [next(reports), next(reports)] == [64, 128]
    assert not store.contents(prefix)
    [*_, made] = reports
    assert isinstance(made, Shard)
    assert [*store.contents(prefix)] == [made.file]


def test_a_shard_in_parts(store: Storage, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_places, "_PART", 5 * 2**20)  # the least that a store takes
    content = bytes(range(256)) * (11 * 2**12)
    place = Bucket(f"s3://{BUCKET}/{prefix}")
    with place.file("large") as file:
        file.write(content)
        assert not store.contents(prefix)
    assert store.contents(prefix) == {"large": content}
    assert place._store.info(f"{BUCKET}/{prefix}/large")["ETag"].endswith('-3"')  # of so many parts
    with suppress(ZeroDivisionError), place.file("half") as file:
        file.write(content)
        raise ZeroDivisionError
    assert [*store.contents(prefix)] == ["large"]


def test_of_two_processes_one_stops(pipeline: Pipeline, store: Storage, prefix: str, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/{prefix}"
    plan = plan_shards(pipeline, SIZE, ShardFormat.WEBDATASET, Request(n=N))
    place = place_of(url)
    made = [shard(pipeline, place, plan.manifest, number, plan.codes_of(number)) for number in range(2)]
    store.client.rm(f"{BUCKET}/{prefix}", recursive=True)
    with (
        ShardDirectory.open(url, plan.manifest) as one,
        ShardDirectory.open(url, plan.manifest) as other,  # nothing is made yet: both may begin
    ):
        one.add(made[0])
        with pytest.raises(DdmError, match="another process is making shards there"):
            other.add(made[1])
        one.add(made[1])
    assert len(json.loads(store.contents(prefix)["manifest.json"])["shards"]) == 2
    make(pipeline, url)
    make(pipeline, tmp_path)
    assert store.contents(prefix) == files(tmp_path)


def test_an_answer_that_was_lost_is_no_other_process(store: Storage, prefix: str) -> None:
    place, same = Bucket(f"s3://{BUCKET}/{prefix}"), Bucket(f"s3://{BUCKET}/{prefix}")
    place.write("manifest.json", [1])
    assert same.read("manifest.json") == b"[\n 1\n]\n"
    same.write("manifest.json", [2])
    place.write("manifest.json", [2])
    place.write("manifest.json", [3])
    store.client.rm(f"{BUCKET}/{prefix}/manifest.json")
    with pytest.raises(DdmError, match="another process"):
        place.write("manifest.json", [4])


def test_other_settings_and_other_things(pipeline: Pipeline, store: Storage, prefix: str) -> None:
    url = f"s3://{BUCKET}/{prefix}"
    make(pipeline, url)
    before = store.contents(prefix)
    with pytest.raises(DdmError, match=r"shards/manifest\.json: field request\.seed is 0, and 1 in this run"):
        make(pipeline, url, seed=1)
    assert store.contents(prefix) == before
    store.client.pipe_file(f"{BUCKET}/{prefix}3/", b"")  # as a console makes a folder
    make(pipeline, f"{url}3")
    store.client.pipe_file(f"{BUCKET}/{prefix}2/mine", b"")
    with pytest.raises(DdmError, match=r"isn't empty and has no manifest\.json of shards"):
        make(pipeline, f"{url}2")


def test_an_endpoint_that_is_no_address(pipeline: Pipeline, store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(DdmError, match="Invalid endpoint: localhost:9000"):
        make(pipeline, f"s3://{BUCKET}/x")
