"""What the decoder of a Stable Diffusion bundle takes: seconds and peak memory of a process that decodes one image.

    python benchmarks/decoder_memory.py BUNDLE [BUNDLE ...] --side 1024

Each bundle has a process of its own, on ONNX Runtime. The latents are noise: what is measured doesn't depend on them.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ddm_rt.bundle import Bundle
from ddm_rt.engine import backends


def decode(path: Path, side: int, threads: int) -> dict[str, object]:
    """One image in this process."""
    bundle = Bundle.load(path, verify=False)
    engine = backends.load(bundle, "onnxruntime", threads=threads, device="cpu")
    shape = bundle.config.latents_of((side, side))
    noise = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
    begun = time.perf_counter()
    engine.decoder(noise)
    seconds, peak = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    tile = bundle.index.provenance.get("decoder_tile")
    return {"tile": None if tile is None else tile["pixels"], "s": round(seconds, 1), "peak_gib": round(peak, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--side", type=int, default=512, help="of the image, in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--here", action="store_true", help="decode in this process, the first bundle alone")
    a = parser.parse_args()
    if a.here:
        print(json.dumps(decode(a.bundles[0], a.side, a.threads)))
        return
    for path in a.bundles:
        line = (str(path), "--side", str(a.side), "--threads", str(a.threads), "--here")
        done = subprocess.run([sys.executable, __file__, *line], check=True, capture_output=True, text=True)
        print(path, a.side, done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
