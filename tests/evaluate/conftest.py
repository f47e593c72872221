"""A judge small enough to be right by construction."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import brightness_judge
import pytest


@pytest.fixture
def write_judge(tmp_path: Path) -> Callable[..., Path]:
    """Writes an ONNX judge of brightness (`brightness_judge.write`) and returns its path."""

    def write(*, name: str = "j.onnx", **settings: Any) -> Path:
        return brightness_judge.write(tmp_path / name, **settings)

    return write
