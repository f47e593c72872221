"""Frozen configuration models, enums and named presets. What was resolved is saved with what it made."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ddm_rt.errors import DdmError
from ddm_rt.frozen import Fraction as Fraction
from ddm_rt.frozen import Frozen as Frozen
from ddm_rt.frozen import Lean
from ddm_rt.frozen import Positive as Positive
from ddm_rt.frozen import Sha256 as Sha256
from ddm_rt.frozen import parse as parse
from ddm_rt.frozen import parse_json as parse_json
from ddm_rt.frozen import parse_open as parse_open

NULL_CODE = -1


class Backend(StrEnum):
    """Names of `engine.backends`; `AUTO` takes the fastest available one."""

    AUTO = "auto"
    TORCH = "torch"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class Precision(StrEnum):
    """What a bundle's graphs compute in. It is written into the graphs, not asked of a backend."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"
    INT8_WEIGHTS = "int8-weights"  # stored in int8, computed in float32: a quarter of the memory, and no speed


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


class Family(StrEnum):
    """What surrounds the denoiser. `PIXEL` folds pixels into latents and takes no text; the others are checkpoints."""

    PIXEL = "pixel"
    SD = "sd"  # Stable Diffusion 1.x and 2.x: a VAE and one CLIP text encoder
    SDXL = "sdxl"  # two text encoders; pooled text and sizes are conditions too


class PredictionType(StrEnum):
    """As in diffusers."""

    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"
    SAMPLE = "sample"


class SamplerName(StrEnum):
    """The algorithm that makes an image of noise. `LCM` is for students."""

    DDPM = "ddpm"
    DDIM = "ddim"
    EULER = "euler"
    DPMPP_2M = "dpm++2m"
    LCM = "lcm"  # for students (`ddm-rt distill`)


class SteeringSite(StrEnum):
    """Where codes steer: what each cross-attention layer gives, as EquiSteer does, or the x0 that the model predicts.

    Cross-attention needs a model that takes text: without text it gives the same for every image.
    """

    ATTENTION = "attention"
    PREDICTION = "prediction"


class Balance(StrEnum):
    """`ON` draws codes by quota, `OFF` uses the null code.

    `AUTO` is `ON` where the bundle has codes and the prompt names none of the words to leave alone.
    """

    ON = "on"
    OFF = "off"
    AUTO = "auto"


class DataConfig(Frozen):
    """Which images, and at which size the model sees them."""

    source: str = "digits:3,8@4:1"
    prompt: str | None = None  # of images that have none of their own; checkpoints only
    image_size: Annotated[int, Field(ge=8, le=4096)] = 32
    channels: Literal[1, 3] = 1
    min_side: Positive = 1  # pixels: an image whose shorter side has fewer is refused


class ScheduleConfig(Frozen):
    """Noise levels, with diffusers' names and meanings."""

    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    prediction_type: PredictionType = PredictionType.EPSILON
    # What a checkpoint's scheduler_config.json says about the timesteps that are sampled; None: the sampler's own.
    timestep_spacing: Literal["leading", "linspace", "trailing", "karras"] | None = None
    steps_offset: Annotated[int, Field(ge=0, le=1)] = 0  # added to "leading" timesteps
    set_alpha_to_one: bool = True  # DDIM: the last step leads to the clean end, not to the first timestep's level


class SteeredLayer(Frozen):
    """A place where codes steer: a cross-attention layer by its name in the UNet, or `PREDICTION`."""

    name: str
    width: Positive  # numbers in a direction
    rank: Annotated[int, Field(ge=0)]  # directions that are removed


