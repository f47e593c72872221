"""`ddm-rt sample --shards`: which options go together, what is said, and what it needs. Runs with workers stand in
tests/serve/test_bulk.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from object_storage import BUCKET, storage
from serving_only import COMMAND

from ddm_rt.cli import bulk
from ddm_rt.cli.display import progress
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.sample.shard_formats import ShardFormat
from ddm_rt.sample.shards import Shard, ShardDirectory, plan_shards, write_shard

pytest.importorskip("ray", reason="needs ddm-rt[ray]")


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """All shards of `-n 10 --steps 2 --shard-size 4 --threads 1`, so that no worker is needed."""
    pipeline = Pipeline.load("digits", "onnxruntime", threads=1)
    plan = plan_shards(pipeline, 4, ShardFormat.WEBDATASET, Request(n=10, num_steps=2))
    out = tmp_path / "done"
    with ShardDirectory.open(out, plan.manifest) as directory:
        for number in directory.missing():
            *_, shard = write_shard(pipeline, out, plan.manifest, number, plan.codes_of(number))
            assert isinstance(shard, Shard)
            directory.add(shard)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ((), "--out: name a directory for the images, or one for shards with --shards"),
        (("--shards", "s", "--out", "o"), "--out: this option can't go with --shards"),
        (("--shards", "s", "--from", "m.json"), "--from: this option can't go with --shards"),
        (("--shards", "s", "--scope", "a"), "--scope: this option can't go with --shards, which can't resume"),
        (("--out", "o", "--shard-size", 5), "--shard-size: this option needs --shards, the directory of the shards"),
        (("--out", "o", "--shard-format", "parquet"), "--shard-format: this option needs --shards"),
        (("--out", "o", "--workers", 2), "--workers: this option needs --shards"),
        (("--shards", "s", "--workers", 0), "workers is 0; expected at least 1"),
        (("--shards", "s", "--shard-size", 0), "shard size is 0; expected at least 1"),
        (("--shards", "s", "--target", "code:9=1"), "target"),
        (("--shards", "file"), "is a file; expected a directory for shards"),
        (("--shards", "full"), "isn't empty and has no manifest.json of shards"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_mistakes(ddm_rt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[object, ...], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    assert said in ddm_rt("sample", "digits", "-n", 10, "--backend", "onnxruntime", *line).refusal()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_a_run_that_is_done_says_so_and_changes_nothing(ddm_rt, done: Path) -> None:
    before = contents(done)
    line = ("sample", "digits", "-n", 10, "--steps", 2, "--shard-size", 4, "--backend", "onnxruntime", "--shards", done)
    for more in ((), ("--workers", 7), ("--threads", 1)):  # the threads are those of the beginning
        result = ddm_rt(*line, *more)
        assert result.code == 0
        assert f"10 images (10 were there) in 3 shards: {done}" in result.out
        assert contents(done) == before
    assert "field threads is 1, and 2 in this run" in ddm_rt(*line, "--threads", 2).refusal()
    assert "field request.seed is 0, and 4 in this run" in ddm_rt(*line, "--seed", 4).refusal()
    assert contents(done) == before


@pytest.mark.parametrize(("package", "extra", "where"), [("ray", "ray", "out"), ("s3fs", "s3", "s3://bucket/out")])
def test_without_a_package_its_extra_is_named(tmp_path: Path, package: str, extra: str, where: str) -> None:
    block = f"import sys; sys.modules[{package!r}] = None\n"
    command = [sys.executable, "-c", block + COMMAND, "sample", "digits", "--shards", where]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'ddm-rt[{extra}]'" in done.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://", "expected s3://BUCKET/PREFIX"),
        ("s3://a//b", "expected s3://BUCKET/PREFIX"),
        ("gs://bucket/shards", "expected a folder, or s3://BUCKET/PREFIX"),
    ],
)
def test_places_that_are_none(ddm_rt, url: str, said: str) -> None:
    pytest.importorskip("s3fs", reason="needs ddm-rt[s3]")
    assert said in ddm_rt("sample", "digits", "-n", 4, "--backend", "onnxruntime", "--shards", url).refusal()


@pytest.mark.slow(reason="needs ddm-rt[integration]")
def test_buckets_credentials_and_endpoints_that_are_wrong(
    ddm_rt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("moto", reason="needs ddm-rt[integration]")
    line = ("sample", "digits", "-n", 4, "--backend", "onnxruntime", "--shards", f"s3://{BUCKET}/shards")
    with storage() as strict:
        for name, value in strict.environment.items():
            monkeypatch.setenv(name, value)
        none = (*line[:-1], "s3://no-such-bucket/shards")
        assert "there is no bucket no-such-bucket; make it first" in ddm_rt(*none).refusal()
        strict.refuse_strangers()
        assert "expected credentials that may list, read and write there" in ddm_rt(*line).refusal()
    assert "Could not connect to the endpoint" in ddm_rt(*line).refusal()  # it has ended
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "Unable to locate credentials; expected credentials" in ddm_rt(*line).refusal()


def test_the_lines_of_a_long_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(bulk.time, "monotonic", lambda: clock[0])
    lines: list[str] = []
    monkeypatch.setattr(bulk.errors, "print", lambda text, **options: lines.append(text))
    with progress(bulk.errors) as bars:
        tell = bulk._teller(bars)
        for at, images in [(0, 1000), (20, 1064), (50, 1300), (80, 1664), (81, 1700), (3680, 37664)]:
            clock[0] = at
            tell(images, 1000, 100_000)
    assert lines == [
        "1000 of 100000 images are there already",
        "images 1664 of 100000, 10.0 images/s, 2:43:54 left",
        "images 37664 of 100000, 10.0 images/s, 1:43:54 left",
    ]
