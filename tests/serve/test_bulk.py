"""`ddm-rt sample --shards` with real workers of Ray's: killed, resumed, and what it then leaves.

Slow: each starts Ray, some twice. tests/sample/test_shards.py shows plans, shards and the directory without Ray, and
tests/cli/test_shards.py the command.
"""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import ray_processes
from object_storage import BUCKET, storage
from patience import settled
from shard_reading import check_same, read_shards

from ddm_rt.sample.generation import Generation
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.sample.shard_formats import ShardFormat
from ddm_rt.sample.shards import Shard, ShardDirectory, plan_shards, write_shard

pytestmark = pytest.mark.slow

N, SIZE, SEED = 96, 8, 11
_PATIENCE_S = 600.0  # Ray starts in seconds where the machine has nothing else to do


@contextmanager
def started(out: Path | str, *more: object) -> Iterator[subprocess.Popen[str]]:
    """The command, in a process group of its own; nothing of it is left at the end."""
    line = ["sample", "digits", "-n", N, "--seed", SEED, "--backend", "onnxruntime", "--threads", 1, "--shards", out]
    line += ["--shard-size", SIZE, "--workers", 2, *more]
    command = [sys.executable, "-m", "ddm_rt.cli", *map(str, line)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=_PATIENCE_S)
    assert process.returncode == 0, err
    return out + err


def whole_shards(out: Path) -> int:
    with suppress(FileNotFoundError):
        return len(json.loads((out / "manifest.json").read_bytes())["shards"])
    return 0


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    assert settled(lambda: condition() or process.poll() is not None, _PATIENCE_S)
    assert process.poll() is None, process.communicate()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Ray's processes below this one that hold a pipeline."""
    return ray_processes.pids("ray::MapWorker", process.pid)


@pytest.fixture(scope="module")
def generation() -> Generation:
    return Pipeline.load("digits", "onnxruntime", threads=1).generate(n=N, seed=SEED)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run in this process, without Ray."""
    out = tmp_path_factory.mktemp("uninterrupted")
    pipeline = Pipeline.load("digits", "onnxruntime", threads=1)
    plan = plan_shards(pipeline, SIZE, ShardFormat.WEBDATASET, Request(n=N, seed=SEED))
    with ShardDirectory.open(out, plan.manifest) as directory:
        for number in directory.missing():
            *_, shard = write_shard(pipeline, out, plan.manifest, number, plan.codes_of(number))
            assert isinstance(shard, Shard)
            directory.add(shard)
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_run_that_is_killed_goes_on_without_duplicates_or_gaps(
    generation: Generation, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with started(out) as process:
        wait_for(lambda: whole_shards(out) >= 2, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    there = {name: content for name, content in contents(out).items() if name.startswith("shard-")}
    assert 2 <= len(there) < len(uninterrupted) - 1
    assert there.items() <= uninterrupted.items()

    with started(out) as process:  # workers of the killed run may still be there
        said = finished(process)
    assert f"of {N} images are there already" in said
    assert f"{N} images" in said
    assert contents(out) == uninterrupted
    rows = read_shards(out)
    check_same(rows, generation)
    assert Counter(fields["top_code"] for _, fields in rows) == {0: N // 2, 1: N // 2}


def test_a_run_into_a_bucket_that_is_killed_goes_on(
    uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("moto", reason="needs ddm-rt[integration]")
    with storage() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{BUCKET}/shards"
        with started(url) as process:
            wait_for(lambda: store.recorded("shards") >= 2, process)
            process.send_signal(signal.SIGKILL)
            process.wait()
        there = store.contents("shards")
        del there["manifest.json"]
        assert 2 <= len(there) < len(uninterrupted) - 1
        assert there.items() <= uninterrupted.items()
        with started(url) as process:  # workers of the killed run may still be there
            assert f"of {N} images are there already" in finished(process)
        assert store.contents("shards") == uninterrupted


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_stop_goes_on_after_a_worker_died(tmp_path: Path, stop: signal.Signals) -> None:
    out, n, steps = tmp_path / "out", 20 * N, 200  # minutes from done when the signal comes
    with started(out, "-n", n, "--steps", steps) as process:
        wait_for(lambda: whole_shards(out) >= 1 and workers_of(process), process)
        ray_processes.kill(workers_of(process)[0])
        at_death = whole_shards(out)
        wait_for(lambda: whole_shards(out) > at_death, process)
        process.send_signal(stop)
        _, said = process.communicate(timeout=_PATIENCE_S)
        assert process.returncode == 128 + stop
        assert "Traceback" not in said
        assert "***" not in said
    names = set(contents(out))
    assert {shard["file"] for shard in json.loads((out / "manifest.json").read_bytes())["shards"]} <= names


def test_the_only_worker_may_die(uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(out, "--workers", 1) as process:
        wait_for(lambda: workers_of(process), process)
        ray_processes.kill(workers_of(process)[0])
        finished(process)
    assert contents(out) == uninterrupted


def test_parquet(tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = ("--steps", 2, "--shard-format", "parquet", "--shard-size", 40)
    with started(out, *line) as process:
        finished(process)
    pipeline = Pipeline.load("digits", "onnxruntime", threads=1)
    check_same(read_shards(out), pipeline.generate(n=N, seed=SEED, num_steps=2))
    with started(out, *line) as process:
        assert f"{N} images ({N} were there) in 3 shards" in finished(process)
