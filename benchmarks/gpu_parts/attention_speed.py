"""The fused kernel's speed: against the unfused pair, against plain flash attention, against a copy; and its tiles."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddm_rt.kernels.indicator_attention import table
from gpu_parts.numerics import DTYPES, tensors
from gpu_parts.record import Record
from gpu_parts.shapes import BATCHES, HEADS, INDICATOR, SD15_LAYERS, TEXT, Attention, bytes_moved, flops, sd15
from gpu_parts.timing import Call, captured, do_bench, interleaved, paired_ratio


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


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        return sdpa(q, k, v)


def section_attention(record: Record, device: str = "cuda") -> None:
    """fused, unfused pair, flash attention alone and a device copy of the same bytes, each as a CUDA graph."""
    from ddm_rt.kernels.indicator_attention.fused import indicator_attention_fused

    record.facts["unit"] = "ms; every call replayed as a CUDA graph, L2 cleared before each run"
    bench = do_bench()
    for name, dtype in DTYPES.items():
        for batch in BATCHES:
            for shape in sd15(batch):
                if not record.room(f"{name} {tuple(shape)}", 2):
                    continue
                inputs = tensors(shape, dtype, device)
                # A copy reads and writes: half of the bytes each way.
                source = torch.empty(bytes_moved(shape) // 2, dtype=torch.uint8, device=device)
                target = torch.empty_like(source)
                calls: dict[str, Call] = {
                    "fused": partial(indicator_attention_fused, *inputs),
                    "unfused": partial(unfused, *inputs),
                    "flash": partial(flash, *inputs[:3]),
                    "copy": partial(target.copy_, source),
                }
                found = interleaved({key: captured(call) for key, call in calls.items()}, bench)
                record.add(**_speed_row(name, shape, found))


def _speed_row(dtype: str, shape: Attention, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One row: the times, and what they come to."""
    moved = bytes_moved(shape)
    row: dict[str, Any] = {"dtype": dtype, "batch": shape.batch, "queries": shape.queries, "head_dim": shape.head_dim}
    row["layers"] = SD15_LAYERS[shape.queries, shape.head_dim]
    for key, times in found.items():
        row[f"{key}_ms"], row[f"{key}_q20"], row[f"{key}_q80"] = times["median"], times["q20"], times["q80"]
    return row | {
        "speedup": paired_ratio(found["unfused"], found["fused"])["median"],
        "over_flash": paired_ratio(found["fused"], found["flash"])["median"],
        "of_copy": paired_ratio(found["copy"], found["fused"])["median"],
        "fused_gb_per_s": moved / found["fused"]["median"] / 1e6,
        "copy_gb_per_s": moved / found["copy"]["median"] / 1e6,
        "fused_tflop_per_s": flops(shape) / found["fused"]["median"] / 1e9,
    }


def section_tactics(record: Record, device: str = "cuda") -> None:
    """Every tile of the table for this card at batch 8: what `table.py` should ship here."""
    from ddm_rt.kernels.indicator_attention.fused import architecture, indicator_attention_fused

    found_architecture = architecture(0)
    record.facts |= {"architecture": found_architecture, "unit": "ms"}
    bench = do_bench()
    queries = {d: n for n, d in reversed(SD15_LAYERS)}  # the larger N where a head dim has two
    # Stable Diffusion's head dims first: they matter most if time runs out.
    for dim in sorted(table.HEAD_DIMS, key=lambda d: d not in queries):
        for name, dtype in DTYPES.items():
            tiles = table.tactics(dim, name, found_architecture)
            # A kernel takes seconds to compile the first time.
            if not record.room(f"tiles of {name} head dim {dim}", 3 * len(tiles)):
                continue
            inputs = tensors(Attention(8, queries.get(dim, 1024), HEADS, dim, TEXT, INDICATOR), dtype, device)
            calls = {
                "x".join(map(str, tile)): captured(partial(indicator_attention_fused, *inputs, tile=tile))
                for tile in tiles
            }
            times = {key: value["median"] for key, value in interleaved(calls, bench, rounds=3).items()}
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
