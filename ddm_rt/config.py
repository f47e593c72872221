"""Frozen configuration models, enums and named presets. What was resolved is saved with what it made."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ddm_rt.errors import DdmError

NULL_CODE = -1

M = TypeVar("M", bound=BaseModel)


class Backend(StrEnum):
    """Names of `engine.backends`; `AUTO` takes the fastest available one."""

    AUTO = "auto"
    TORCH = "torch"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class Precision(StrEnum):
    """What a bundle's graphs compute in. It is written into the graphs, not asked of a backend."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"


class IndicatorMode(StrEnum):
    """`NONE` is plain diffusion, `LABELS` is DDM as published, `CODES` and `PROBE` are our extensions.

    `PROBE` makes the codes from labels of a few images (`codes.labels`), `CODES` without any.
    """

    NONE = "none"
    LABELS = "labels"
    CODES = "codes"
    PROBE = "probe"


DEFAULT_INDICATOR_WEIGHT = {
    IndicatorMode.NONE: 0.0,
    IndicatorMode.LABELS: 0.05,
    IndicatorMode.CODES: 0.01,
    IndicatorMode.PROBE: 0.01,
}


class PredictionType(StrEnum):
    """As in diffusers."""

    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"
    SAMPLE = "sample"


class SamplerName(StrEnum):
    DDPM = "ddpm"
    DDIM = "ddim"
    EULER = "euler"
    DPMPP_2M = "dpm++2m"


class Balance(StrEnum):
    """`ON` draws codes by quota, `OFF` uses the null code, `AUTO` is `ON` where the bundle has codes."""

    ON = "on"
    OFF = "off"
    AUTO = "auto"


class Frozen(BaseModel):
    """Base of every configuration model: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class DataConfig(Frozen):
    """Which images, and at which size the model sees them."""

    source: str = "digits:3,8@4:1"
    image_size: Annotated[int, Field(ge=8, le=4096)] = 32
    channels: Literal[1, 3] = 1


class ScheduleConfig(Frozen):
    """Noise levels, with diffusers' names and meanings."""

    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    prediction_type: PredictionType = PredictionType.EPSILON


class ModelConfig(Frozen):
    """The UNet (diffusers' own arguments), the latent it works in, and the indicator."""

    patch: Annotated[int, Field(ge=1, le=16)] = 4  # space-to-depth factor from pixels to latents
    unet: dict[str, Any] = Field(default_factory=dict)  # UNet2DConditionModel arguments but in/out/sample sizes
    num_indicator_tokens: Annotated[int, Field(ge=1, le=16)] = 4  # M
    code_embed_dim: Positive = 64
    head_hidden: tuple[Positive, Positive] = (1024, 512)  # layers of the indicator head C

    def latent_shape(self, data: DataConfig) -> tuple[int, int, int]:
        """(C, H, W) of the latents. Raises DdmError where the image size doesn't divide."""
        levels = len(self.unet.get("block_out_channels", ()))
        multiple = self.patch * 2 ** max(levels - 1, 0)
        if data.image_size % multiple:
            raise DdmError(
                f"data.image_size is {data.image_size}; this model needs a multiple of {multiple} "
                f"(patch {self.patch}, {levels} resolution levels)"
            )
        side = data.image_size // self.patch
        return (data.channels * self.patch**2, side, side)


