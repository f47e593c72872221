"""A float32 bundle as one of another precision, written into its graphs. Needs onnx, not torch.

What the graphs take and give stays float32, so nothing above them sees a difference; keys and values, which pass from
one graph to another, are fp16 where the graphs are.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

import ddm_rt
from ddm_rt import graph_files
from ddm_rt.bundle import DERIVED, INDEX, SETTINGS, WEIGHTS, Bundle, write_bundle
from ddm_rt.config import Family, Precision
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.export.plugin_node import PLUGIN_GRAPH
from ddm_rt.export.precision import half, opset, quantize
from ddm_rt.export.precision.quantize import Feeds
from ddm_rt.export.tiles import PROVENANCE as TILES
from ddm_rt.files import check_free
from ddm_rt.graph_files import open_session
from ddm_rt.progress import OnStage
from ddm_rt.runtime import TensorSpec


@dataclass(frozen=True)
class Recipe:
    """How a graph of one precision is made from a float32 one."""

    compute: int  # element type of what isn't quantised
    opset: int  # the first whose operators take the types
    stored: int | None = None  # element type of quantised layers' weights
    inputs: bool = True  # whether it is that of their inputs too
    runs_on_cpu: bool = True  # ONNX Runtime's CPU provider has the operators


# int8 and fp8 lie in an fp16 graph: that is what engines fuse them with, and what the attention plugin takes.
RECIPES = {
    Precision.FP16: Recipe(TensorProto.FLOAT16, 18),
    Precision.BF16: Recipe(TensorProto.BFLOAT16, 22, runs_on_cpu=False),
    Precision.INT8: Recipe(TensorProto.FLOAT16, 19, TensorProto.INT8),
    Precision.FP8: Recipe(TensorProto.FLOAT16, 19, TensorProto.FLOAT8E4M3FN),
    # For CPUs, whose engines have float32 kernels for everything.
    Precision.INT8_WEIGHTS: Recipe(TensorProto.FLOAT, 19, TensorProto.INT8, inputs=False),
}
CALIBRATED = tuple(precision for precision, recipe in RECIPES.items() if recipe.stored is not None and recipe.inputs)
_MULTIPLYING = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@dataclass(frozen=True)
class Calibration:
    """The denoiser's calls along trajectories of the float32 bundle, and how they were drawn (for provenance)."""

    calls: Sequence[Feeds]
    origin: Mapping[str, Any]
    threads: int = 1  # to measure them with; another number may give slightly other ranges


def convert(
    bundle: Bundle,
    out: Path,
    precision: Precision,
    *,
    calibration: Calibration | None = None,
    progress: OnStage | None = None,
) -> Bundle:
    """Write `bundle` in `precision` as the bundle directory `out`, whole or not at all, and open it.

    Graphs that multiply nothing are copied, and so is the decoder of an SDXL checkpoint that asks for that
    (`force_upcast`: its VAE's values leave fp16's range). int8 and fp8 need `calibration` and quantise the denoiser,
    which is the only call in the loop; the other graphs are fp16. int8-weights stores the weights of all graphs' layers
    in int8, without a calibration; they compute in float32. The new bundle has its own id, names the old one in
    its provenance, and has neither weights.safetensors nor the old one's plans.

    Raises DdmError where the bundle isn't fp32, `out` is occupied, an operator, tensor or value doesn't fit (named),
    and BundleError for graph files that are damaged.
    """
    check_free(out)
    check_convertible(bundle, precision)
    if precision in CALIBRATED and calibration is None:
        raise DdmError(f"precision {precision} needs a calibration set")
    groups = _groups(bundle, RECIPES[precision])
    names = [name for group in groups for name in group]
    recipe = RECIPES[precision]
    ranges = None
    if calibration is not None and precision in CALIBRATED:
        ranges = quantize.measure(bundle.graphs["denoiser"], calibration.calls, calibration.threads)
    report: dict[str, Any] = {}

    def fill(directory: Path) -> None:
        _copy_rest(bundle, directory, names)
        bundle.write_settings(directory, precision=precision, **_half_ends(bundle, recipe))
        for group in groups:
            graphs: dict[Path, graph_files.Graph] = {}
            for name in group:
                if progress is not None:
                    progress(names.index(name), len(names), name)
                given = ranges if name.startswith("denoiser.") else None
                graphs[directory / name] = graph_files.Graph(
                    convert_graph(bundle.path / name, precision, given, report)
                )
            # Tensors lie inside, or beside where two graphs share them or one file would be big: as the exporter does.
            graph_files.save(graphs, shared=len(graphs) > 1)
        if recipe.runs_on_cpu:
            report["max_abs_difference"] = {
                name: _difference(bundle.path / name, directory / name) for name in names if name != PLUGIN_GRAPH
            }

    provenance = {
        **bundle.index.provenance,
        "precision": {
            "precision": precision.value,
            "source_bundle_id": bundle.bundle_id,
            "ddm_rt": ddm_rt.__version__,
            # Of onnxruntime whatever its wheel is called.
            "versions": {"onnx": onnx.__version__, "onnxruntime": ort.__version__, "numpy": np.__version__},
            "calibration": None if ranges is None or calibration is None else dict(calibration.origin),
            "report": report,
        },
    }
    converted = write_bundle(out, fill, provenance)
    if progress is not None:
        progress(len(names), len(names), "done")
    return converted


