"""Old bundles, manifests and ledgers still give the images that they gave.

To the byte where processor, threads and packages are those that a golden was made on, else within one grey level; the
last line of the run then says so.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from goldens import cases, files, made_on
from numpy.typing import NDArray
from tolerances import IMAGE_GREY_LEVELS

from ddm_rt.bundle import Bundle
from ddm_rt.engine import backends

PLACES = [(name, backend) for name, listed in cases.BACKENDS.items() for backend in listed]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("goldens")


@pytest.fixture(scope="module")
def old_bundle(folder: Path) -> Any:
    """old_bundle(name): opened once."""
    return cache(lambda name: files.open_bundle(name, folder / name))


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The goldens are the CPU's, on machines with a GPU too."""
    if made_on.installed("torch"):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize(("name", "backend"), PLACES)
def test_old_bundles_give_the_images_and_manifests_that_they_gave(
    name: str, backend: str, old_bundle: Any, tmp_path: Path
) -> None:
    bundle: Bundle = old_bundle(name)
    if (reason := backends.unavailable(backend, bundle)) is not None:
        pytest.skip(reason)
    place = files.IMAGES / f"{name}-{backend}"
    made = files.read_json(place / "made_on.json")
    exact = not made_on.differences(made, backend)
    with files.open_ledger(name, tmp_path / "ledger") as ledger:
        pipeline = files.open_pipeline(bundle, backend, ledger)
        for case, request in cases.REQUESTS[name].items():
            where, text = place / f"{case}.json", (place / f"{case}.json").read_text()
            golden = json.loads(text)
            images = files.read_strip(place / f"{case}.png", len(golden["images"]))
            generation = pipeline.generate(**request)
            _compare(generation.images, images, exact, f"{where}: generated")
            if exact:
                generation.save(tmp_path / case)
                assert (tmp_path / case / "manifest.json").read_text() == text
            else:
                assert generation.manifest | {"versions": golden["versions"]} == golden
            _compare(pipeline.replay(where).images, images, exact, f"{where}: replayed")
            last = len(images) - 1
            _compare(pipeline.replay(where, index=last).images, images[last:], exact, f"{where}: replayed, its last")


def test_the_shipped_bundle_replays_manifests_of_the_old_one() -> None:
    place = files.IMAGES / "digits-onnxruntime"
    exact = not made_on.differences(files.read_json(place / "made_on.json"), "onnxruntime")
    pipeline = files.open_pipeline(Bundle.load("digits"), "onnxruntime")
    for case in cases.REQUESTS["digits"]:
        replayed = pipeline.replay(place / f"{case}.json").images
        _compare(replayed, files.read_strip(place / f"{case}.png", len(replayed)), exact, f"{place / case}: replayed")


def test_the_end_of_a_run_says_what_is_otherwise_here(tmp_path: Path) -> None:
    now = made_on.here("onnxruntime")
    files.write_json(tmp_path / "digits-onnxruntime" / "made_on.json", now)
    assert made_on.unlike_here(tmp_path) == []
    other = now | {"processor": "Z80", "versions": now["versions"] | {"onnxruntime": "0.1"}}
    files.write_json(tmp_path / "tiny-onnxruntime" / "made_on.json", other)
    assert made_on.unlike_here(tmp_path) == [
        f"golden images to the byte (made on Z80, here {now['processor']}; "
        f"onnxruntime 0.1, here {now['versions']['onnxruntime']})"
    ]
    assert made_on.differences(now | {"instructions": "none"}, "onnxruntime") == [f"another {now['processor']}"]


def _compare(images: NDArray[np.uint8], golden: NDArray[np.uint8], exact: bool, where: str) -> None:
    assert images.shape == golden.shape, where
    apart = int(np.abs(images.astype(int) - golden).max())
    assert apart <= (0 if exact else IMAGE_GREY_LEVELS), f"{where}: up to {apart} grey levels apart"
