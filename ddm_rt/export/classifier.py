"""Classifiers and feature encoders as ONNX graphs: judges, and the encoders that code discovery takes."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import nn

from ddm_rt import graph_files
from ddm_rt.errors import DdmError
from ddm_rt.export import graph
from ddm_rt.export.run import MAX_ABS_ERROR
from ddm_rt.files import write_atomic

_LARGEST = 2**31 - 2**24  # bytes of weights: protocol buffers end at 2 GiB


def export_classifier(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    path: Path,
    metadata: Mapping[str, str],
    *,
    outputs: Sequence[str] = ("logits", "features"),
) -> float:
    """Write `module` as an ONNX file: image float32 [B,C,H,W] in [-1, 1] -> a tensor [B,...] per output.

    The batch is free, C, H and W are those of `image_shape`. `outputs=("features",)` writes an encoder.
    `metadata` goes into the file's metadata_props. Returns the largest absolute difference to torch, measured
    before the file is written (atomically).

    Raises DdmError for a module in training mode or with non-finite weights, one that gives another number of
    outputs, and for a difference above `MAX_ABS_ERROR`.
    """
    if module.training:
        raise DdmError(f"{path.name}: the module is in training mode; call eval() before exporting it")
    for name, tensor in module.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise DdmError(f"{path.name}: tensor {name} has non-finite values")
    generator = torch.Generator().manual_seed(0)
    cases = [{"image": torch.rand((n, *image_shape), generator=generator) * 2 - 1} for n in (2, 1, 3)]
    with torch.inference_mode():
        given = module(cases[0]["image"])
    count = len(given) if isinstance(given, tuple) else 1
    if count != len(outputs):
        raise DdmError(f"{path.name}: the module gives {count} tensors; expected {', '.join(outputs)}")
    free = {name: {0: "batch"} for name in ("image", *outputs)}
    traced = graph.trace(module, cases[0], outputs, free, metadata=metadata)
    with tempfile.TemporaryDirectory(prefix="ddm-rt-export-") as scratch:
        draft = Path(scratch) / path.name
        graph_files.save({draft: traced})
        error = graph.difference(draft, cases, graph.expected(module, cases))
        if not error <= MAX_ABS_ERROR:
            raise DdmError(f"{path.name}: differs from torch by {error:.3g}; expected at most {MAX_ABS_ERROR:g}")
        write_atomic(path, _as_one_file(draft))
    return error


def _as_one_file(graph: Path) -> bytes:
    """However large, one file is easier to pass on: weights come back from the data file beside it. Raises DdmError
    where they are more than a file can hold.
    """
    data = graph.with_name(f"{graph.name}.data")
    if not data.exists():
        return graph.read_bytes()
    if data.stat().st_size > _LARGEST:
        raise DdmError(f"{graph.name}: its weights are {data.stat().st_size} bytes; one ONNX file holds {_LARGEST}")
    content: bytes = onnx.load(graph).SerializeToString()
    return content