def convert_graph(
    path: Path, precision: Precision, ranges: quantize.Ranges | None = None, report: dict[str, Any] | None = None
) -> onnx.ModelProto:
    """The float32 graph at `path` in `precision`, all tensors in it; int8 and fp8 need `ranges` (quantize.measure).

    `report` is told how many layers were quantised. Raises as `convert`.
    """
    recipe = RECIPES[precision]
    model = graph_files.read_model(path)
    half.element_types(model, path)  # names what can't be converted before anything is computed
    if any(node.op_type in _MULTIPLYING for node in model.graph.node):
        opset.raise_to(model, recipe.opset, path)
        quantized = None
        if recipe.stored is not None and not recipe.inputs:
            quantized = quantize.insert_weights(model, path, recipe.stored)
        elif recipe.stored is not None and ranges is not None:
            quantized = quantize.insert(model, path, ranges, recipe.stored)
        if report is not None and quantized is not None:
            report.setdefault("quantized_layers", {})[path.name] = quantized
        return model if recipe.compute == TensorProto.FLOAT else half.to_half(model, path, recipe.compute)
    inlined = [half.inlined(tensor, path.parent) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    model.graph.initializer.extend(inlined)
    return model


def _half_ends(bundle: Bundle, recipe: Recipe) -> dict[str, tuple[TensorSpec, ...]]:
    """What changes in runtime.json where `cond` passes between the graphs in fp16."""
    halves = [spec for spec in bundle.config.cond if spec.name in half.HALF_ENDS]
    if recipe.compute != TensorProto.FLOAT16 or not halves:
        return {}
    others = {spec.name: spec for spec in bundle.config.cond}
    return {"cond": tuple((others | {s.name: s.model_copy(update={"dtype": "float16"}) for s in halves}).values())}


def check_convertible(bundle: Bundle, precision: Precision) -> None:
    """Raises DdmError where `convert` would for the bundle and the precision alone."""
    if precision not in RECIPES:
        raise DdmError(f"precision is {precision}; expected one of: {', '.join(RECIPES)}")
    if bundle.config.precision is not Precision.FP32:
        raise DdmError(
            f"{bundle.runtime_path}: field precision is {bundle.config.precision}; only an fp32 bundle is "
            "converted: rounding twice is not the same as rounding once"
        )
    if (tiles := bundle.index.provenance.get(TILES)) is not None:
        raise DdmError(
            f"{bundle.path}: its decoder works in tiles; give the run, or the bundle without them, with "
            f"--precision {precision} --decoder-tile {tiles['pixels']}"
        )


def _groups(bundle: Bundle, recipe: Recipe) -> list[tuple[str, ...]]:
    """The graphs to convert; those that share their tensors together. The plugin's kernel needs half precision."""
    files = [path.name for path in bundle.graphs.values()]
    in_half = recipe.compute != TensorProto.FLOAT
    # A decoder that was put in the VAE's place (provenance names it) is as it is for lack of such trouble.
    own_vae = bundle.config.family is Family.SDXL and not bundle.index.provenance.get("decoder")
    if in_half and own_vae and bundle.model.vae["force_upcast"]:
        files.remove("decoder.onnx")
    plugin = {"denoiser.onnx": (PLUGIN_GRAPH,)} if in_half and PLUGIN_GRAPH in bundle.index.files else {}
    return [(name, *plugin.get(name, ())) for name in files]


def _copy_rest(bundle: Bundle, directory: Path, converted: Sequence[str]) -> None:
    """What isn't among the graphs to convert, their weights, nor made from one."""
    for name in bundle.index.files:
        graph = name.removesuffix(".data")
        theirs = graph in converted or graph == PLUGIN_GRAPH or name in (INDEX, WEIGHTS, *SETTINGS)
        if not theirs and not name.startswith(DERIVED):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, directory / name)


def _difference(source: Path, converted: Path) -> float:
    """The largest absolute difference of outputs on ONNX Runtime for one call with seeded inputs.

    Raises DdmError where either graph doesn't run, or gives values that aren't finite.
    """
    wanted, found = _outputs(source), _outputs(converted)
    worst = 0.0
    for name, got in found.items():
        if not np.isfinite(got).all():
            raise DdmError(f"{converted.name}: output {name} is not finite in this precision; nothing was written")
        if not np.isfinite(wanted[name]).all():
            raise DdmError(
                f"{source}: output {name} is not finite in the bundle that is converted; nothing was written"
            )
        worst = max(worst, float(np.abs(wanted[name] - got).max()))
    return worst


def _outputs(path: Path) -> dict[str, Any]:
    try:
        session = open_session(path, threads=1)
        names = [item.name for item in session.get_outputs()]
        return dict(zip(names, session.run(None, _feeds(session)), strict=True))
    except graph_files.UNRUNNABLE as error:
        raise BundleError(f"{path}: ONNX Runtime {ort.__version__} can't run it: {error}") from error


def _feeds(session: ort.InferenceSession) -> dict[str, Any]:
    """Standard normal numbers, codes from 0, timesteps from 0 to 999; free axes are 2, sizes 8.

    Of ready keys there are enough for any indicator, which has 16 at most, and for two tokens of text.
    """
    free = {"height": 8, "width": 8, "keys": 18}
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for item in session.get_inputs():
        shape = [size if isinstance(size, int) else free.get(size, 2) for size in item.shape]
        if item.type == "tensor(int64)":
            feeds[item.name] = np.zeros(shape, np.int64)
        elif item.name == "t":
            feeds[item.name] = np.linspace(0, 999, shape[0], dtype=np.float32)
        else:
            drawn = rng.standard_normal(shape, np.float32)
            feeds[item.name] = drawn.astype(np.float16) if item.type == "tensor(float16)" else drawn
    return feeds
