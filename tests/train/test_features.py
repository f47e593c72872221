"""Frozen features: a function of images and seed, unit length, from contrast or from any ONNX encoder."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from pictures import drawings
from tolerances import UNIT_ABS

from ddm_rt.config import FeatureConfig
from ddm_rt.data import to_model
from ddm_rt.errors import DdmError
from ddm_rt.train.codes.contrastive import augment, contrastive_features
from ddm_rt.train.codes.encoders import encoder_features

CONFIG = FeatureConfig(steps=6, batch_size=16, width=4)


def images(count: int, size: int = 16) -> NDArray[np.float32]:
    return to_model(drawings(count, size)[0][..., None])


@pytest.mark.parametrize(("count", "size"), [(24, 16), (11, 23)])
def test_shape_unit_length_and_the_same_again(count: int, size: int) -> None:
    state = torch.get_rng_state()
    first = contrastive_features(images(count, size), CONFIG, seed=3)
    assert (first.shape, first.dtype) == ((count, 32 * CONFIG.width), np.float32)
    assert np.linalg.norm(first, axis=1) == pytest.approx(np.ones(count), abs=UNIT_ABS)
    assert (contrastive_features(images(count, size), CONFIG, seed=3) == first).all()
    assert (contrastive_features(images(count, size), CONFIG, seed=4) != first).any()
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is left alone"


def test_progress_tells_every_step() -> None:
    seen: list[tuple[int, int]] = []
    contrastive_features(images(16), CONFIG, 0, lambda done, total, figures: seen.append((done, total)))
    assert seen == [(i + 1, CONFIG.steps) for i in range(CONFIG.steps)]


@pytest.mark.parametrize(("channels", "size"), [(1, (16, 16)), (3, (17, 24))])
def test_views_keep_shape_and_range_and_depend_on_the_generator_alone(channels: int, size: tuple[int, int]) -> None:
    config = CONFIG.model_copy(update={"colour": 0.4, "flip": True})
    x = torch.rand(6, channels, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    views = augment(x, config, torch.Generator().manual_seed(1))
    assert views.shape == x.shape
    assert views.abs().max() <= 1
    assert torch.equal(augment(x, config, torch.Generator().manual_seed(1)), views)
    assert not torch.equal(augment(x, config, torch.Generator().manual_seed(2)), views)


def write_encoder(path: Path, factor: float = 1.0, *, axes: tuple[int, ...] = (1, 2, 3)) -> Path:
    """Features [B, 2]: factor times the mean over `axes`, and 1."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
            helper.make_node("Mul", ["column", "factor"], ["features"]),
        ],
        "encoder",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["B", 1, 16, 16])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, None)],
        [
            helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("factor", TensorProto.FLOAT, [1, 2], [factor, -factor]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_any_onnx_encoder_gives_unit_features(tmp_path: Path) -> None:
    x = images(300)  # more than one call's worth
    features = encoder_features([x], write_encoder(tmp_path / "encoder.onnx"))
    assert features.shape == (300, 2)
    sign = np.sign(x.mean(axis=(1, 2, 3)))
    assert features == pytest.approx(np.stack([sign, -sign], axis=1) / np.sqrt(2), abs=UNIT_ABS)


def test_a_bad_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DdmError, match=r"missing\.onnx: no such file"):
        encoder_features([images(3)], tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(DdmError, match=r"features\.encoder .*text\.onnx"):
        encoder_features([images(3)], tmp_path / "text.onnx")
    with pytest.raises(DdmError, match=r"size\.onnx"):
        encoder_features([images(3, 20)], write_encoder(tmp_path / "size.onnx"))
    with pytest.raises(DdmError, match=r"big\.onnx: its features are not finite"):
        encoder_features([images(3)], write_encoder(tmp_path / "big.onnx", 3e38 * 10))
