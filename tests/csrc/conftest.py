"""The embedding library, built once for all parallel workers of a test run."""

import shutil
from pathlib import Path

import pytest
from c_library import CLibrary
from embedding_build import NEEDS, ROOT, Built, build, run
from toolchain import has_embedding_toolchain


@pytest.fixture(scope="session")
def built(shared_folder: Path) -> Built:
    """The library, its tests and command line, built and installed. Read-only."""
    if not has_embedding_toolchain():
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