class ModelConfig(Lean):
    """The networks (diffusers' and transformers' own arguments), the latent they work in, and the indicator."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("steering", "steered_from")  # where they have their defaults

    family: Family = Family.PIXEL  # what surrounds the denoiser
    patch: Annotated[int, Field(ge=1, le=16)] = 4  # pixels a side to a latent's: space-to-depth factor, or the VAE's
    unet: dict[str, Any] = Field(default_factory=dict)  # UNet2DConditionModel's; `PIXEL`: but in/out/sample sizes
    vae: dict[str, Any] = Field(default_factory=dict)  # AutoencoderKL's
    # CLIPTextConfig's, with `architectures`: ["CLIPTextModel"] or ["CLIPTextModelWithProjection"]; one per encoder.
    text_encoders: tuple[dict[str, Any], ...] = ()
    num_indicator_tokens: Annotated[int, Field(ge=1, le=16)] = 4  # M
    code_embed_dim: Positive = 64  # channels of a code's embedding
    head_hidden: tuple[Positive, Positive] = (1024, 512)  # layers of the indicator head C
    steering: tuple[SteeredLayer, ...] = ()  # where codes steer, in place of the indicator (`model/steering.py`)
    steered_from: Annotated[float, Field(ge=0)] = 0.0  # the lowest timestep that is steered

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
        channels = data.channels * self.patch**2 if self.family is Family.PIXEL else int(self.unet["in_channels"])
        return (channels, side, side)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        encoders = {Family.PIXEL: 0, Family.SD: 1, Family.SDXL: 2}[self.family]
        if len(self.text_encoders) != encoders or bool(self.vae) != (self.family is not Family.PIXEL):
            raise ValueError(
                f"family {self.family} has {encoders} text encoders and {'a' if encoders else 'no'} VAE; "
                f"given: {len(self.text_encoders)} and {'one' if self.vae else 'none'}"
            )
        return self


class BaseConfig(Frozen):
    """The checkpoint that a run starts from: a folder in diffusers' format."""

    path: Path  # a relative one is relative to the run
    sha256: Sha256  # over names and contents of its weights and configurations
    variant: str | None = None  # of its files: diffusion_pytorch_model.VARIANT.safetensors


class LoraConfig(Frozen):
    """Low-rank adaptation of a base checkpoint (peft), as the DDM authors set it."""

    rank: Annotated[int, Field(ge=0, le=1024)] = 8  # 0: train the whole UNet
    alpha: Annotated[float, Field(gt=0)] = 32.0
    targets: tuple[str, ...] = ("to_q", "to_v")  # names of the UNet's linear layers
    text_encoder: bool = False  # also adapt its q_proj and v_proj, as the authors' script has it

    @model_validator(mode="after")
    def _encoder_needs_factors(self) -> Self:
        if self.text_encoder and not self.rank:
            raise ValueError("text_encoder (--train-text-encoder) needs a rank (--lora-rank) of at least 1")
        return self


class FeatureConfig(Frozen):
    """Frozen features for code discovery: an ONNX encoder, or contrastive features of the images themselves."""

    # ONNX file: image float32 [B,C,H,W] in [-1, 1] -> features [B,D]; or a folder with transformers' CLIP vision model.
    encoder: Path | None = None
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


