"""A student of a finished run: the same codes in a few steps and one branch. It is a run too, and exported as one."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ddm_rt.config import DistillConfig, Family, LoraConfig, Precision, RunConfig, SamplerName
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.files import read, write_atomic
from ddm_rt.model.assemble import WEIGHTS, assemble, read_file
from ddm_rt.model.unet import DDM
from ddm_rt.presets import override
from ddm_rt.progress import OnFigures
from ddm_rt.runtime import Codes
from ddm_rt.train.disk_cache import CACHE
from ddm_rt.train.distill.adversarial import AdversarialDistiller
from ddm_rt.train.distill.consistency import GRID, Distiller
from ddm_rt.train.distill.paths import PathDistiller
from ddm_rt.train.distributed import chosen_device
from ddm_rt.train.pixels import PixelStudent, prepare_pixels
from ddm_rt.train.run import carry_out, device_fields
from ddm_rt.train.trainee import Material

# What a student has of its teacher's run: which images have which code, and which images those were.
_TAKEN = ("codes.json", "assignment.json", "images.sha256")
# These and those of `_PATHS` were chosen on the pair 7v8 alone, and the pairs of images that a discriminator's heads
# compare on 7v8 and 1v7 (benchmarks/results/distill.md).
_ADVERSARIAL: dict[str, Any] = {
    "distill.adversarial": True,
    "distill.phases": 2,
    "train.accumulate": 1,
    "distill.paths": 8192,
    "train.steps": 1000,
    "train.learning_rate": 1e-4,
    "train.warmup_steps": 10,
    "train.ema_decay": 0.995,
    "train.weight_decay": 0.0,
}
# With absolute values for a loss, jumps near the image, whose errors are small and show, count as much as those near
# noise.
_PATHS: dict[str, Any] = {
    "distill.paths": 4096,
    "distill.huber": 0.01,
    "train.steps": 8000,
    "train.learning_rate": 1e-3,
    "train.ema_decay": 0.99,
    "train.weight_decay": 0.0,
}
_IMAGES: dict[str, Any] = {
    "train.steps": 600,
    "train.learning_rate": 5e-4,
    "train.ema_decay": 0.95,
    "train.weight_decay": 0.0,
}
# As for LCM-LoRA: rank 64 beside all linear layers of the UNet. A path takes some hundred calls of it.
_CHECKPOINT = _IMAGES | {"train.steps": 1000, "train.learning_rate": 1e-4}
_LORA = LoraConfig(
    rank=64,
    alpha=64.0,
    targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "time_emb_proj"),
)


def distill(
    teacher: Path,
    out: Path,
    fields: Mapping[str, Any] | None = None,
    *,
    progress: Mapping[str, OnFigures] | None = None,
    grid_every: int | None = None,
) -> Path:
    """Distil the finished run `teacher` into the run directory `out`, or go on with what is there; returns `out`.

    `fields` are dotted fields of the student's configuration (`student_config`); what they leave open of
    `train.run.device_fields` is the device's. What is computed where, what
    `progress` may hold ("paths" besides) and what is raised is as in `train.run.train`.
    """
    pixels = read_file(RunConfig, teacher / "config.json").base is None
    of_device = device_fields(out, chosen_device(), pixels=pixels)
    config = student_config(teacher, of_device | dict(fields or {}))
    assert config.distill is not None
    kind: type[Distiller] = PathDistiller if config.distill.paths else Distiller
    if config.distill.adversarial:
        kind = AdversarialDistiller
    return carry_out(config, out, partial(_prepare, teacher, config, out), kind, progress, grid_every)


def student_config(teacher: Path, fields: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a student of the run `teacher`, with dotted `fields` set.

    By default its guidance is what the teacher samples with. Raises BundleError for a run that isn't finished, and
    DdmError for one that is a student itself and for fields that don't fit.
    """
    config = read_file(RunConfig, teacher / "config.json")
    if config.distill is not None:
        raise DdmError(f"{teacher} is a student itself; distil the run that it was made from")
    if config.steering is not None:
        raise DdmError(
            f"{teacher} is steered, and a student of it would be steered twice; expected a run with trained codes"
        )
    sampling, pixel = config.sampling, config.model.family is Family.PIXEL
    fields = dict(fields or {})
    for name, kind, expected in (("adversarial", bool, "true or false"), ("paths", int, "a whole number")):
        if not isinstance(given := fields.get(f"distill.{name}", kind()), kind):
            raise DdmError(f"distill.{name} is {given!r}; expected {expected}")
    own = _recipe(fields) if pixel else _CHECKPOINT
    phases = (own | fields).get("distill.phases", DistillConfig.model_fields["phases"].default)
    if not isinstance(phases, int) or phases < 1 or GRID % phases:
        raise DdmError(f"distill.phases is {phases}; expected a divisor of {GRID}, the steps of the teacher's walk")
    text = 1.0 if pixel else sampling.guidance_scale
    code = sampling.indicator_guidance_scale
    paths, adversarial = ((own | fields).get(f"distill.{name}") for name in ("paths", "adversarial"))
    if adversarial and (not pixel or not paths):
        raise DdmError("distill.adversarial needs a run on pixels, and distill.paths of at least 1")
    weights = read(teacher / WEIGHTS, "a finished run has it", BundleError)
    student = config.model_copy(
        update={
            "distill": DistillConfig(
                teacher=hashlib.sha256(weights).hexdigest(),
                guidance_scale=text,
                indicator_guidance_scale=text if code is None else code,
                clip=sampling.clip,
                walk_steps=sampling.num_steps,
                lora=None if pixel else _LORA,
            )
        }
    )
    folded = {
        # Where the first phase ends decides what an image shows. A student that learns from noise where many steps end
        # gives something between two kinds of images; where a single guided step ends it can learn. With two phases
        # that step would be half of the path: too far (benchmarks/results/distill.md, digits 0 and 1).
        "distill.one_step_start": bool(paths) and phases >= 4 and not adversarial,
        "train.indicator_weight": 0.0,
        "train.compile": False,  # both the device's to say, not the teacher's
        "train.precision": Precision.FP32,
        "sampling.sampler": SamplerName.LCM if adversarial else SamplerName.DDIM,
        "schedule.set_alpha_to_one": True,
        # Few "leading" steps begin far below the last timestep: nothing is left of one or two, and what a checkpoint
        # calls noise there isn't. Pixel models with four or more do better with them (results/distill.md).
        "schedule.timestep_spacing": (
            config.schedule.timestep_spacing if adversarial or (pixel and phases >= 4) else "trailing"
        ),
        "sampling.num_steps": phases,
        "sampling.eta": 0.0,
        # What stays in x when the teacher's x0 is clipped leads to better images, and x0s beyond the clip lead there.
        "sampling.clip": None if paths and not adversarial else sampling.clip,
        "sampling.guidance_scale": 1.0,
        "sampling.indicator_guidance_scale": 1.0,
    }
    if config.base is not None:
        folded["base.path"] = (teacher / config.base.path).resolve()
    if pixel and any(name.startswith("distill.lora") for name in fields):
        raise DdmError(
            "distill.lora (--lora-rank and others) needs a run on a checkpoint; this one's student is its UNet"
        )
    student = override(student, own | folded | fields)
    if adversarial and student.train.precision is Precision.FP16:
        # The losses of two networks can't share a scale.
        raise DdmError("train.precision is fp16; an adversarial student is trained in fp32 or bf16")
    return student if pixel else _with_both_factors(config, student)


