"""Sheets of samples while a run trains."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ddm_rt.config import RunConfig
from ddm_rt.train.run import train


def test_a_checkpoints_sheets_show_prompts_and_codes_and_leave_the_weights_alone(
    adapting: Callable[..., RunConfig], adapted: Path, tmp_path: Path
) -> None:
    shown = train(adapting("sd15"), tmp_path / "shown", grid_every=4)
    assert sorted(path.name for path in (shown / "samples").iterdir()) == ["step_00000004.png", "step_00000006.png"]
    with Image.open(shown / "samples" / "step_00000006.png") as sheet:
        columns, rows = 1 + 2, 3  # no code and two top codes; three prompts
        assert columns * 64 < sheet.width < (columns + 1) * 64
        assert rows * 64 < sheet.height < (rows + 2) * 64
    assert (shown / "weights.safetensors").read_bytes() == (adapted / "weights.safetensors").read_bytes()


def test_a_pixel_models_sheet_is_one_row(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = tiny({"train.steps": 2, "features.steps": 2, "sampling.sampler": "ddpm"})
    run = train(config, tmp_path / "run", grid_every=5)
    with Image.open(run / "samples" / "step_00000002.png") as sheet:
        assert 3 * 16 < sheet.width < 5 * 16
