"""A VAE's decoder that works in tiles, for images that don't fit into memory whole: a loop around its own graph.

So every CPU backend and the C library have it from the graph alone. GPU backends refuse it: CUDA graphs hold no loop,
and TensorRT-RTX doesn't build one. Tiles are as large as each other, and overlap by a fourth of the largest that is
allowed, the last ones by more where sizes don't add up. There, one fades into the next linearly, as with diffusers'
`enable_vae_tiling`. A decoder's norms then see a tile in place of the image, so the image changes a little. One that
fits into a single tile does not, save for rounding.
"""

import shutil
from copy import deepcopy
from pathlib import Path
from string import Template

import numpy as np
import onnx

from ddm_rt import graph_files
from ddm_rt.bundle import DERIVED, INDEX, SETTINGS, WEIGHTS, Bundle, write_bundle
from ddm_rt.config import Family, Precision
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.files import check_free

PROVENANCE = "decoder_tile"
DECODER = "decoder.onnx"
LEAST = 8  # latents of a tile's side: it overlaps others by a fourth of that
OPSET = 18  # of the loop
# Of one tile, which is multiplied by a weight and divided by it; half precision casts at other places in a loop.
MAX_ABS_ERROR, MAX_HALF_ERROR = 1e-4, 2e-2

# Sizes are [height, width]. The decoder's nodes take the place of `drawn = Identity(piece)`.
_LOOP = Template("""
<ir_version: 8, opset_import: ["" : 18]>
tiles (float[n, c, h, w] x0) => (float[n, 3, y, x] image)
{
  zero = Constant<value_ints = [0]>()
  one = Constant<value_ints = [1]>()
  two = Constant<value_ints = [2]>()
  largest = Constant<value_ints = [$tile]>()
  overlap = Constant<value_ints = [$overlap]>()
  factor = Constant<value_ints = [$factor]>()
  size = Shape<start = 2>(x0)

  # As few tiles as go: ceil((size - overlap) / (largest - overlap)), and at least one.
  largest_step = Sub(largest, overlap)
  least_covered = Sub(size, overlap)
  rounded_up = Add(least_covered, largest_step)
  rounded_down = Sub(rounded_up, one)
  needed = Div(rounded_down, largest_step)
  counts = Max(needed, one)
  rows = Slice(counts, zero, one)
  columns = Slice(counts, one, two)
  number = Mul(rows, columns)
  trips = Squeeze(number)

  # As small as so many cover the image: ceil((size + (counts - 1) * overlap) / counts).
  borders = Sub(counts, one)
  shared = Mul(borders, overlap)
  covered = Add(size, shared)
  covered_up = Add(covered, borders)
  tile = Div(covered_up, counts)
  step = Sub(tile, overlap)
  last = Sub(size, tile)
  size_px = Mul(size, factor)
  tile_px = Mul(tile, factor)

  # The weight of a tile's pixels: from half a pixel's at the border to 1 where its neighbour ends.
  first_number = Constant<value_int = 0>()
  next_number = Constant<value_int = 1>()
  half = Constant<value_float = 0.5>()
  whole = Constant<value_float = 1.0>()
  overlap_px = Mul(overlap, factor)
  fade = Cast<to = 1>(overlap_px)
$rows_fade $columns_fade
  y_column = Unsqueeze(y_weight, one)
  x_row = Unsqueeze(x_weight, zero)
  window = Mul(y_column, x_row)

  batch = Shape<start = 0, end = 1>(x0)
  colours = Constant<value_ints = [3]>()
  image_shape = Concat<axis = 0>(batch, colours, size_px)
  no_image = ConstantOfShape<value = float[1] {0.0}>(image_shape)
  no_weights = ConstantOfShape<value = float[1] {0.0}>(size_px)
  go_on = Constant<value = bool {1}>()
  sum, weights = Loop(trips, go_on, no_image, no_weights) <body = one_tile
    (int64 i, bool go, float[n, 3, h, w] sum_before, float[h, w] weights_before)
    => (bool go_after, float[n, 3, h, w] sum_after, float[h, w] weights_after)
  {
    go_after = Identity(go)
    row = Div(i, columns)
    column = Mod(i, columns)
    place = Concat<axis = 0>(row, column)
    evenly = Mul(place, step)
    begin = Min(evenly, last)
    end = Add(begin, tile)
    plane = Constant<value_ints = [2, 3]>()
    piece = Slice(x0, begin, end, plane)
    drawn = Identity(piece)
    begin_px = Mul(begin, factor)
    end_px = Add(begin_px, tile_px)
    after_px = Sub(size_px, end_px)
    around = Concat<axis = 0>(begin_px, after_px)
    weighted = Mul(drawn, window)
    placed = Pad(weighted, around, , plane)
    sum_after = Add(sum_before, placed)
    weight_placed = Pad(window, around)
    weights_after = Add(weights_before, weight_placed)
  }>
  image = Div(sum, weights)
}
""")


