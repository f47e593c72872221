"""A row's images, what they cost, and how long they take against plain sampling of the same model."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.sample.loop.noise import derive_range
from rivals.sampling import Output, plain
from rivals.subjects import Subject

N, SEED, MAX_IMAGES = 1000, 0, 2000
ROUNDS, TIMED = 3, 32  # of so many images


def generate(subject: Subject, output: Output, batch: int, n: int = N, limit: int = MAX_IMAGES) -> NDArray[np.uint8]:
    """n images, seeds as `Pipeline.generate` has them, and more in requests of n for the quality of each group.

    More are made while at the rarest group's rate so far `limit` images are enough for it.
    """
    images: list[NDArray[np.uint8]] = []
    wanted = subject.min_per_group
    while len(images) * n < limit:
        images.append(_request(subject, output, batch, SEED + len(images), n))
        made = np.concatenate(images)
        labels = subject.judge.predict(made).labels
        least = min(int((labels == group).sum()) for group in subject.groups)
        if least >= wanted or least * limit < wanted * len(made):
            break
    return made


def _request(subject: Subject, output: Output, batch: int, seed: int, n: int) -> NDArray[np.uint8]:
    seeds = np.array(derive_range(seed, range(n)), np.uint64)
    numbers = np.arange(n)
    parts = [slice(start, start + batch) for start in range(0, n, batch)]
    return np.concatenate([subject.model.images(output, seeds[part], numbers[part]) for part in parts])


def kept(path: Path, subject: Subject, output: Output, batch: int) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """Images and their cost, from the file where it is there."""
    if not path.is_file():
        denoiser = subject.model.denoiser
        denoiser.forward = denoiser.backward = denoiser.heads = 0
        images = generate(subject, output, batch)
        counts = np.array([denoiser.forward, denoiser.backward, denoiser.heads]) / len(images)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft.npz")
        np.savez_compressed(draft, images=images, calls=counts)
        draft.rename(path)
    with np.load(path) as arrays:
        forward, backward, heads = arrays["calls"].tolist()
        return arrays["images"], {"forward": forward, "backward": backward, "head_gradients": heads}


def spent(subject: Subject, output: Output) -> dict[str, Any]:
    """Milliseconds an image, medians of interleaved rounds of one batch each: the rival's and plain sampling's."""
    seeds, numbers = np.arange(TIMED, dtype=np.uint64), np.arange(TIMED)
    found: dict[str, list[tuple[float, float]]] = {"rival": [], "plain": []}
    for _ in range(ROUNDS):
        for name, one in (("plain", plain(subject.context)), ("rival", output)):
            wall, cpu = time.perf_counter(), time.process_time()
            subject.model.latents(one, seeds, numbers)
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    medians = {name: (np.median(times, axis=0) / TIMED * 1e3).tolist() for name, times in found.items()}
    return {
        "rounds": ROUNDS,
        "batch": TIMED,
        "wall_ms_per_image": medians["rival"][0],
        "plain_wall_ms_per_image": medians["plain"][0],
        "cpu_ratio": medians["rival"][1] / medians["plain"][1],
        "load": os.getloadavg()[0],
    }


def machine() -> dict[str, Any]:
    import diffusers
    import torch

    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
