"""A decoder in tiles: the loop against tiles that numpy cuts and blends, on each backend, and what is refused."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import pytest
from goldens.files import unpack
from tolerances import EXPORT_FP32_ABS, IMAGE_GREY_LEVELS, PRECISION_REL

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine import backends
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.export.precision.convert import convert
from ddm_rt.export.tiles import tile_decoder
from ddm_rt.export.tiles import tiled as in_tiles
from ddm_rt.graph_files import open_session
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.workflows import export as exporting
from ddm_rt.workflows.export import export

FACTOR = 2  # of the tiny checkpoint's VAE
TILE = 16  # pixels: eight latents, two of which are shared


def decode(bundle: Bundle, x0: np.ndarray) -> np.ndarray:
    (image,) = open_session(bundle.graphs["decoder"]).run(None, {"x0": x0})
    return image


def latents(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 4, *shape)).astype(np.float32)


def along(size: int) -> tuple[int, list[int]]:
    """Side of the tiles of `size` latents, and where they begin."""
    number = max(-(-(size - 2) // (8 - 2)), 1)
    side = -(-(size + 2 * (number - 1)) // number)
    return side, [min(k * (side - 2), size - side) for k in range(number)]


def blended(bundle: Bundle, x0: np.ndarray) -> np.ndarray:
    """What the loop should give."""
    (high, tops), (wide, lefts) = along(x0.shape[2]), along(x0.shape[3])
    ramps = [np.arange(FACTOR * side) + 0.5 for side in (high, wide)]
    rows, columns = (np.minimum(np.minimum(ramp, len(ramp) - ramp) / (2 * FACTOR), 1) for ramp in ramps)
    window = rows[:, None] * columns
    total = np.zeros((len(x0), 3, FACTOR * x0.shape[2], FACTOR * x0.shape[3]))
    weights = np.zeros(total.shape[2:])
    for top in tops:
        for left in lefts:
            place = np.s_[..., FACTOR * top : FACTOR * (top + high), FACTOR * left : FACTOR * (left + wide)]
            total[place] += window * decode(bundle, x0[:, :, top : top + high, left : left + wide])
            weights[place] += window
    return total / weights


@pytest.fixture(scope="module")
def whole(latent_bundles: Mapping[str, Bundle]) -> Bundle:
    return latent_bundles["sd15"]


@pytest.fixture(scope="module")
def tiled(whole: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tile_decoder(whole, tmp_path_factory.mktemp("tiles") / "bundle", TILE)


@pytest.mark.parametrize("shape", [(1, 2), (8, 8), (9, 5), (14, 8), (20, 31)])
def test_the_loop_gives_what_blended_tiles_give(whole: Bundle, tiled: Bundle, shape: tuple[int, int]) -> None:
    x0 = latents(*shape)
    np.testing.assert_allclose(decode(tiled, x0), blended(whole, x0), atol=EXPORT_FP32_ABS, rtol=0)


def test_an_image_of_one_tile_is_as_without_and_a_larger_one_is_not(whole: Bundle, tiled: Bundle) -> None:
    one, many = latents(8, 8), latents(16, 16)
    np.testing.assert_allclose(decode(tiled, one), decode(whole, one), atol=EXPORT_FP32_ABS, rtol=0)
    assert np.abs(decode(tiled, many) - decode(whole, many)).max() > 100 * EXPORT_FP32_ABS


def test_the_bundle_is_another_and_says_of_which(whole: Bundle, tiled: Bundle) -> None:
    made = dict(tiled.index.provenance["decoder_tile"])
    assert made.pop("max_abs_difference") < EXPORT_FP32_ABS
    assert made == {"pixels": TILE, "source_bundle_id": whole.bundle_id}
    changed = {name for name in whole.index.files if tiled.index.files.get(name) != whole.index.files[name]}
    assert changed - {"weights.safetensors"} == {"decoder.onnx"}
    again = tile_decoder(whole, tiled.path.parent / "again", TILE)
    assert again.bundle_id == tiled.bundle_id != whole.bundle_id


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_image_does_not_depend_on_its_neighbours(tiled: Bundle, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    request = {"seed": 3, "num_steps": 2, "height": 128, "width": 64, "prompt": "a doctor"}
    pipeline = Pipeline.load(tiled, backend, threads=1)
    several = pipeline.generate(n=3, **request)
    alone = pipeline.generate(n=1, **request, codes=several.codes[:1])
    np.testing.assert_array_equal(several.images[0], alone.images[0])
    reference = Pipeline.load(tiled, "onnxruntime", threads=1).generate(n=3, **request)
    assert np.abs(several.images.astype(int) - reference.images).max() <= IMAGE_GREY_LEVELS


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8_WEIGHTS])
def test_tiles_come_after_the_precision(whole: Bundle, tmp_path: Path, precision: Precision) -> None:
    converted = convert(whole, tmp_path / "converted", precision)
    made = export(str(whole.path), tmp_path / "made", precision, decoder_tile=TILE)
    assert made.config.precision is precision
    assert made.index.provenance["decoder_tile"]["source_bundle_id"] == converted.bundle_id
    x0 = latents(9, 8)
    wanted = blended(converted, x0)
    close = PRECISION_REL["fp16"][0] * np.abs(wanted).max() if precision is Precision.FP16 else EXPORT_FP32_ABS
    np.testing.assert_allclose(decode(made, x0), wanted, atol=close, rtol=0)


def test_a_bundle_of_the_first_format_is_tiled(tmp_path: Path) -> None:
    old = Bundle.load(unpack("sd15", tmp_path / "old"))
    made = tile_decoder(old, tmp_path / "made", TILE)
    assert old.index.schema_version == 1
    assert made.config == old.config
    np.testing.assert_array_equal(made.schedule.alphas_cumprod, old.schedule.alphas_cumprod)


def test_a_graph_that_can_not_be_in_a_loop_is_refused(whole: Bundle) -> None:
    model = onnx.load(whole.graphs["decoder"])
    for change, told in (
        (lambda made: setattr(made.opset_import[0], "version", 17), "decoder.onnx: ONNX opset 17; tiles need 18"),
        (lambda made: made.graph.input.add(name="more"), "decoder.onnx: has x0, more, image; expected x0 and image"),
    ):
        changed = deepcopy(model)
        change(changed)
        with pytest.raises(BundleError, match=told):
            in_tiles(changed, 8, FACTOR)


def test_what_can_not_be_tiled_is_refused(
    whole: Bundle, tiled: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated: list[Bundle] = []
    monkeypatch.setattr(exporting, "calibrate", lambda bundle, images: calibrated.append(bundle))
    for bundle, pixels, told in (
        (Bundle.load("digits"), TILE, "makes pixels, without a VAE"),
        (tiled, TILE, "its decoder has tiles of 16 pixels already"),
        (whole, 17, "decoder tile: 17; expected a multiple of 2 pixels, at least 16"),
        (whole, 14, "decoder tile: 14; expected a multiple of 2 pixels, at least 16"),
    ):
        with pytest.raises(DdmError, match=told):
            tile_decoder(bundle, tmp_path / "out", pixels)
    for source, pixels, told in (
        ("digits", TILE, "^digits: makes pixels, without a VAE"),
        (str(whole.path), 17, "decoder tile: 17"),
        (str(tiled.path), TILE, "has tiles of 16 pixels already|works in tiles"),
    ):
        with pytest.raises(DdmError, match=told):
            export(source, tmp_path / "p" / "out", Precision.INT8, decoder_tile=pixels)
    with pytest.raises(DdmError, match="digits-that-are-not"):
        export(str(tmp_path / "digits-that-are-not"), tmp_path / "p" / "out", Precision.FP32)
    assert not (tmp_path / "p").exists()
    assert not calibrated, "all that can be refused is, before minutes are spent"
    with pytest.raises(DdmError, match="give the run, or the bundle without them, with --precision fp16 --decoder"):
        export(str(tiled.path), tmp_path / "out", Precision.FP16)
    assert "the bundle's decoder works in tiles" in str(backends.unavailable("torch", tiled))
    assert not (tmp_path / "out").exists()
