"""A bundle whose graphs are no graphs, for rooms that don't look inside them."""

from pathlib import Path

from ddm_rt.bundle import GRAPHS
from ddm_rt.config import SamplingConfig, ScheduleConfig
from ddm_rt.runtime import RUNTIME, TRAINING, Codes, Leaf, RuntimeConfig, TensorSpec, runtime_json, training_json
from ddm_rt.schedule import Schedule


def fill(directory: Path, shares: tuple[float, ...] = (1,)) -> None:
    """`shares` are those of the codes in the one top code."""
    config = RuntimeConfig(
        name="test",
        latent_shape=(4, 8, 8),
        image_size=16,
        channels=1,
        size_multiple=4,
        context_shape=("tokens", 16),
        prompt_free=True,
        cond=(TensorSpec(name="text_tokens", shape=("tokens", 16)),),
        sampling=SamplingConfig(),
        codes=tuple(Leaf(code=i, top_code=0, size=3, share_in_top=share) for i, share in enumerate(shares)),
    )
    (directory / RUNTIME).write_text(runtime_json(config, Schedule.from_config(ScheduleConfig())))
    discovery = Codes(origin="discovered").model_dump(mode="json")
    (directory / TRAINING).write_text(training_json({}, {}, discovery))
    for name in GRAPHS:
        (directory / name).write_bytes(name.encode() * 10)