class FeatureConfig(Frozen):
    """Frozen features for code discovery: an ONNX encoder, or contrastive features of the images themselves."""

    encoder: Path | None = None  # ONNX file: image float32 [B,C,H,W] in [-1, 1] -> features [B,D]
    steps: Positive = 500
    batch_size: Annotated[int, Field(ge=8)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    temperature: Annotated[float, Field(gt=0)] = 0.2
    width: Positive = 16
    rotation: Annotated[float, Field(ge=0, le=180)] = 20.0  # degrees
    scale: Fraction = 0.2
    shear: Fraction = 0.35
    translate: Fraction = 0.12  # of half the image side
    elastic: Fraction = 0.10
    thickness: bool = True  # random dilation and erosion of strokes; for drawings, not photographs
    colour: Fraction = 0.0  # jitter of brightness and contrast
    flip: bool = False


class CodesConfig(Frozen):
    """Code discovery: micro-codes, a tree over them, top codes."""

    source: Path | None = None  # a codes file to use in place of discovery
    labels: Path | None = None  # CSV with labels of a few images (indicator `probe` only)
    neighbours: Annotated[int, Field(ge=2)] = 15  # of the graph whose Laplacian eigenvectors are clustered
    eigenvectors: Annotated[int, Field(ge=1)] = 8
    micro_codes: Annotated[int, Field(ge=2, le=4096)] = 16  # K, the leaves of the tree
    top_codes: Annotated[int, Field(ge=2, le=1024)] = 2  # M branches that get equal shares
    halving: bool = False  # below the top codes too, each split of the tree gives half to each side
    min_share: Annotated[float, Field(ge=0, le=0.5)] = 0.05  # of all images: less is an outlier, not a branch
    bootstraps: Annotated[int, Field(ge=0, le=1000)] = 10


class TrainConfig(Frozen):
    """The training loop and the DDM objective."""

    indicator: IndicatorMode = IndicatorMode.CODES
    indicator_weight: Fraction | None = None  # α in L = (1 - α)·MSE + α·CE; None: DEFAULT_INDICATOR_WEIGHT
    steps: Positive = 1500
    batch_size: Positive = 64
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    drop_both: Fraction = 0.08
    drop_code: Fraction = 0.05
    drop_text: Fraction = 0.05
    balance_minibatches: bool = True  # equal shares of the top codes in each minibatch (codes only)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    threads: Positive = 1  # part of what determines the weights, so part of the configuration
    checkpoint_every: Positive = 250

    @property
    def alpha(self) -> float:
        """The paper's α that this run uses."""
        if self.indicator_weight is None:
            return DEFAULT_INDICATOR_WEIGHT[self.indicator]
        return self.indicator_weight

    @model_validator(mode="after")
    def _drops_fit(self) -> Self:
        if self.drop_both + self.drop_code + self.drop_text > 1:
            raise ValueError("drop_both + drop_code + drop_text must be at most 1")
        return self


class SamplingConfig(Frozen):
    """Defaults that a bundle samples with; every one can be set per request."""

    sampler: SamplerName = SamplerName.DDIM
    num_steps: Positive = 25
    eta: Fraction = 0.0
    guidance_scale: Annotated[float, Field(ge=0)] = 1.0  # text
    indicator_guidance_scale: Annotated[float, Field(ge=0)] = 1.5  # code
    indicator_scale: Annotated[float, Field(ge=0)] = 1.0  # attention, s
    clip: tuple[float, float] | None = (-1.0, 1.0)  # of x0, for pixel models


class RunConfig(Frozen):
    """Everything that determines a training run."""

    preset: str = "digits"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    features: FeatureConfig = FeatureConfig()
    codes: CodesConfig = CodesConfig()
    train: TrainConfig = TrainConfig()
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        self.model.latent_shape(self.data)
        if self.codes.top_codes > self.codes.micro_codes:
            raise ValueError(
                f"codes.top_codes ({self.codes.top_codes}) must not exceed codes.micro_codes ({self.codes.micro_codes})"
            )
        if (self.codes.labels is not None) != (self.train.indicator is IndicatorMode.PROBE):
            raise ValueError("codes.labels (--labels) and train.indicator probe need each other")
        if self.codes.labels is not None and self.codes.source is not None:
            raise ValueError("codes.labels and codes.source exclude each other")
        return self


class TensorSpec(Frozen):
    """One entry of `cond`: its shape after the batch axis (a str is a free axis) and its dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: Literal["float32", "float16", "int64"] = "float32"


class BundleConfig(Frozen):
    """config.json of a bundle: all that a backend, the sampler and a C program need to know."""

    schema_version: Literal[1] = 1
    family: Literal["pixel"] = "pixel"
    name: str
    precision: Precision = Precision.FP32
    latent_shape: tuple[Positive, Positive, Positive]  # C, H, W at the training size
    image_size: Positive
    channels: Literal[1, 3]
    size_multiple: Positive  # height and width must be multiples of it
    context_shape: tuple[int | str, int]  # T, D of the conditioner's context
    prompt_free: bool
    cond: tuple[TensorSpec, ...]
    num_codes: Annotated[int, Field(ge=0)]
    num_top_codes: Annotated[int, Field(ge=0)]
    sampling: SamplingConfig
    model: ModelConfig  # for the torch backend
    run: RunConfig  # provenance: what was trained


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
    tree = PRESETS[preset].model_dump()
    for dotted, value in (overrides or {}).items():
        *path, leaf = dotted.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or (leaf not in node and path != ["model", "unet"]):
            raise DdmError(f"configuration field {dotted!r} is unknown")
        node[leaf] = value
    return parse(RunConfig, tree, "configuration")


def parse(model: type[M], tree: Any, where: str | Path) -> M:
    """Validate `tree` as `model`; the first problem becomes one DdmError that names `where` and the field."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole file)"
        raise DdmError(f"{where}: field {field}: {first['msg']}") from error


def parse_json(model: type[M], text: str | bytes, where: str | Path) -> M:
    """As `parse`, from JSON text."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole file)"
        raise DdmError(f"{where}: field {field}: {first['msg']}") from error
