"""A training set that takes seconds, and the configuration that reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pictures import write_folder

from ddm_rt.config import RunConfig, resolve


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 labelled drawings of 16x16, 3:1. Read-only."""
    return write_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture
def tiny(folder: Path) -> Callable[..., RunConfig]:
    """The `tiny` preset on that folder, with dotted overrides."""

    def make(overrides: dict[str, Any] | None = None) -> RunConfig:
        return resolve("tiny", {"data.source": str(folder)} | (overrides or {}))

    return make
