"""The fused kernel's speed: against the unfused pair, against plain flash attention, against a copy; and its tiles."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ddm_rt.kernels.indicator_attention import table
from gpu_parts.numerics import DTYPES, tensors
from gpu_parts.record import Record
from gpu_parts.rig import Rig
from gpu_parts.shapes import (
    HEADS,
    INDICATOR,
    ROWS,
    SD15_LAYERS,
    TEXT,
    TINY_LAYERS,
    Attention,
    bytes_moved,
    flops,
    sd15,
)
from gpu_parts.timing import Call, interleaved, paired_ratio

# Calls of a warm series, captured as one graph: the first of them, and the launch, are a small part of it.
WARM_CALLS = 20
CACHES = ("cold", "warm")


def unfused(q: Tensor, k: Tensor, v: Tensor, k_ind: Tensor, v_ind: Tensor, scale: Tensor) -> Tensor:
    """The pair that a user writes: two calls of torch's attention and a scaled sum. BNHD in and out."""
    text = sdpa(q, k, v)
    return text + scale.to(text.dtype).view(-1, 1, 1, 1) * sdpa(q, k_ind, v_ind)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's attention on BNHD tensors, without copies of them."""
    out: Tensor = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(
        1, 2
    )
    return out


def flash(rig: Rig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with rig.only_flash():
        return sdpa(q, k, v)


def layers_of(rig: Rig) -> dict[tuple[int, int], int]:
    return TINY_LAYERS if rig.tiny else SD15_LAYERS


def section_attention(record: Record, rig: Rig) -> None:
    """fused, unfused pair, flash attention alone and a device copy of the same bytes, each as a CUDA graph."""
    record.facts["unit"] = "ms per call, replayed as a CUDA graph"
    record.facts["cold"] = "the L2 cache is cleared before each run"
    record.facts["warm"] = f"{WARM_CALLS} calls in a row on the same tensors, divided by their number"
    fused = rig.attention()
    for rows in ROWS:
        for name, dtype in sorted(DTYPES.items()):  # bf16 first
            for shape in sd15(rows, layers_of(rig)):
                identity = {"dtype": name, "batch": rows, "queries": shape.queries, "head_dim": shape.head_dim}
                if record.has(**identity) or not record.room(f"{name} {tuple(shape)}", 0 if rig.dry else 3):
                    continue
                inputs = tensors(shape, dtype, rig.device)
                # A copy reads and writes: half of the bytes each way.
                source = torch.empty(bytes_moved(shape) // 2, dtype=torch.uint8, device=rig.device)
                target = torch.empty_like(source)
                calls: dict[str, Call] = {
                    "fused": partial(fused, *inputs),
                    "unfused": partial(unfused, *inputs),
                    "flash": partial(flash, rig, *inputs[:3]),
                    "copy": partial(target.copy_, source),
                }
                once = {key: rig.captured(call) for key, call in calls.items()}
                series = {key: rig.captured(call, WARM_CALLS) for key, call in calls.items()}
                found = {
                    "cold": interleaved(once, rig.bench()),
                    "warm": interleaved(series, partial(_each_of, rig.warm_bench())),
                }
                record.add_all([_speed_row(identity, cache, layers_of(rig), shape, found[cache]) for cache in CACHES])


def _each_of(bench: Any, call: Call) -> list[float]:
    """A series' times, per call."""
    return [time / WARM_CALLS for time in bench(call)]


def _speed_row(
    identity: dict[str, Any],
    cache: str,
    layers: dict[tuple[int, int], int],
    shape: Attention,
    found: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """One row: the times, and what they come to."""
    moved = bytes_moved(shape)
    row: dict[str, Any] = identity | {"cache": cache, "layers": layers[shape.queries, shape.head_dim]}
    row |= {"rounds": len(found["fused"]["rounds"]), "runs": found["fused"]["runs"]}
    for key, times in found.items():
        row[f"{key}_ms"], row[f"{key}_p95"] = times["p50"], times["p95"]
    return row | {
        "speedup": paired_ratio(found["unfused"], found["fused"])["median"],
        "over_flash": paired_ratio(found["fused"], found["flash"])["median"],
        "of_copy": paired_ratio(found["copy"], found["fused"])["median"],
        "fused_gb_per_s": moved / found["fused"]["median"] / 1e6,
        "copy_gb_per_s": moved / found["copy"]["median"] / 1e6,
        "fused_tflop_per_s": flops(shape) / found["fused"]["median"] / 1e9,
    }


def section_tactics(record: Record, rig: Rig) -> None:
    """Every tile of the table for this card at 16 rows: what `table.py` should ship here."""
    record.facts |= {"architecture": rig.architecture(), "unit": "ms"}
    fused = rig.attention()
    queries = {d: n for n, d in reversed(layers_of(rig))}  # the larger N where a head dim has two
    # Stable Diffusion's head dims first: they matter most if time runs out.
    for dim in sorted(table.HEAD_DIMS, key=lambda d: d not in queries):
        for name, dtype in sorted(DTYPES.items()):
            tiles = table.tactics(dim, name, rig.architecture())
            if record.has(head_dim=dim, dtype=name):
                continue
            # A kernel takes seconds to compile the first time.
            if not record.room(f"tiles of {name} head dim {dim}", 0 if rig.dry else 3 * len(tiles)):
                continue
            shape = Attention(16, queries.get(dim, 16 if rig.tiny else 1024), HEADS, dim, TEXT, INDICATOR)
            inputs = tensors(shape, dtype, rig.device)
            calls = {"x".join(map(str, tile)): rig.captured(partial(fused, *inputs, tile=tile)) for tile in tiles}
            times = {key: value["median"] for key, value in interleaved(calls, rig.bench(), rounds=3).items()}
            shipped, best = next(iter(times)), min(times, key=times.__getitem__)
            record.add(
                head_dim=dim,
                dtype=name,
                queries=inputs[0].shape[1],
                shipped=shipped,
                best=best,
                gain=times[shipped] / times[best],
                times=times,
            )