# The weights along one axis, whose size in pixels lies in `tile_px` from `begin` to `end`.
_FADE = """
  {axis}_1 = Slice(tile_px, {begin}, {end})
  {axis}_side = Squeeze({axis}_1)
  {axis}_side_f = Cast<to = 1>({axis}_side)
  {axis}_number = Range(first_number, {axis}_side, next_number)
  {axis}_f = Cast<to = 1>({axis}_number)
  {axis}_middle = Add({axis}_f, half)
  {axis}_left = Sub({axis}_side_f, {axis}_middle)
  {axis}_nearest = Min({axis}_middle, {axis}_left)
  {axis}_faded = Div({axis}_nearest, fade)
  {axis}_weight = Min({axis}_faded, whole)
"""


def tile_decoder(bundle: Bundle, out: Path, pixels: int) -> Bundle:
    """`bundle` as the bundle directory `out`, whole or not at all, with a decoder whose tiles have at most `pixels` a
    side. It has its own id, names the old one in its provenance, and has nothing that was made from it: neither plans
    nor calibrations, gates and caches. ONNX Runtime runs it before it is there: on one tile against the old decoder,
    and on two.

    Raises DdmError for a bundle without a VAE or with tiles already, a size that is none, where `out` is occupied, and
    where the two decoders differ by more than the bound; BundleError for a graph that can't be put into a loop.
    """
    check_free(out)
    check_tile(bundle, pixels, str(bundle.path))
    factor = bundle.config.patch
    provenance = dict(bundle.index.provenance)
    provenance[PROVENANCE] = made = {"pixels": pixels, "source_bundle_id": bundle.bundle_id}

    def fill(directory: Path) -> None:
        for name in bundle.index.files:
            if name not in (INDEX, WEIGHTS, DECODER, *SETTINGS) and not name.startswith(DERIVED):
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.path / name, directory / name)
        bundle.write_settings(directory)
        model = tiled(graph_files.read_model(bundle.path / DECODER), pixels // factor, factor)
        (directory / DECODER).write_bytes(model.SerializeToString(deterministic=True))
        graphs = bundle.path / DECODER, directory / DECODER
        made["max_abs_difference"] = _checked_difference(*graphs, pixels // factor, bundle.config.precision)

    return write_bundle(out, fill, provenance)


def check_tile(bundle: Bundle, pixels: int, source: str) -> None:
    """Raises DdmError naming `source` where `tile_decoder` would for the bundle, its tiles or their size."""
    if (there := bundle.index.provenance.get(PROVENANCE)) is not None:
        raise DdmError(f"{source}: its decoder has tiles of {there['pixels']} pixels already")
    check_size(bundle.config.family, bundle.config.patch, pixels, source)


def check_size(family: Family, factor: int, pixels: int, source: str) -> None:
    """Raises DdmError naming a `source` without a VAE, or a size that isn't a number of the VAE's latents, which are
    `factor` pixels a side.
    """
    if family is Family.PIXEL:
        raise DdmError(f"{source}: makes pixels, without a VAE; only a Stable Diffusion model has a decoder to tile")
    if pixels % factor or pixels < LEAST * factor:
        raise DdmError(f"decoder tile: {pixels}; expected a multiple of {factor} pixels, at least {LEAST * factor}")


def tiled(model: onnx.ModelProto, tile: int, factor: int) -> onnx.ModelProto:
    """The decoder `model` (x0 float32 [B,C,H,W] -> image float32 [B,3,factor·H,factor·W]) in tiles of at most `tile`
    latents a side. External tensors stay where they are.

    Raises BundleError for a graph with other ends, or of an operator set in which the loop can't be written.
    """
    ends = [*model.graph.input, *model.graph.output]
    floats = all(end.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for end in ends)
    if [end.name for end in ends] != ["x0", "image"] or not floats:
        raise BundleError(f"{DECODER}: has {', '.join(end.name for end in ends)}; expected x0 and image in float32")
    opsets = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    if not opsets or min(opsets) < OPSET:
        raise BundleError(f"{DECODER}: ONNX opset {', '.join(map(str, opsets))}; tiles need {OPSET} or later")
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise BundleError(
                f"{DECODER}: node {node.name!r} ({node.op_type}) holds a graph; tiles take plain operators"
            )
    text = _LOOP.substitute(
        tile=tile,
        overlap=tile // 4,
        factor=factor,
        rows_fade=_FADE.format(axis="y", begin="zero", end="one"),
        columns_fade=_FADE.format(axis="x", begin="one", end="two"),
    )
    made = onnx.parser.parse_model(text)
    made.ir_version, made.producer_name = model.ir_version, model.producer_name
    for field in ("opset_import", "functions", "metadata_props"):
        made.ClearField(field)
        getattr(made, field).extend(getattr(model, field))
    for own, theirs in zip((made.graph.input[0], made.graph.output[0]), ends, strict=True):
        own.CopyFrom(theirs)
    (loop,) = (node for node in made.graph.node if node.op_type == "Loop")
    body = loop.attribute[0].g
    nodes = list(body.node)
    (place,) = (k for k, node in enumerate(nodes) if list(node.output) == ["drawn"])
    body.ClearField("node")
    body.node.extend([*nodes[:place], *_renamed(model.graph), *nodes[place + 1 :]])
    # Inside, where ONNX Runtime lays a convolution's weights out for its kernels; those of an outer graph it doesn't.
    for tensor in model.graph.initializer:
        body.initializer.add().CopyFrom(tensor)
        body.initializer[-1].name = _inner(tensor.name)
    return made


def _checked_difference(whole: Path, in_tiles: Path, tile: int, precision: Precision) -> float | None:
    """The largest absolute difference of the two decoders on one tile; None in bf16, which ONNX Runtime doesn't run on
    a CPU. Raises DdmError where it is too large, where two tiles give numbers that aren't finite, and for a graph that
    ONNX or ONNX Runtime refuses.
    """
    try:
        onnx.checker.check_model(str(in_tiles), full_check=True)
        if precision is Precision.BF16:
            return None
        decoders = [graph_files.open_session(path) for path in (whole, in_tiles)]
        channels = decoders[0].get_inputs()[0].shape[1]
        x0 = np.random.default_rng(0).standard_normal((1, channels, tile + 1, LEAST), np.float32)
        one = [decoder.run(None, {"x0": x0[:, :, :LEAST]})[0] for decoder in decoders]
        (two,) = decoders[1].run(None, {"x0": x0})
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, *graph_files.UNRUNNABLE) as error:
        raise DdmError(f"{DECODER}: can't work in tiles: {error}") from error
    found = float(np.abs(one[0] - one[1]).max())
    most = MAX_ABS_ERROR if precision in (Precision.FP32, Precision.INT8_WEIGHTS) else MAX_HALF_ERROR
    if not found <= most:
        raise DdmError(f"{DECODER}: in one tile it differs by {found:.2g} from the whole decoder; nothing was written")
    if not np.isfinite(two).all():
        raise DdmError(f"{DECODER}: two tiles give numbers that aren't finite; nothing was written")
    return found


def _inner(name: str) -> str:
    return {"": "", "x0": "piece", "image": "drawn"}.get(name, f"vae.{name}")


def _renamed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Its nodes with names that none of the loop's are."""
    found = []
    for node in map(deepcopy, graph.node):
        node.input[:], node.output[:] = map(_inner, node.input), map(_inner, node.output)
        found.append(node)
    return found
