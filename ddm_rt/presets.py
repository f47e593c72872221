"""Named configurations to start from, and overrides by dotted field."""

from typing import Any

from ddm_rt.config import (
    CodesConfig,
    DataConfig,
    FeatureConfig,
    ModelConfig,
    PredictionType,
    RunConfig,
    SamplingConfig,
    ScheduleConfig,
    TrainConfig,
    parse,
)
from ddm_rt.errors import DdmError

_DIGITS_UNET: dict[str, Any] = {
    "block_out_channels": [48, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 64,
    "attention_head_dim": 2,  # the number of heads, in spite of the name (diffusers issue 2011)
    "norm_num_groups": 8,
}

# A latent pixel holds 4x4 image pixels: more numbers than a network this narrow can carry as noise, so it predicts x0
# (measured on 4 against 9: with epsilon and an equal budget the samples are still noise; cf. arXiv 2511.13720).
_DIGITS_TRAIN: dict[str, Any] = {"batch_size": 32, "learning_rate": 1.5e-3}
_DIGITS = RunConfig(
    model=ModelConfig(unet=_DIGITS_UNET),
    schedule=ScheduleConfig(prediction_type=PredictionType.SAMPLE),
)

PRESETS: dict[str, RunConfig] = {
    # What ships in the package.
    "digits": _DIGITS.model_copy(update={"train": TrainConfig(**_DIGITS_TRAIN, steps=4000)}),
    # The published table: one budget for every method.
    "digits-bench": _DIGITS.model_copy(
        update={"preset": "digits-bench", "train": TrainConfig(**_DIGITS_TRAIN, steps=1200)}
    ),
    # `make demo`: the smallest budget that shows the effect.
    "digits-demo": _DIGITS.model_copy(
        update={"preset": "digits-demo", "train": TrainConfig(**_DIGITS_TRAIN, steps=600)}
    ),
    # `--base`: its model and noise schedule take the place of these. The DDM authors train 4,000 steps of 1 x 4 images
    # at 1e-5; ten times that is usual for LoRA, and the code's own layers start from nothing.
    "checkpoint": RunConfig(
        preset="checkpoint",
        data=DataConfig(source="", image_size=512, channels=3),
        features=FeatureConfig(thickness=False, flip=True, colour=0.3),
        train=TrainConfig(
            steps=4000,
            batch_size=1,
            accumulate=4,
            learning_rate=1e-4,
            weight_decay=1e-2,
            ema_decay=0.999,
            checkpoint_every=500,
        ),
    ),
    # Tests: seconds, not quality.
    "tiny": RunConfig(
        preset="tiny",
        data=DataConfig(image_size=16),
        model=ModelConfig(
            unet=_DIGITS_UNET | {"block_out_channels": [8, 16], "cross_attention_dim": 16, "norm_num_groups": 4},
            patch=2,
            code_embed_dim=16,
            head_hidden=(32, 16),
        ),
        features=FeatureConfig(steps=20, batch_size=32, width=4),
        codes=CodesConfig(micro_codes=4, bootstraps=2),
        train=TrainConfig(steps=20, batch_size=8, checkpoint_every=10, warmup_steps=5),
        sampling=SamplingConfig(num_steps=4),
    ),
}


def resolve(preset: str, overrides: dict[str, Any] | None = None) -> RunConfig:
    """The named preset with dotted overrides (`{"train.steps": 100}`) applied and checked.

    Raises DdmError for an unknown preset, field or value.
    """
    if preset not in PRESETS:
        raise DdmError(f"preset {preset!r} is unknown; presets: {', '.join(PRESETS)}")
    return override(PRESETS[preset], overrides or {})


def override(config: RunConfig, fields: dict[str, Any]) -> RunConfig:
    """`config` with dotted fields set and checked. Raises DdmError for an unknown field or value."""
    tree = config.model_dump()
    for dotted, value in fields.items():
        *path, leaf = dotted.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or (leaf not in node and path != ["model", "unet"]):
            raise DdmError(f"configuration field {dotted!r} is unknown")
        node[leaf] = value
    return parse(RunConfig, tree, "configuration")
