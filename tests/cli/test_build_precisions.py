"""The shipped digits as TensorRT-RTX plans in every precision for every architecture: built, or refused by name.

A build is no run: nothing here executes a plan.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.tensorrt import build, build_process, flavours, plans
from ddm_rt.files import asset

pytest.importorskip("tensorrt_rtx")

RTX = flavours.TABLE["tensorrt-rtx"]


def sm(architecture: str) -> int:
    return int(architecture.removeprefix("sm_"))


@pytest.mark.slow(reason="seventy-five real builds; those of `built` are quick")
@pytest.mark.parametrize("precision", Precision)
def test_each_architecture_takes_the_precisions_that_its_row_names(
    precision: Precision, ddm_rt: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_process, "kernels", lambda *_: "not compiled in this test: tests/kernels does that")
    path = tmp_path / "digits"
    if precision is Precision.FP32:
        path = asset("digits")
    else:
        said = ddm_rt("export", "digits", "--precision", precision, "--out", path)
        assert said.code == 0, said.err
    copy = tmp_path / "copy"
    built = []
    for architecture in RTX.architectures:
        line = ("build", path, "--backend", "tensorrt-rtx", "--sm", sm(architecture), "--out", copy)
        if sm(architecture) < RTX.precisions.get(precision, math.inf):
            taken = f"precision {precision}: tensorrt-rtx on {architecture} takes "
            assert taken in ddm_rt(*line).refusal()
            continue
        said = ddm_rt(*line)
        assert said.code == 0, said.err
        built.append(architecture)
    if precision not in RTX.precisions:  # refused for each
        assert not copy.exists()
        return
    bundle = Bundle.load(copy)
    assert set(plans.names(bundle)) == {f"tensorrt-rtx-{architecture}" for architecture in built}
    assert len(built) == sum(sm(architecture) >= RTX.precisions[precision] for architecture in RTX.architectures) > 2
    for name in plans.names(bundle):
        key = plans.read_key(bundle.path / plans.ROOT / name / plans.KEY)
        assert key.parts.options == build.options(bundle.config, build.default_batch(RTX))
        assert key.parts.options.precision is precision
        for engine, ranges in (("denoiser", build.default_batch(RTX)), ("decoder", key.parts.options.decoder_batch)):
            found = [[shape[0] for shape in next(iter(each.values()))] for each in key.engines[engine].profiles]
            assert found == [[axis.min, axis.opt, axis.max] for axis in ranges]
        print(name, precision, {engine: figures["build_s"] for engine, figures in key.build.items()})
