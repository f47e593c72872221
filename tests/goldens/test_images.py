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
from ddm_rt.sample.pipeline import Pipeline

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
        pipeline = Pipeline.load(bundle, backend, made_on.THREADS, ledger)
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


@pytest.mark.parametrize("backend", cases.BACKENDS["digits"])
def test_the_shipped_bundle_replays_manifests_of_the_old_one(backend: str) -> None:
    shipped = Bundle.load("digits")
    if (reason := backends.unavailable(backend, shipped)) is not None:
        pytest.skip(reason)
    place = files.IMAGES / f"digits-{backend}"
    exact = not made_on.differences(files.read_json(place / "made_on.json"), backend)
    pipeline = Pipeline.load(shipped, backend, made_on.THREADS)
    for case in cases.REQUESTS["digits"]:
        replayed = pipeline.replay(place / f"{case}.json").images
        _compare(replayed, files.read_strip(place / f"{case}.png", len(replayed)), exact, f"{place / case}: replayed")


def _compare(images: NDArray[np.uint8], golden: NDArray[np.uint8], exact: bool, where: str) -> None:
    assert images.shape == golden.shape, where
    apart = int(np.abs(images.astype(int) - golden).max())
    assert apart <= (0 if exact else IMAGE_GREY_LEVELS), f"{where}: up to {apart} grey levels apart"
