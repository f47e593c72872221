"""The text encoder behind the contract, on ONNX Runtime and torch: shapes, agreement, and bundles without one."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tolerances import EXPORT_FP32_ABS

from ddm_rt.bundle import Bundle
from ddm_rt.engine.backends import load
from ddm_rt.engine.cpu.ort import OrtEngine
from ddm_rt.errors import BundleError, DdmError

BACKENDS = ("onnxruntime", "torch")
WORDS = 614  # of the bundle's tokenizers


@pytest.fixture(scope="module")
def bundle(latent_bundles: Mapping[str, Bundle]) -> Bundle:
    """SDXL's: two encoders, and pooled text."""
    return latent_bundles["sdxl"]


def input_ids(bundle: Bundle, batch: int) -> dict[str, NDArray[np.int64]]:
    rng = np.random.default_rng(batch)
    made = {}
    for spec in bundle.config.text:
        ids = rng.integers(0, WORDS - 2, (batch, spec.max_length))
        ids[:, 0], ids[:, -1] = WORDS - 2, WORDS - 1  # the end, where the encoder pools
        made[spec.input] = ids
    return made


@pytest.mark.parametrize("batch", [1, 3])
def test_backends_agree(bundle: Bundle, batch: int) -> None:
    given = input_ids(bundle, batch)
    ours, theirs = (load(bundle, backend, 1).text_encoder(given) for backend in BACKENDS)
    assert list(ours) == list(theirs) == ["context", "text_embeds"]
    for name, shape in (("context", (batch, 77, 32)), ("text_embeds", (batch, 16))):
        for found in (ours[name], theirs[name]):
            assert isinstance(found, np.ndarray)
            assert (found.shape, found.dtype) == (shape, np.float32)
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=EXPORT_FP32_ABS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_encoders_count(bundle: Bundle, backend: str) -> None:
    engine = load(bundle, backend, 1)
    given = input_ids(bundle, 1)
    before = engine.text_encoder(given)
    for name, changed in (("input_ids", {"context"}), ("input_ids_2", {"context", "text_embeds"})):
        other = given | {name: np.where(np.arange(77) == 5, 7, given[name])}
        after = engine.text_encoder(other)
        assert {key for key in before if not np.array_equal(before[key], after[key])} == changed


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prompt_free_bundle_has_none(tiny_bundle: Bundle, backend: str) -> None:
    with pytest.raises(DdmError, match="tiny: is prompt-free, so it has no text encoder"):
        load(tiny_bundle, backend, 1).text_encoder({"input_ids": np.zeros((1, 77), np.int64)})


def test_wrong_shapes_become_one_clear_error(bundle: Bundle) -> None:
    given = {name: ids[:, :5] for name, ids in input_ids(bundle, 1).items()}
    with pytest.raises(DdmError, match=r"text_encoder\.onnx refused its inputs \(input_ids \[1, 5\]"):
        OrtEngine(bundle, 1).text_encoder(given)


def test_a_foreign_graph_is_named(bundle: Bundle, tmp_path: Path) -> None:
    """On its first use: what samples without a prompt that is new doesn't read it."""
    path = tmp_path / "bundle"
    shutil.copytree(bundle.path, path)
    shutil.copyfile(path / "decoder.onnx", path / "text_encoder.onnx")
    engine = OrtEngine(dataclasses.replace(bundle, path=path), 1)
    with pytest.raises(BundleError, match=r"text_encoder\.onnx: inputs are x0; the bundle says input_ids, input_ids_2"):
        engine.text_encoder(input_ids(bundle, 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_says_what_computes(bundle: Bundle, backend: str) -> None:
    """The library that the torch backend's text encoder comes from is among what decides its bytes."""
    assert ("transformers" in load(bundle, backend, 1).versions) is (backend == "torch")
