"""A training step of SD 1.5 in bf16: ours with and without the indicator, and the loop of diffusers' examples."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpu_parts import models
from gpu_parts.record import Record
from gpu_parts.rig import Rig
from gpu_parts.timing import interleaved, paired_ratio
from gpu_parts.trajectories import Attempt

BATCHES = {"lora": 8, "whole UNet": 4}
RANK = 8
IMAGES, PROMPTS = 64, 8  # that the steps draw from
STEPS_A_TURN = 3
COMPILE_S = 150.0

Step = Callable[[], float]  # -> the loss, on the host


def section_training(record: Record, rig: Rig) -> None:
    record.facts["measure"] = "ms per optimizer step, on the host's clock, with the loss on the host; 512 pixel latents"
    record.facts["ours"] = (
        "Trainer.advance: with the indicator head's loss where there is one, and an average of weights"
    )
    record.facts["diffusers"] = (
        "the loop of its train_text_to_image scripts: peft's factors or the whole UNet, no average"
    )
    for kind, batch in BATCHES.items():
        if record.has(kind=kind) or not record.room(kind, 0 if rig.dry else 40):
            continue
        steps: dict[str, Step] = {}
        memory: dict[str, float] = {}
        makers: dict[str, Callable[[], Step]] = {
            "diffusers, eager": partial(diffusers_step, rig, kind, batch, None),
            "ours without indicator": partial(our_step, rig, kind, batch, indicator=False),
            "ours with indicator": partial(our_step, rig, kind, batch, indicator=True),
        }
        # Two models of the whole UNet with their optimizers fit beside a third, and hardly a fourth.
        if kind == "lora" and record.room("diffusers, compiled", 0 if rig.dry else COMPILE_S):
            makers["diffusers, default"] = partial(diffusers_step, rig, kind, batch, "default")
        # As `ddm-rt train` has it by default.
        if kind == "lora" and not rig.dry and record.room("ours, compiled", COMPILE_S):
            makers["ours with indicator, compiled"] = partial(our_step, rig, kind, batch, indicator=True, compiled=True)
        for name, maker in makers.items():
            with Attempt(record, part=kind, variant=name):
                before = rig.allocated()
                step = maker()
                for _ in range(2):
                    step()
                steps[name], memory[name] = step, (rig.peak_allocated() - before) / 2**30
        record.add_all(_rows(rig, kind, batch, steps, memory))
        del steps, makers
        rig.free()


def _rows(rig: Rig, kind: str, batch: int, steps: dict[str, Step], memory: dict[str, float]) -> list[dict[str, Any]]:
    def bench(call: Step) -> list[float]:
        times = []
        for _ in range(1 if rig.dry else STEPS_A_TURN):
            rig.synchronize()
            start = rig.seconds()
            call()
            times.append(1e3 * (rig.seconds() - start))
        return times

    found = interleaved(steps, bench, rounds=max(rig.rounds))
    baseline = min(
        (name for name in found if name.startswith("diffusers")),
        key=lambda name: float(found[name]["median"]),
        default=None,
    )
    rows = []
    for name, times in found.items():
        row = {"kind": kind, "model": "sd15", "dtype": "bf16 autocast", "batch": batch, "steps": 1, "variant": name}
        row |= {"rounds": len(times["rounds"]), "runs": times["runs"], "p50_ms": times["p50"], "p95_ms": times["p95"]}
        row |= {"images_per_s": 1e3 * batch / times["median"], "memory_gib": memory[name]}
        ratio = paired_ratio(found[baseline], times)["median"] if baseline is not None else None
        rows.append(row | {"over_diffusers": ratio, "baseline": baseline})
    return rows


def our_step(rig: Rig, kind: str, batch: int, *, indicator: bool, compiled: bool = False) -> Step:
    """`Trainer.advance` of ddm_rt on latents and contexts that lie ready."""
    from ddm_rt.config import BaseConfig, DataConfig, IndicatorMode, LoraConfig, RunConfig, TrainConfig
    from ddm_rt.train.checkpoint.model import Captions, LatentSubject
    from ddm_rt.train.distributed import Processes
    from ddm_rt.train.loop import Trainer
    from ddm_rt.train.trainee import Classes, Material

    architecture = models.sd15(tiny=rig.tiny)
    top_of = tuple(k // 2 for k in range(models.CODES)) if indicator else ()
    config = RunConfig(
        preset="sd15",
        data=DataConfig(source="none", prompt="none", image_size=architecture.pixels, channels=3),
        model=models.model_config(architecture),
        schedule=models.schedule_config(architecture),
        train=TrainConfig(
            indicator=IndicatorMode.CODES if indicator else IndicatorMode.NONE,
            batch_size=batch,
            precision="bf16",
            compile=compiled,
            steps=10_000,
        ),
        base=BaseConfig(path="none", sha256="0" * 64),
        lora=LoraConfig(rank=RANK if kind == "lora" else 0),
    )
    context = torch.from_numpy(models.contexts(architecture, PROMPTS)["context"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        latents = torch.randn(IMAGES, *architecture.latent)
        model = models.drawn(architecture, rig.device, indicator=False)
    captions = Captions(
        ("",) * PROMPTS,
        torch.arange(IMAGES) % PROMPTS,
        lambda rows: {"context": context[rows]},
        torch.zeros(IMAGES, 6, dtype=torch.int64),
    )
    subject = LatentSubject(config, model, captions, tuple((top,) for top in top_of))
    codes = torch.arange(IMAGES) % models.CODES if indicator else None
    classes = Classes(codes, models.CODES if indicator else 0, top_of)
    trainer = Trainer(config, Material(latents, classes, lambda: subject), Processes(torch.device(rig.device)))
    return trainer.advance


def diffusers_step(rig: Rig, kind: str, batch: int, mode: str | None) -> Step:
    """What train_text_to_image.py and its LoRA sibling do for each batch, under autocast."""
    import diffusers
    from peft import LoraConfig as PeftConfig

    architecture = models.sd15(tiny=rig.tiny)
    model = models.drawn(architecture, rig.device, indicator=False)
    unet = model.unet
    del model
    unet.to(memory_format=torch.channels_last)
    if kind == "lora":
        unet.requires_grad_(False)
        nn.Module.to(unet, torch.bfloat16)  # diffusers' own warns of modules that there are none of
        targets = ["to_q", "to_v"]
        unet.add_adapter(PeftConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets))
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    unet.train()
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = diffusers.DDPMScheduler(**noise)
    optimizer = torch.optim.AdamW(trained, 1e-4, weight_decay=1e-2, fused=True)
    context = torch.from_numpy(models.contexts(architecture, PROMPTS)["context"]).to(rig.device)
    latents = torch.randn(IMAGES, *architecture.latent, device=rig.device)
    forward = unet if mode is None else rig.compiled(unet, mode)

    def step() -> float:
        index = torch.randint(IMAGES, (batch,), device=rig.device)
        x0 = latents[index]
        target = torch.randn_like(x0)
        t = torch.randint(1000, (batch,), device=rig.device)
        x_t = scheduler.add_noise(x0, target, t)
        with rig.fastest_convolutions():
            with torch.autocast(rig.device, torch.bfloat16):
                predicted: Tensor = forward(x_t, t, context[index % PROMPTS], return_dict=False)[0]
            loss = F.mse_loss(predicted.float(), target.float())
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step
