"""Export and TensorRT-RTX build of Stable Diffusion 1.5's three networks, at a tenth of their size."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import full_size
import pytest
from store import load

SCRIPT = Path(full_size.__file__)
NEEDS = ("torch", "diffusers", "transformers", "tensorrt_rtx")


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.slow  # about two minutes: three traces, conversions and builds, the UNet's 91 M parameters among them
@pytest.mark.skipif(not all(map(importlib.util.find_spec, NEEDS)), reason=f"needs {', '.join(NEEDS)}")
def test_a_tenth_of_the_size_is_exported_and_built(tmp_path: Path) -> None:
    done = start("--work", "work", "--scale", "0.1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    record = load("full size", tmp_path / "work")
    assert record is not None
    steps = {row["step"]: row for row in record["rows"]}
    assert list(steps) == [f"{part}.{step}" for part in full_size.PARTS for step in full_size.STEPS]
    assert steps["unet.export"]["indicator_attention_layers"] == 16
    assert 80e6 < steps["unet.export"]["parameters"] < 100e6
    # fp16 weights, whole, in graph and plan.
    for step in steps.values():
        assert step["bytes"] > 0
    assert steps["unet.build"]["bytes"] > 2 * steps["unet.export"]["parameters"]
    batches = [[shape[0] for shape in profile["x_t"]] for profile in steps["unet.build"]["profiles"]]
    assert batches == [[1, 8, 32]]
    # The bars of the full size: a tenth of it that missed them would be a fault of another kind.
    assert [bar["met"] for bar in record["bars"]] == [True] * 4
    assert "| unet, build |" in (tmp_path / "work/full_size.md").read_text()

    again = start("--work", "work", "--scale", "0.1", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count(": kept") == len(steps)
    assert load("full size", tmp_path / "work") == record


@pytest.mark.parametrize("scale", ["0", "1.5"])
def test_a_scale_that_makes_no_network_is_refused(scale: str, tmp_path: Path) -> None:
    done = start("--work", "work", "--scale", scale, cwd=tmp_path)
    assert done.returncode == 2
    assert f"--scale is {scale}; expected more than 0 and at most 1" in done.stderr
    assert list(tmp_path.iterdir()) == []