def _recipe(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a student of pixels, by what it learns from."""
    if fields.get("distill.paths") == 0:
        return _IMAGES
    return _ADVERSARIAL if fields.get("distill.adversarial", True) else _PATHS


def _with_both_factors(teacher: RunConfig, student: RunConfig) -> RunConfig:
    """`lora` of factors that hold the teacher's and the student's side by side: W + s·[B_t B_s]·[A_t; A_s]."""
    own = None if student.distill is None else student.distill.lora
    if own is None or not own.rank or own.text_encoder:
        raise DdmError(
            "distill.lora: expected a rank of at least 1 and no text_encoder: a checkpoint's student is factors"
        )
    lora = own
    if teacher.lora.rank:
        rank = teacher.lora.rank + own.rank
        lora = teacher.lora.model_copy(update={"rank": rank, "alpha": teacher.lora.alpha / teacher.lora.rank * rank})
    return override(student, {"lora": lora.model_dump()})


def _prepare(
    teacher: Path, config: RunConfig, out: Path, device: torch.device, progress: Mapping[str, OnFigures]
) -> Material:
    """As `train.run.prepare`, with the teacher's codes and the student as the subject."""
    for name in _TAKEN:
        if (teacher / name).is_file() and not (out / name).exists():
            write_atomic(out / name, (teacher / name).read_bytes())
    from_run = read_file(RunConfig, teacher / "config.json")
    codes = read_file(Codes, teacher / "codes.json")
    model = assemble(teacher, from_run, codes)
    if isinstance(model, DDM):
        return replace(
            prepare_pixels(config, out, device, progress),
            make_subject=partial(PixelStudent, config, model),
            clear=partial(shutil.rmtree, out / CACHE, ignore_errors=True),
        )
    from ddm_rt.train.checkpoint.prepare import prepare_student
    from ddm_rt.train.checkpoint.student import Teacher

    return prepare_student(config, Teacher(model, load_file(teacher / WEIGHTS), from_run.lora), out, device, progress)
