"""What TensorRT-RTX compiled is kept for the next process. On a fake driver and a fake TensorRT: never a run of one."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("cuda") is None:
    pytest.skip("needs cuda-bindings", allow_module_level=True)

from fake_tensorrt import Machine, with_fake_plan

from ddm_rt.bundle import Bundle
from ddm_rt.engine import user_cache
from ddm_rt.engine.tensorrt.engine import TensorRTRtxEngine
from ddm_rt.sample.pipeline import Pipeline


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(user_cache.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "tensorrt-rtx"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture(scope="module")
def planned(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("planned") / "bundle"
    return with_fake_plan(Bundle.load(shutil.copytree(tiny_bundle.path, folder)))


def compiled(machine: Machine, bundle: Bundle, **request: Any) -> list[str]:
    """What a process compiles that opens the bundle and makes an image."""
    machine.trt.compiled.clear()
    engine = TensorRTRtxEngine(bundle)
    try:
        Pipeline(bundle, engine).generate(**{"num_steps": 1} | request)
    finally:
        engine.close()
    return list(machine.trt.compiled)


def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    yield from (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    caplog.clear()


def test_the_second_process_compiles_nothing(
    machine: Machine, planned: Bundle, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = compiled(machine, planned)
    assert len(first) == len(set(first)) > 6, "the probe's sizes, of three networks, and all share one cache"
    (file,) = cache.iterdir()
    assert file.name.endswith("-fake-gpu-cuda-13.1.cache")
    written = file.stat().st_mtime_ns
    assert compiled(machine, planned) == []
    assert file.stat().st_mtime_ns == written
    assert list(warnings(caplog)) == []
    # Another size of image is compiled in its turn, and kept beside the rest.
    assert len(compiled(machine, planned, height=2 * planned.config.image_size)) > 4
    assert compiled(machine, planned, height=2 * planned.config.image_size) == compiled(machine, planned) == []
    assert list(cache.iterdir()) == [file]


def test_it_is_written_as_the_probe_goes_and_not_again_without_cause(
    machine: Machine, planned: Bundle, cache: Path
) -> None:
    engine = TensorRTRtxEngine(planned)
    assert not cache.exists(), "nothing is compiled when an engine opens"
    pipeline = Pipeline(planned, engine)
    assert pipeline.buckets
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    pipeline.generate(n=3, num_steps=2)
    assert file.stat().st_mtime_ns == written
    engine.close()


def test_another_gpu_driver_or_plan_has_a_file_of_its_own(
    planned: Bundle, cache: Path, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(Machine(monkeypatch), planned)
    assert compiled(Machine(monkeypatch, name="Other GPU"), planned)
    other = Bundle.load(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    assert compiled(Machine(monkeypatch), with_fake_plan(other, batches=((1, 2, 4),)))
    assert len(list(cache.iterdir())) == 3


def garbage(file: Path) -> None:
    file.write_bytes(b"\x00garbage\xff" * 100)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def of_somebody_else(file: Path) -> None:
    (file.parent.parent / user_cache.SECRET).write_bytes(b"x" * 32)


@pytest.mark.parametrize("damage", [garbage, truncated, empty, of_somebody_else])
def test_a_broken_file_is_a_warning_and_is_replaced(
    machine: Machine, planned: Bundle, cache: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = compiled(machine, planned)
    (file,) = cache.iterdir()
    damage(file)
    assert compiled(machine, planned) == first
    (said,) = warnings(caplog)
    assert said == f"{file.name} is not used, and kernels are compiled again: it is broken, or was not made here"
    assert compiled(machine, planned) == []
    assert list(warnings(caplog)) == []


def test_one_that_tensorrt_refuses_is_a_warning_and_is_replaced(
    machine: Machine, planned: Bundle, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiled(machine, planned)
    (file,) = cache.iterdir()
    content = file.read_bytes().partition(b"\n")[2].replace(b"Fake GPU", b"Old GPU!")
    file.write_bytes(user_cache.sign(content) + b"\n" + content)
    assert compiled(machine, planned)
    (said,) = warnings(caplog)
    assert said.endswith("TensorRT-RTX refuses it: it is of another version, GPU or driver")
    assert compiled(machine, planned) == []


@pytest.mark.parametrize("how", ["no folder", "open secret", "no home"])
def test_a_cache_that_cant_be_used_keeps_no_image_from_being_made(
    machine: Machine, planned: Bundle, cache: Path, how: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    if how == "no folder":
        cache.parent.write_text("a file is in its place")
    elif how == "open secret":
        compiled(machine, planned)
        (cache.parent / user_cache.SECRET).chmod(0o644)
    else:

        def nobody() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv(user_cache.CACHE)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", nobody)
    assert compiled(machine, planned)
    said = list(warnings(caplog))
    assert any("kernels that TensorRT-RTX compiled are not kept for the next start: " in line for line in said)


def test_a_flavour_without_runtime_caches_has_none(
    machine: Machine, planned: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr("fake_tensorrt._Config.create_runtime_cache")
    assert compiled(machine, planned)
    assert not cache.exists()
    assert list(warnings(caplog)) == []
