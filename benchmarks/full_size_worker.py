"""One step of the full-size benchmark, alone in its process so that its peak memory is its own.

    python benchmarks/full_size_worker.py export|convert|build PART --work DIR --scale 1.0 --sm 89

Writes PART.fp32.onnx (export), PART.onnx in fp16 (convert; the float32 graph is deleted) or PART.plan (build) in DIR,
and DIR/PART.STEP.json: seconds by phase, sizes. The steps are what `ddm-rt export`, `ddm-rt export --precision fp16`
and `ddm-rt build` call.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

LATENT = 64  # height and width of a latent, 512 pixels
MEMORY_GIB = 8  # of a build


def export(part: str, work: Path, scale: float, threads: int) -> dict[str, Any]:
    """Draw the weights, trace, write and check the float32 graph."""
    import torch
    from full_size_models import PARTS

    from ddm_rt import graph_files
    from ddm_rt.export import graph

    torch.set_num_threads(threads)
    model, path, seconds = PARTS[part], work / f"{part}.fp32.onnx", {}
    start = time.perf_counter()
    module = model.make(scale, torch.float32)
    parameters = sum(p.numel() for p in module.parameters())
    layers = sum("Indicator" in type(m).__name__ for m in module.modules())
    seconds["draw weights"] = -start + (start := time.perf_counter())
    # Two images that are not square: 0 and 1 would be taken for constants, equal sizes for one axis.
    example = {"batch": 2, "height": LATENT, "width": LATENT + 8}
    inputs = {
        name: torch.zeros([example[n] if isinstance(n, str) else n for n in shape(scale)], dtype=kind)
        for name, (shape, kind) in model.inputs.items()
    }
    shapes = {name: shape(scale) for name, (shape, _) in model.inputs.items()} | model.outputs
    free = {name: {i: n for i, n in enumerate(shape) if isinstance(n, str)} for name, shape in shapes.items()}
    traced = graph.trace(module, inputs, list(model.outputs), free)
    seconds["trace"] = -start + (start := time.perf_counter())
    graph_files.save({path: traced}, shared=True)
    seconds["write and check"] = time.perf_counter() - start
    nodes = len(traced.model.graph.node)
    return {"parameters": parameters, "indicator_attention_layers": layers, "nodes": nodes} | _sizes(path, seconds)


def convert(part: str, work: Path) -> dict[str, Any]:
    """The graph in fp16, weights in a file beside it."""
    from ddm_rt import graph_files
    from ddm_rt.config import Precision
    from ddm_rt.export.precision import convert as precision

    source, path, seconds = work / f"{part}.fp32.onnx", work / f"{part}.onnx", {}
    start = time.perf_counter()
    model = precision.convert_graph(source, Precision.FP16)
    seconds["convert"] = -start + (start := time.perf_counter())
    graph_files.save({path: graph_files.Graph(model)}, shared=True)
    seconds["write and check"] = time.perf_counter() - start
    for old in work.glob(f"{source.name}*"):
        old.unlink()
    return {"nodes": len(model.graph.node)} | _sizes(path, seconds)


def _sizes(path: Path, seconds: dict[str, float]) -> dict[str, Any]:
    written = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    return {"bytes": written, "seconds": seconds}


def build(part: str, work: Path, sm: str) -> dict[str, Any]:
    """One plan from the project's own builder, with the profiles of `ddm-rt build`, for a card that needn't be here."""
    from ddm_rt.engine.tensorrt import build_process, flavours
    from ddm_rt.engine.tensorrt.build import decoder_batch, default_batch
    from ddm_rt.engine.tensorrt.build_worker import Request
    from ddm_rt.engine.tensorrt.plans import Range

    unet = default_batch(flavours.TABLE["tensorrt-rtx"])
    alone = (Range(min=1, opt=1, max=unet[-1].max),)
    batches = {"unet": unet, "vae_decoder": decoder_batch(unet)}.get(part, alone)

    request = Request(
        module="tensorrt_rtx",
        graph=(work / f"{part}.onnx").absolute(),
        plan=(work / f"{part}.plan").absolute(),
        architecture=f"sm_{sm}",
        plugins_for=None,
        profiles=tuple(
            {"batch": (axis.min, axis.opt, axis.max), "height": (LATENT,) * 3, "width": (LATENT,) * 3}
            for axis in batches
        ),
        timing_cache=None,
    )
    result = build_process.run(request, "tensorrt-rtx", MEMORY_GIB, lambda line: None)
    figures = result.figures
    return {
        "bytes": request.plan.stat().st_size,
        "seconds": {"parse": figures["parse_s"], "build": figures["build_s"]},
        "builder_peak_rss_gib": round(figures["peak_rss_mib"] / 1024, 3),
        "profiles": result.profiles,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("export", "convert", "build"))
    parser.add_argument("part")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scale", type=float, required=True)
    parser.add_argument("--sm", default="89")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    a = parser.parse_args()
    if a.step == "export":
        facts = export(a.part, a.work, a.scale, a.threads)
    elif a.step == "convert":
        facts = convert(a.part, a.work)
    else:
        facts = build(a.part, a.work, a.sm)
    (a.work / f"{a.part}.{a.step}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
