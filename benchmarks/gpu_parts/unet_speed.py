"""One step of the digits' UNet and of one of Stable Diffusion 1.5's size, with and without the indicator, over batches.

Weights are random: time doesn't depend on them. diffusers' modules on the torch backend, channels_last.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpu_parts.machine import has
from gpu_parts.numerics import DTYPES
from gpu_parts.record import Record
from gpu_parts.shapes import BATCHES, INDICATOR, TEXT, THROUGHPUT_BATCHES
from gpu_parts.timing import captured, do_bench, interleaved, paired_ratio

NUM_STEPS = {"digits": 25, "sd15": 20}  # of a guided image: the digits bundle's default; a usual choice for SD 1.5
PEAK_SIZE = 8192


@dataclass
class Network:
    """A UNet in two versions that share its weights: with the indicator, and diffusers' own."""

    name: str
    unet: Any  # diffusers.UNet2DConditionModel
    latent: tuple[int, int, int]
    text: int
    plain: Any  # diffusers' attention processor

    def __post_init__(self) -> None:
        self._indicator = self.unet.attn_processors

    def use(self, *, indicator: bool) -> None:
        self.unet.set_attn_processor(dict(self._indicator) if indicator else self.plain)

    def inputs(self, batch: int, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        dim = self.unet.config.cross_attention_dim

        def normal(*shape: int) -> Tensor:
            return torch.randn(batch, *shape, device=device).to(dtype)

        return {
            "x_t": normal(*self.latent).contiguous(memory_format=torch.channels_last),
            "t": torch.full((batch,), 500.0, device=device),
            "text": normal(self.text, dim),
            "indicator": normal(INDICATOR, dim),
            "scale": torch.ones(batch, device=device),
        }

    def call(self, inputs: dict[str, Tensor], *, indicator: bool) -> Callable[[], Tensor]:
        """A forward pass. The version in use when it runs (or is captured) counts: see `use`."""
        extra = {"indicator_tokens": inputs["indicator"], "indicator_scale": inputs["scale"]} if indicator else None

        def forward() -> Tensor:
            out: Tensor = self.unet(
                inputs["x_t"], inputs["t"], inputs["text"], cross_attention_kwargs=extra, return_dict=False
            )[0]
            return out

        return forward


def network(name: str, dtype: torch.dtype, device: str, scale: float = 1.0) -> Network:
    """`digits` (the shipped preset's) or `sd15` (`scale` of its parameters), random weights of `dtype` on `device`."""
    from diffusers.models.attention_processor import AttnProcessor2_0
    from full_size_models import LATENT, make_unet

    with torch.device(device):
        if name == "sd15":
            unet, latent, text = make_unet(scale, dtype), (4, LATENT, LATENT), TEXT
        else:
            from ddm_rt.model.unet import DDM
            from ddm_rt.presets import resolve

            config = resolve(name)
            latent, text = config.model.latent_shape(config.data), 1
            unet = DDM(config.model, latent, top_of=(0, 1)).unet.to(dtype)
    unet = unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Network(name, unet, latent, text, AttnProcessor2_0())


def flops_per_image(model: Network, dtype: torch.dtype, device: str) -> float:
    """Multiplications and additions of a forward pass of one image, without the indicator's own (below 0.5 %)."""
    from torch.utils.flop_counter import FlopCounterMode

    model.use(indicator=False)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.call(model.inputs(1, dtype, device), indicator=False)()
    return float(counter.get_total_flops())


def section_unet_step(record: Record, device: str = "cuda") -> None:
    """Denoiser alone: eager and as a CUDA graph, with and without the indicator, interleaved."""
    record.facts["unit"] = "ms per forward pass of the batch"
    for model, name, dtype in _networks(record, device):
        # Graphs run in rounds with each other; 0.5 % needs more rounds than a speed-up does.
        bench, eager = do_bench(rep_ms=200), do_bench(rep_ms=60)
        for batch in BATCHES:
            if not record.room(f"{model.name} {name} batch {batch}", 8):
                continue
            inputs = model.inputs(batch, dtype, device)
            graphs, row = {}, {"model": model.name, "dtype": name, "batch": batch}
            with torch.inference_mode():
                for key, indicator in (("plain", False), ("indicator", True)):
                    model.use(indicator=indicator)
                    call = model.call(inputs, indicator=indicator)
                    graphs[key] = captured(call)
                    row[f"{key}_eager_ms"] = interleaved({key: call}, eager, rounds=1)[key]["median"]
                found = interleaved(graphs, bench, rounds=7)
            for key, times in found.items():
                row |= {f"{key}_ms": times["median"], f"{key}_q20": times["q20"], f"{key}_q80": times["q80"]}
            ratio = paired_ratio(found["indicator"], found["plain"])
            row |= {"cost": ratio["median"] - 1, "cost_q20": ratio["q20"] - 1, "cost_q80": ratio["q80"] - 1}
            record.add(**row)
            del graphs, found
            torch.cuda.empty_cache()


def section_throughput(record: Record, device: str = "cuda") -> None:
    """A whole guided step (both branches as one batch, then guided_step) as a CUDA graph, over batches 1 to 32."""
    from ddm_rt.kernels.guided_step.fused import guided_step_fused

    peaks = {name: matmul_peak(dtype, device) for name, dtype in DTYPES.items()}
    record.facts |= {
        "peak_tflop_per_s": peaks,
        "peak": f"torch.matmul {PEAK_SIZE} cubed on this card",
        "images_per_s": f"batch / (steps * step time), steps {NUM_STEPS}, guided; decoder and text encoder not counted",
    }
    bench = do_bench(rep_ms=60)
    for model, name, dtype in _networks(record, device):
        per_image = 2 * flops_per_image(model, dtype, device)  # two branches
        model.use(indicator=True)
        for batch in THROUGHPUT_BATCHES:
            if not record.room(f"{model.name} {name} batch {batch}", 6):
                continue
            inputs = model.inputs(2 * batch, dtype, device)
            denoise = model.call(inputs, indicator=True)
            x = inputs["x_t"][:batch].float().contiguous()
            rows = torch.tensor([1.0, -0.1, 0.5, 0.5, 0, 0, 0, -9, 9], device=device).expand(batch, 9).contiguous()
            scales = torch.full((batch, 1), 7.5, device=device)

            step = partial(_guided, guided_step_fused, denoise, scales, rows, x)
            with torch.inference_mode():
                times = interleaved({"step": captured(step)}, bench, rounds=3)["step"]
            seconds = times["median"] / 1e3
            rate = batch * per_image / seconds / 1e12
            record.add(
                model=model.name,
                dtype=name,
                batch=batch,
                step_ms=times["median"],
                step_q20=times["q20"],
                step_q80=times["q80"],
                images_per_s=batch / (NUM_STEPS[model.name] * seconds),
                tflop_per_s=rate,
                of_peak=rate / peaks[name],
            )
            torch.cuda.empty_cache()


def _guided(guided_step: Any, denoise: Any, scales: Tensor, rows: Tensor, x: Tensor) -> Any:
    """Both branches in one call of the denoiser, and what follows it."""
    null, conditioned = denoise().float().contiguous().chunk(2)
    return guided_step([null, conditioned], scales, rows, x, x)


def matmul_peak(dtype: torch.dtype, device: str) -> float:
    """TFLOP/s of a large square product on this card: what it reaches, not what its data sheet says."""
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    times = interleaved({"matmul": partial(torch.matmul, a, b, out=out)}, do_bench(rep_ms=200), rounds=3)["matmul"]
    return float(2 * PEAK_SIZE**3 / times["median"] / 1e9)


def _networks(record: Record, device: str) -> Iterator[tuple[Network, str, torch.dtype]]:
    """Both sizes in both types, the large one first; one at a time on the device."""
    if not has("diffusers"):
        record.leave_out("everything: diffusers is not installed")
        return
    for name in ("sd15", "digits"):
        if name == "digits" and not has("pydantic"):
            record.leave_out("digits: pydantic is not installed")
            continue
        for key, dtype in DTYPES.items():
            if record.room(f"{name} {key}", 5):
                yield network(name, dtype, device), key, dtype
                torch.cuda.empty_cache()
