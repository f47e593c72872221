"""What the tests of TensorRT's plans share: one that was really built."""

import shutil
from pathlib import Path

import pytest
from made_once import made_once

from ddm_rt.bundle import Bundle
from ddm_rt.engine.tensorrt import build, flavours, plans


@pytest.fixture(scope="session")
def built(tiny_bundle: Bundle, shared_folder: Path) -> Bundle:
    """A copy of the tiny bundle with a real TensorRT-RTX plan for sm_89. Read-only."""
    pytest.importorskip("tensorrt_rtx")

    def make(place: Path) -> None:
        bundle = Bundle.load(shutil.copytree(tiny_bundle.path, place))
        said: list[str] = []
        options = build.options(bundle.config, build.default_batch(flavours.TABLE["tensorrt-rtx"]))
        target = build.Target("sm_89", plans.NO_GPU)
        assert build.build(bundle, flavours.TABLE["tensorrt-rtx"], target, options, progress=said.append).fresh
        assert {line.split(":")[0] for line in said} == {
            "sm_89 conditioner",
            "sm_89 denoiser",
            "sm_89 decoder",
            "sm_89 kernels",
        }
        assert any(line.startswith("sm_89 denoiser: build: ") for line in said)

    return Bundle.load(made_once(shared_folder / "built", make))
