"""The embedding library, built once for all parallel workers of a test run."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from c_library import CLibrary
from core_probe import CoreProbe
from embedding_build import NEEDS, ROOT, Built, build, run
from toolchain import EMBEDDING, missing


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow(reason="building the library takes over a minute"))


@pytest.fixture(scope="session")
def built(shared_folder: Path) -> Built:
    """The library, its tests and command line, built and installed. Read-only."""
    if missing(*EMBEDDING):
        pytest.skip(NEEDS)
    from filelock import FileLock  # torch brings it

    folder = shared_folder / "embedding"
    with FileLock(shared_folder / "embedding.lock"):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            build(folder)
            run("cmake", "--install", folder, folder=ROOT)
            (folder / "done").touch()
    return Built(folder, folder / "installed")


@pytest.fixture(scope="session")
def c_library(built: Built) -> CLibrary:
    return CLibrary(built.shared)


@pytest.fixture(scope="session")
def core(built: Built) -> Iterator[CoreProbe]:
    with CoreProbe(built.tests / "ddm-core-probe") as probe:
        yield probe
