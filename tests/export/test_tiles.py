"""A decoder in tiles: the loop against tiles that numpy cuts and blends, on each backend, and what is refused."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tolerances import EXPORT_FP32_ABS, PRECISION_REL

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine import backends
from ddm_rt.errors import DdmError
from ddm_rt.export.precision.convert import convert
from ddm_rt.export.tiles import tile_decoder
from ddm_rt.graph_files import open_session
from ddm_rt.sample.pipeline import Pipeline
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
    assert tiled.index.provenance["decoder_tile"] == {"pixels": TILE, "source_bundle_id": whole.bundle_id}
    changed = {name for name in whole.index.files if tiled.index.files.get(name) != whole.index.files[name]}
    assert changed - {name for name in changed if name.startswith("plans/")} == {"decoder.onnx"}
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
    assert np.abs(several.images.astype(int) - reference.images).max() <= 1


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


def test_what_can_not_be_tiled_is_refused(whole: Bundle, tiled: Bundle, tmp_path: Path) -> None:
    for bundle, pixels, told in (
        (Bundle.load("digits"), TILE, "makes pixels, without a VAE"),
        (tiled, TILE, "its decoder has tiles of 16 pixels already"),
        (whole, 17, "decoder tile: 17; expected a multiple of 2 pixels, at least 16"),
        (whole, 14, "decoder tile: 14; expected a multiple of 2 pixels, at least 16"),
    ):
        with pytest.raises(DdmError, match=told):
            tile_decoder(bundle, tmp_path / "out", pixels)
    with pytest.raises(DdmError, match="its decoder works in tiles; convert the bundle that it was made from"):
        export(str(tiled.path), tmp_path / "out", Precision.FP16)
    assert "the bundle's decoder works in tiles" in str(backends.unavailable("torch", tiled))
    assert not (tmp_path / "out").exists()