class TrainConfig(Lean):
    """The training loop and the DDM objective."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("max_repeats", "shift", "compile")  # where they have their defaults

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
    # How often an image is drawn for balance, against drawing all alike; codes with few images then get less than an
    # equal share. None: as often as equal shares take.
    max_repeats: Annotated[float, Field(ge=1)] | None = None
    shift: Annotated[int, Field(ge=0, le=16)] = 0  # pixels by which an image is moved, anew at each draw (pixels only)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    threads: Positive = 1  # part of what determines the weights, so part of the configuration
    checkpoint_every: Positive = 250
    precision: Literal[Precision.FP32, Precision.FP16, Precision.BF16] = Precision.FP32  # autocast; trained ones: fp32
    accumulate: Positive = 1  # batches of `batch_size` whose gradients make one step
    gradient_checkpointing: bool = False  # activations are computed again in the backward pass: less memory
    compile: bool = False  # the forward and backward pass by torch.compile; takes minutes at the start

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
    # Code. None, for bundles that take prompts: the text's, so that both share two branches ("joint").
    indicator_guidance_scale: Annotated[float, Field(ge=0)] | None = 1.5
    indicator_scale: Annotated[float, Field(ge=0)] = 1.0  # attention, s
    clip: tuple[float, float] | None = (-1.0, 1.0)  # of x0, for pixel models

    @property
    def scales(self) -> tuple[float, float | None]:
        """Guidance on the text, and on the code."""
        return self.guidance_scale, self.indicator_guidance_scale


class DistillConfig(Frozen):
    """How a student was made of another run, with guidance folded in."""

    teacher: Sha256  # sha256 of its weights.safetensors
    # What the student has learned; sampled with scales of 1 it needs no second branch.
    guidance_scale: Annotated[float, Field(ge=0)]  # text; 1 where the family takes none
    indicator_guidance_scale: Annotated[float, Field(ge=0)]
    clip: tuple[float, float] | None = None  # of the teacher's x0
    phases: Annotated[int, Field(ge=1)] = 4  # of the path; the student jumps from one to the next
    # The states that it learns from: of so many paths of the teacher from noise on; 0: noised images, where the path's
    # end is what the student's own average sees.
    paths: Annotated[int, Field(ge=0)] = 0
    # Against a discriminator of the teacher's images, whichever noise they come from; the paths' ends are those images.
    adversarial: bool = False
    walk_steps: Annotated[int, Field(ge=1)] = 25  # of the walks that make them
    discriminator_learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    one_step_start: bool = False  # of a path: the teacher takes the first phase in one guided step, the others in many
    huber: Annotated[float, Field(gt=0)] = 1e-3  # where the loss turns from squares to absolute values
    lora: LoraConfig | None = None  # the student's own factors; RunConfig.lora: with the teacher's

    @property
    def scales(self) -> tuple[float, float]:
        """Guidance on the text, and on the code."""
        return self.guidance_scale, self.indicator_guidance_scale


class SteeringConfig(Frozen):
    """How codes were given to a finished model without training: by directions of its own responses."""

    source: Sha256  # of the weights that are steered: a run's weights.safetensors, or a checkpoint's (`BaseConfig`)
    site: SteeringSite
    strength: Annotated[float, Field(ge=0)] = 1.0  # of what sets a code apart; 1: the mean response of its images
    steered_from: Annotated[float, Field(ge=0)] = 0.0  # the lowest timestep that is steered
    timesteps: tuple[Annotated[int, Field(ge=0)], ...] = ()  # at which responses were measured
    images: Annotated[int, Field(ge=0)] = 0  # that were measured, or drawn of all prompts of `contrast`
    contrast: tuple[str, ...] = ()  # prompts, in place of images; each is a code


class RunConfig(Lean):
    """Everything that determines a training run."""

    LEFT_OUT: ClassVar[tuple[str, ...]] = ("distill", "steering")  # where they have their defaults

    preset: str = "digits"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    features: FeatureConfig = FeatureConfig()
    codes: CodesConfig = CodesConfig()
    train: TrainConfig = TrainConfig()
    sampling: SamplingConfig = SamplingConfig()
    base: BaseConfig | None = None  # families other than `PIXEL`
    lora: LoraConfig = LoraConfig()
    distill: DistillConfig | None = None
    steering: SteeringConfig | None = None

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        self.model.latent_shape(self.data)
        if self.base is None and self.data.prompt is not None:
            raise ValueError("data.prompt (--prompt) needs a checkpoint (--base); this model takes no text")
        if self.base is None and self.lora != LoraConfig():
            raise ValueError("lora (--lora-rank and others) needs a checkpoint (--base)")
        if self.base is not None and self.data.channels != 3:
            raise ValueError("data.channels is 1; a checkpoint's images have 3")
        if (self.base is None) != (self.model.family is Family.PIXEL):
            raise ValueError(f"model.family is {self.model.family}, base is {'not ' * (self.base is None)}given")
        if (self.steering is None) != (not self.model.steering):
            raise ValueError("model.steering and steering need each other; `ddm-rt steer` makes both")
        if self.train.shift and self.model.family is not Family.PIXEL:
            raise ValueError(
                "train.shift moves pixels; a checkpoint's images are encoded before training: leave it at 0"
            )
        if self.codes.top_codes > self.codes.micro_codes:
            raise ValueError(
                f"codes.top_codes ({self.codes.top_codes}) must not exceed codes.micro_codes ({self.codes.micro_codes})"
            )
        if (self.codes.labels is not None) != (self.train.indicator is IndicatorMode.PROBE):
            raise ValueError("codes.labels (--labels) and train.indicator probe need each other")
        if self.codes.labels is not None and self.codes.source is not None:
            raise ValueError("codes.labels and codes.source exclude each other")
        return self
