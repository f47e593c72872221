"""The models that are timed: where their bundles are, and how those with random weights are made.

    python benchmarks/subjects.py small --work DIR
    python benchmarks/subjects.py sd15|sd15-checkpoint --work DIR [--scale 1.0]

`digits` is the shipped bundle's architecture, trained or not; `small` has 5.2 M parameters on 16x16 latents; `sd15` is
Stable Diffusion 1.5 as published. Speed doesn't depend on weights, and theirs are drawn.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from ddm_rt.bundle import Bundle
from ddm_rt.config import Frozen, Precision, RunConfig
from ddm_rt.errors import DdmError
from ddm_rt.files import write_json
from ddm_rt.presets import resolve
from ddm_rt.runtime import Codes, Leaf
from ddm_rt.workflows.export import PIXELS, export

CODES = 16
_SMALL: dict[str, Any] = {
    "block_out_channels": [64, 96, 128],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 128,
    "attention_head_dim": 4,  # the number of heads, in spite of the name (diffusers issue 2011)
    "norm_num_groups": 8,
}


class Subject(Frozen):
    """One model as its bundles; plain data, which goes to a worker process as JSON."""

    name: str
    bundle: str = ""  # fp32; none where only a checkpoint is trained on
    converted: dict[str, str] = Field(default_factory=dict)  # precision -> bundle
    checkpoint: str | None = None  # diffusers' folder, of models that came from one

    def of(self, precision: str) -> str:
        """The bundle in that precision. Raises DdmError where it wasn't made."""
        places = {Precision.FP32.value: self.bundle, **self.converted}
        if precision not in places:
            raise DdmError(f"subject {self.name}: no {precision} bundle; there are: {', '.join(places)}")
        return places[precision]


def digits(work: Path, scale: float = 1.0) -> Subject:
    """The digits architecture with random weights."""
    return _pixel("digits", resolve("digits"), work, (Precision.BF16, Precision.INT8))


def small(work: Path, scale: float = 1.0) -> Subject:
    config = resolve("digits", {"model.unet": _SMALL, "data.image_size": 64})
    return _pixel("small", config, work, (Precision.BF16, Precision.INT8))


def sd15_checkpoint(work: Path, scale: float = 1.0) -> Subject:
    """Stable Diffusion 1.5's checkpoint alone, to train on."""
    place = work / f"sd15-{scale:g}" / "checkpoint"
    if not (place / "model_index.json").exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        writer = Path(__file__).with_name("full_size_sd_checkpoint.py")
        subprocess.run([sys.executable, str(writer), "sd15", str(place), "--scale", str(scale)], check=True)
    return Subject(name="sd15-checkpoint", checkpoint=str(place))


def sd15(work: Path, scale: float = 1.0, precisions: tuple[Precision, ...] = (Precision.BF16,)) -> Subject:
    """Stable Diffusion 1.5 with an indicator of 4 codes, by the product's own commands."""
    folder = work / f"sd15-{scale:g}"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, run, bundle = (folder / name for name in ("checkpoint", "run", "bundle"))
    converted = {precision: folder / f"bundle-{precision}" for precision in precisions}
    writer = [sys.executable, str(Path(__file__).with_name("full_size_sd_checkpoint.py"))]
    ours = [sys.executable, "-P", "-m", "ddm_rt.cli"]
    steps: list[tuple[Path, list[object]]] = [
        (checkpoint / "model_index.json", [*writer, "sd15", checkpoint, "--scale", scale]),
        (run / "config.json", [*ours, "import", "--base", checkpoint, "--out", run]),
        (run / "weights.safetensors", [*writer, "indicator", run]),
        (bundle, [*ours, "export", run, "--out", bundle]),
        *((made, [*ours, "export", bundle, "--precision", name, "--out", made]) for name, made in converted.items()),
    ]
    for left, command in steps:
        if not left.exists():
            print(" ".join(map(str, command[-6:])), flush=True)
            subprocess.run([str(word) for word in command], check=True)
    places = {precision.value: str(made) for precision, made in converted.items()}
    return Subject(name="sd15", bundle=str(bundle), converted=places, checkpoint=str(checkpoint))


def sd15_int8(work: Path, scale: float = 1.0) -> Subject:
    """`sd15` with an int8 bundle too, whose calibration takes a quarter of an hour."""
    return sd15(work, scale, (Precision.BF16, Precision.INT8))


SUBJECTS: dict[str, Callable[[Path, float], Subject]] = {
    "digits": digits,
    "small": small,
    "sd15": sd15,
    "sd15-int8": sd15_int8,
    "sd15-checkpoint": sd15_checkpoint,
}


def of_bundle(
    name: str, bundle: Path, work: Path, precisions: tuple[Precision, ...] = (), calibration_images: int = PIXELS.images
) -> Subject:
    """A bundle that is there, with conversions of it kept in `work`."""

    opened = Bundle.load(bundle)
    made = {}
    for precision in precisions:
        place = work / f"{opened.bundle_id[:12]}-{precision}"
        if not place.exists():
            export(str(opened.path), place, precision, calibration_images=calibration_images)
        made[precision.value] = str(place)
    return Subject(name=name, bundle=str(opened.path), converted=made)


def _pixel(name: str, config: RunConfig, work: Path, precisions: tuple[Precision, ...]) -> Subject:
    from ddm_rt.export.run import export_run

    bundle = work / name / "bundle"
    if not bundle.exists():
        run = work / name / "run"
        if not (run / "weights.safetensors").exists():
            _write_run(run, config)
        export_run(run, bundle)
    return of_bundle(name, bundle, work / name, precisions, calibration_images=8)  # of noise, whose ranges say nothing


def _write_run(run: Path, config: RunConfig) -> None:
    """A run as training leaves it, with weights as torch draws them, and drawn scales and shifts of norms."""
    import torch
    from safetensors.torch import save_file

    from ddm_rt.model.unet import DDM

    leaves = tuple(Leaf(code=i, top_code=2 * i // CODES, size=10, share_in_top=2 / CODES) for i in range(CODES))
    codes = Codes(origin="discovered" if leaves else "none", leaves=leaves)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DDM(config.model, config.model.latent_shape(config.data), codes.shared_of)
        for module in model.modules():
            # Engines drop scales of 1 and shifts of 0, which no trained model has.
            if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm) and module.weight is not None:
                torch.nn.init.normal_(module.weight, 1, 0.1)
                torch.nn.init.normal_(module.bias, 0, 0.1)
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "config.json", config.model_dump(mode="json"))
    write_json(run / "codes.json", codes.model_dump(mode="json"))
    save_file(model.state_dict(), run / "weights.safetensors")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="of sd15's parameters")
    arguments = parser.parse_args()
    print(SUBJECTS[arguments.subject](arguments.work, arguments.scale).model_dump_json(indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
