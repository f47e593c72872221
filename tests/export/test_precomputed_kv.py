"""Bundles whose conditioner makes the keys and values: the same images, with fewer products in each step."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from latent_runs import write_run
from tolerances import IMAGE_GREY_LEVELS, PRECISION_REL

from ddm_rt import graph_files
from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine import backends
from ddm_rt.errors import DdmError
from ddm_rt.export.precision.convert import convert
from ddm_rt.export.run import export_run
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.workflows.export import export


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def images(bundle: Bundle, backend: str) -> np.ndarray:
    return Pipeline(bundle, backends.load(bundle, backend, threads=1)).generate(n=5, seed=3, num_steps=4).images


def test_the_denoiser_has_no_products_for_keys_and_values(tiny_bundle: Bundle, precomputed_bundle: Bundle) -> None:
    before, after = (operators(bundle.graphs["denoiser"]) for bundle in (tiny_bundle, precomputed_bundle))
    layout = precomputed_bundle.config.keys_values
    assert layout is not None
    assert before["MatMul"] - after["MatMul"] == 4 * len(layout.layers)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_images_are_those_of_tokens_on_every_backend(
    tiny_bundle: Bundle, precomputed_bundle: Bundle, backend: str
) -> None:
    wanted = images(tiny_bundle, "onnxruntime").astype(int)
    assert np.abs(images(precomputed_bundle, backend) - wanted).max() <= IMAGE_GREY_LEVELS


def test_runtime_json_says_how_they_are_divided(tiny_bundle: Bundle, precomputed_bundle: Bundle) -> None:
    layout = precomputed_bundle.config.keys_values
    assert layout is not None
    assert layout.indicator_tokens == 4
    assert [spec.name for spec in precomputed_bundle.config.cond] == ["keys_values", "code_scale"]
    assert precomputed_bundle.config.cond[0].shape == ("keys", 2 * sum(layer.width for layer in layout.layers))
    assert tiny_bundle.config.keys_values is None
    assert "keys_values" not in tiny_bundle.runtime_path.read_text()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_they_pass_between_fp16_graphs_in_fp16(precomputed_bundle: Bundle, precision: str, tmp_path: Path) -> None:
    made = convert(precomputed_bundle, tmp_path / "half", Precision(precision))
    dtype = "float16" if precision == "fp16" else "float32"
    assert made.config.cond[0].dtype == dtype
    for name, ends in (("conditioner", "output"), ("denoiser", "input")):
        graph = graph_files.read_model(made.graphs[name]).graph
        (value,) = (value for value in getattr(graph, ends) if value.name == "keys_values")
        assert value.type.tensor_type.elem_type == getattr(onnx.TensorProto, dtype.replace("float32", "float").upper())
    wanted = images(precomputed_bundle, "onnxruntime").astype(int)
    found = images(made, "onnxruntime" if precision == "fp16" else "openvino")
    assert np.abs(found - wanted).mean() <= 255 * PRECISION_REL[precision][1]


@pytest.mark.slow(reason="exports two checkpoints, each of which takes half a minute")
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_checkpoint_has_them_too(
    family: str, latent_runs: Mapping[str, Path], exported_bundles: Mapping[str, Bundle], tmp_path: Path
) -> None:
    made = export_run(latent_runs[family], tmp_path / "ready", precompute_kv=True)
    layout = made.config.keys_values
    assert layout is not None
    before, after = (operators(bundle.graphs["denoiser"]) for bundle in (exported_bundles[family], made))
    assert before["MatMul"] - after["MatMul"] == 4 * len(layout.layers)
    wanted = images(exported_bundles[family], "onnxruntime").astype(int)
    for backend in ("onnxruntime", "torch"):
        assert np.abs(images(made, backend) - wanted).max() <= IMAGE_GREY_LEVELS


@pytest.mark.slow(reason="exports a checkpoint, which takes half a minute")
def test_a_checkpoint_without_an_indicator_has_its_texts(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    run = write_run(checkpoints["sd15"], tmp_path / "run")
    tokens = export_run(run, tmp_path / "tokens")
    made = export_run(run, tmp_path / "ready", precompute_kv=True)
    layout = made.config.keys_values
    assert layout is not None
    assert layout.indicator_tokens == 0
    before, after = (operators(bundle.graphs["denoiser"]) for bundle in (tokens, made))
    assert before["MatMul"] - after["MatMul"] == 2 * len(layout.layers)
    wanted = images(tokens, "onnxruntime").astype(int)
    for backend in ("onnxruntime", "torch"):
        assert np.abs(images(made, backend) - wanted).max() <= IMAGE_GREY_LEVELS


def test_a_bundle_can_not_be_given_them(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DdmError, match="--precompute-kv and --decoder need the run"):
        export(str(tiny_bundle.path), tmp_path / "out", Precision.FP16, precompute_kv=True)
    assert not (tmp_path / "out").exists()
