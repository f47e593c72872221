"""Images per second: `Pipeline.generate` on ONNX Runtime against the same weights in a diffusers torch eager loop.

    python benchmarks/throughput.py BUNDLE [--batch 16] [--threads 2]

The baseline is what a diffusers user writes: diffusers' DDIMScheduler object, the torch modules, both branches of
guidance as one batch, `torch.inference_mode`. Same sampler, steps, batch, codes and threads; the two run in turn, and
the median of the rounds is the figure.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import render
import torch
from measured_steps import commit
from peers.eager import ddim, pixel_model
from store import RESULTS, save

from ddm_rt.bundle import Bundle
from ddm_rt.config import NULL_CODE
from ddm_rt.sample.pipeline import Pipeline


def diffusers_loop(bundle: Bundle, codes: list[int], threads: int) -> Callable[[], torch.Tensor]:
    """The baseline, ready to run: images [B,C,H,W] in [-1, 1]."""
    config, model, scheduler = bundle.config, pixel_model(bundle).eval(), ddim(bundle)
    guidance = config.sampling.indicator_guidance_scale
    code = torch.tensor([NULL_CODE] * len(codes) + codes)
    context = torch.zeros(len(code), 1, model.context_dim)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        torch.set_num_threads(threads)
        scheduler.set_timesteps(config.sampling.num_steps)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(len(codes), *config.latent_shape, generator=generator) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            cond = model.condition(context, code, torch.ones(len(code)))
            null, coded = model(torch.cat([x, x]), t.float().expand(len(code)), cond).chunk(2)
            x = scheduler.step(null + guidance * (coded - null), t, x).prev_sample
        return model.decode(x)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of speed.jsonl and speed.md")
    arguments = parser.parse_args()
    bundle = Bundle.load(arguments.bundle)
    pipeline = Pipeline.load(bundle, backend="onnxruntime", threads=arguments.threads)
    rows = []
    for batch in arguments.batch:
        codes = list(pipeline.generate(n=batch, seed=0).codes)  # also the warm-up
        baseline = diffusers_loop(bundle, codes, arguments.threads)
        baseline()
        seconds: dict[str, list[float]] = {"ours": [], "diffusers": []}
        for _ in range(arguments.rounds):
            for name, call in (("ours", lambda n=batch: pipeline.generate(n=n, seed=0)), ("diffusers", baseline)):
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["diffusers"], strict=True)]
        row = {
            "batch": batch,
            "ours_images_per_s": batch / statistics.median(seconds["ours"]),
            "diffusers_images_per_s": batch / statistics.median(seconds["diffusers"]),
            "ratio_median": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
        rows.append(row)
        print(" ".join(f"{k} {v:.3g}" for k, v in row.items()), flush=True)
    save(
        "throughput",
        {
            "command": f"python benchmarks/throughput.py BUNDLE --threads {arguments.threads}",
            "bundle_id": bundle.bundle_id,
            "sampler": bundle.config.sampling.sampler,
            "num_steps": bundle.config.sampling.num_steps,
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            "versions": {name: version(name) for name in ("torch", "diffusers", "onnxruntime", "numpy")},
            "commit": commit(),
            "rows": rows,
        },
        arguments.results,
    )
    render.render("speed", arguments.results)


if __name__ == "__main__":
    main()
