"""What the conditioner should give a denoiser: tokens, or each layer's keys and values, made once per prompt.

    python benchmarks/hoisting.py --work DIR

SD 1.5's UNet with a quarter of its channels, the indicator in it and random weights, exported both ways as `ddm-rt
export` does, with `--precompute-kv` and without it. Calls are timed on ONNX Runtime with one thread, interleaved; each
figure is CPU time, so that other processes on the machine count little. The largest difference between what both
denoisers give is recorded, and how many matrix products each graph has.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import render
import torch
from diffusers import UNet2DConditionModel
from full_size_models import INDICATOR_TOKENS, TOKENS, Denoiser, context_dim, make_unet
from measured_steps import commit
from numpy.typing import NDArray
from store import RESULTS, save
from torch import Tensor, nn

from ddm_rt import graph_files
from ddm_rt.engine.machine import processor
from ddm_rt.export import graph
from ddm_rt.model import keys_values

SCALE = 1 / 16  # of the parameters: a quarter of the channels
CASES = ((1, 32), (4, 32), (1, 48))  # rows of one call, latent side
ROUNDS = 15
_LATENT = {0: "batch", 2: "height", 3: "width"}
# Sums over cross-attention layers of their widths: what the keys of one token take.
WIDTHS = {"SD 1.5": 5 * 320 + 5 * 640 + 6 * 1280, "SDXL": 10 * 640 + 60 * 1280}
DIMS = {"SD 1.5": 768, "SDXL": 2048}  # of a token


class Projections(nn.Module):
    """Text and indicator tokens -> keys and values: the conditioner's part where they are ready."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, text: Tensor, indicator: Tensor) -> Tensor:
        return keys_values.pack(self.unet, text, indicator)


class ReadyDenoiser(nn.Module):
    """The UNet as `output = denoiser(x_t, t, keys_values, code_scale)`."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, t: Tensor, packed: Tensor, code_scale: Tensor) -> Tensor:
        kwargs = {
            "ready": keys_values.unpack(self.unet, packed, INDICATOR_TOKENS),
            "indicator_scale": code_scale,
        }
        out: Tensor = self.unet(x_t, t, None, cross_attention_kwargs=kwargs, return_dict=False)[0]
        return out


def draw(batch: int, side: tuple[int, int], dim: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn((batch, *shape), generator=generator)

    return {
        "x_t": normal(4, *side),
        "t": torch.linspace(900, 100, batch),
        "text_tokens": normal(TOKENS, dim),
        "indicator_tokens": normal(INDICATOR_TOKENS, dim),
        "code_scale": torch.linspace(1, 0.5, batch),
    }


def export(work: Path) -> dict[str, Path]:
    """The denoiser that takes tokens, the one that takes keys and values, and the graph that makes them."""
    paths = {name: work / f"{name}.onnx" for name in ("tokens", "ready", "projections")}
    given = draw(2, (16, 24), context_dim(SCALE))
    free = {name: {0: "batch"} for name in given} | {"x_t": _LATENT, "output": _LATENT}
    unet = make_unet(SCALE, torch.float32)
    graph_files.save({paths["tokens"]: graph.trace(Denoiser(unet, torch.float32), given, ["output"], free)})
    projections = Projections(unet).eval()
    tokens = {name: given[name] for name in ("text_tokens", "indicator_tokens")}
    with torch.inference_mode():
        packed = projections(*tokens.values()).clone()
    free |= {"keys_values": {0: "batch"}}
    graph_files.save({paths["projections"]: graph.trace(projections, tokens, ["keys_values"], free)})
    call = {"x_t": given["x_t"], "t": given["t"], "keys_values": packed, "code_scale": given["code_scale"]}
    graph_files.save({paths["ready"]: graph.trace(ReadyDenoiser(unet).eval(), call, ["output"], free)})
    return paths


def open_session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(sessions: Mapping[str, Any], batch: int, side: int) -> dict[str, dict[str, NDArray[Any]]]:
    """Inputs of each graph for one call; the keys and values are those of the same tokens."""
    given = {name: tensor.numpy() for name, tensor in draw(batch, (side, side), context_dim(SCALE)).items()}
    tokens = {name: given[name] for name in ("text_tokens", "indicator_tokens")}
    (packed,) = sessions["projections"].run(None, tokens)
    ready = {name: given[name] for name in ("x_t", "t", "code_scale")} | {"keys_values": packed}
    return {"tokens": given, "ready": ready, "projections": tokens}


def measure(sessions: Mapping[str, Any], batch: int, side: int, rounds: int) -> dict[str, Any]:
    """CPU milliseconds of each graph, medians and quartiles over interleaved calls; and what `ready` saves, paired."""
    given = feeds(sessions, batch, side)
    outputs = {name: sessions[name].run(None, given[name])[0] for name in ("tokens", "ready")}
    taken: dict[str, list[float]] = {name: [] for name in given}
    for i in range(rounds):
        order = list(given) if i % 2 else list(reversed(given))
        for name in order:
            start = time.process_time()
            sessions[name].run(None, given[name])
            taken[name].append(1000 * (time.process_time() - start))
    saved = [1 - ready / tokens for tokens, ready in zip(taken["tokens"], taken["ready"], strict=True)]
    return {
        "batch": batch,
        "latent_side": side,
        "max_abs_difference": float(np.abs(outputs["tokens"] - outputs["ready"]).max()),
        **{f"{name}_ms": statistics.quantiles(values, n=4) for name, values in taken.items()},
        "saved_share": statistics.quantiles(saved, n=4),
        "cond_bytes_per_row": {
            name: sum(array.nbytes for key, array in given[name].items() if key not in ("x_t", "t")) // batch
            for name in ("tokens", "ready")
        },
    }


def products(path: Path) -> int:
    """How many matrix products the graph has."""
    return sum(node.op_type in ("MatMul", "Gemm") for node in graph_files.read_model(path).graph.node)


def full_size_bytes() -> dict[str, dict[str, int]]:
    """Bytes of one row of `cond` in float32 at full size."""
    return {
        name: {
            "tokens": 4 * (TOKENS + INDICATOR_TOKENS) * DIMS[name],
            "ready": 4 * (TOKENS + INDICATOR_TOKENS) * 2 * width,
        }
        for name, width in WIDTHS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="keeps the graphs")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of speed.jsonl and speed.md")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    paths = {name: arguments.work / f"{name}.onnx" for name in ("tokens", "ready", "projections")}
    if not all(path.exists() for path in paths.values()):
        paths = export(arguments.work)
    sessions = {name: open_session(path) for name, path in paths.items()}
    rows = [measure(sessions, batch, side, arguments.rounds) for batch, side in CASES]
    result = {
        "command": "python benchmarks/hoisting.py --work DIR",
        "machine": f"{platform.system()} {platform.machine()}, {processor()}, {os.cpu_count()} CPUs",
        "load_average": os.getloadavg(),
        "versions": {name: version(name) for name in ("onnxruntime", "onnx", "torch", "diffusers")},
        "rounds": arguments.rounds,
        "products": {name: products(path) for name, path in paths.items()},
        "commit": commit(),
        "rows": rows,
        "full_size_bytes_per_row": full_size_bytes(),
    }
    save("hoisting", result, arguments.results)
    print(render.render("speed", arguments.results))


if __name__ == "__main__":
    main()
