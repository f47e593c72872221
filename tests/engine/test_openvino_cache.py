"""What OpenVINO compiled is kept for the next process: the same bits, and nothing that others put there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddm_rt.bundle import Bundle
from ddm_rt.sample.pipeline import Pipeline

pytest.importorskip("openvino")

from ddm_rt.engine import user_cache
from ddm_rt.engine.cpu import openvino_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(user_cache.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache" / openvino_cache.FOLDER


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    calls: list[Any] = []
    real: Callable[..., Any] = getattr(openvino_cache.ov.Core, name)

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        return real(*arguments, **named)

    monkeypatch.setattr(openvino_cache.ov.Core, name, call)
    return calls


def images(bundle: Bundle) -> bytes:
    made = Pipeline.load(bundle, "openvino", threads=1).generate(n=2, num_steps=2, seed=1).images
    assert np.ptp(made) > 0
    return made.tobytes()


def test_a_second_process_compiles_nothing_and_makes_the_same_bits(
    tiny_bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, imported = (counted(monkeypatch, name) for name in ("compile_model", "import_model"))
    first = images(tiny_bundle)
    times = len(compiled)
    assert (len(imported), times > 0) == (0, True)
    assert len(list(cache.iterdir())) == times
    assert images(tiny_bundle) == first
    assert len(compiled) == times
    # Denoiser and decoder of the one size that is called, and the conditioner: the probe's answer is kept, too.
    assert len(imported) == 3


def test_what_was_not_made_here_is_compiled_again(
    tiny_bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = images(tiny_bundle)
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    imported = counted(monkeypatch, "import_model")
    assert images(tiny_bundle) == first
    assert not imported
    assert "it is broken, or was not made here" in caplog.text


def test_a_cache_that_cannot_be_written_is_done_without(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(user_cache.CACHE, str(tmp_path / "file"))
    with caplog.at_level("INFO", logger="ddm_rt"):
        images(tiny_bundle)
    assert "is not kept for the next start" in caplog.text


def test_files_that_were_used_longest_ago_make_room(
    tiny_bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tiny_bundle)
    sizes = [path.stat().st_size for path in cache.iterdir()]
    monkeypatch.setattr(openvino_cache, "_ROOM", max(sizes))
    Pipeline.load(tiny_bundle, "openvino", threads=1).generate(n=1, num_steps=2, height=32, width=32)
    assert sum(path.stat().st_size for path in cache.iterdir()) <= max(sizes)


def test_large_graphs_are_not_kept(tiny_bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_cache, "_LARGEST", 10)
    images(tiny_bundle)
    assert not cache.exists()
