"""A bundle whose graphs are no graphs, for rooms that don't look inside them."""

from pathlib import Path

from ddm_rt.bundle import GRAPHS, Codes, Leaf
from ddm_rt.config import BundleConfig, ModelConfig, RunConfig, SamplingConfig, TensorSpec
from ddm_rt.schedule import Schedule


def fill(directory: Path, shares: tuple[float, ...] = (1,)) -> None:
    """`shares` are those of the codes in the one top code."""
    config = BundleConfig(
        name="test",
        latent_shape=(4, 8, 8),
        image_size=16,
        channels=1,
        size_multiple=4,
        context_shape=("tokens", 16),
        prompt_free=True,
        cond=(TensorSpec(name="text_tokens", shape=("tokens", 16)),),
        num_codes=len(shares),
        num_top_codes=1,
        sampling=SamplingConfig(),
        model=ModelConfig(),
        run=RunConfig(),
    )
    leaves = tuple(Leaf(code=i, top_code=0, size=3, share_in_top=share) for i, share in enumerate(shares))
    (directory / "config.json").write_text(config.model_dump_json())
    (directory / "schedule.json").write_text(Schedule.from_config(RunConfig().schedule).to_json())
    (directory / "codes.json").write_text(Codes(origin="discovered", leaves=leaves).model_dump_json())
    for name in GRAPHS:
        (directory / name).write_bytes(name.encode() * 10)
