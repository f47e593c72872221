"""A bundle's weights from its graphs: those of the run that was exported, by another way."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from latent_runs import EXPORTED
from onnx import numpy_helper
from safetensors.torch import load_file

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision, RunConfig, parse_json
from ddm_rt.engine.devices import Device
from ddm_rt.engine.torch import weights
from ddm_rt.engine.torch.engine import TorchEngine
from ddm_rt.errors import BundleError
from ddm_rt.export.precision.convert import convert
from ddm_rt.model.assemble import assemble
from ddm_rt.runtime import Codes
from ddm_rt.sample.pipeline import Pipeline


def same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> set[str]:
    """Names that differ, or that are missing."""
    return {name for name, want in wanted.items() if name not in found or not torch.equal(found[name], want)}


def test_they_are_those_that_were_exported(tiny_bundle: Bundle, tiny_run: Path) -> None:
    assert same(weights.load(tiny_bundle).state_dict(), load_file(tiny_run / "weights.safetensors")) == set()


def test_a_bundle_without_codes_has_them_too(plain_bundle: Bundle, tiny_run_without_codes: Path) -> None:
    wanted = load_file(tiny_run_without_codes / "weights.safetensors")
    assert same(weights.load(plain_bundle).state_dict(), wanted) == set()


@pytest.mark.parametrize("family", EXPORTED)
def test_those_of_a_checkpoint_are_merged(
    family: str, latent_runs: Mapping[str, Path], exported_bundles: Mapping[str, Bundle]
) -> None:
    run = latent_runs[family]
    config = parse_json(RunConfig, (run / "config.json").read_bytes(), run)
    wanted = assemble(run, config, parse_json(Codes, (run / "codes.json").read_bytes(), run)).state_dict()
    check_latent(weights.load(exported_bundles[family]).state_dict(), wanted)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_an_old_bundle_has_its_own_beside_its_graphs(family: str, latent_bundles: Mapping[str, Bundle]) -> None:
    bundle = latent_bundles[family]
    check_latent(weights.load(bundle).state_dict(), load_file(bundle.path / "weights.safetensors"))


def check_latent(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    differ = same(found, wanted)
    unread = {name for name in differ if not name.startswith(("vae.encoder.", "vae.quant_conv."))}
    # SDXL takes the first encoder's last layer but one: nothing reads the last one, and no graph has it.
    assert all(torch.isnan(found[name]).all() for name in unread)
    assert all(name.startswith("text_encoders.0.") for name in unread)


def test_a_half_precision_bundles_weights_are_rounded_once(tiny_bundle: Bundle, tmp_path: Path) -> None:
    half = convert(tiny_bundle, tmp_path / "bf16", Precision.BF16)
    found, wanted = weights.load(half).state_dict(), weights.load(tiny_bundle).state_dict()
    rounded = {name: tensor for name, tensor in found.items() if tensor.dtype is torch.bfloat16}
    assert "unet.conv_in.weight" in rounded
    assert same(rounded, {name: wanted[name].bfloat16() for name in rounded}) == set()
    cpu = Device("cpu")
    engines = TorchEngine(half, 1, cpu), TorchEngine(tiny_bundle, 1, cpu, Precision.BF16)
    assert engines[0].precision == "bf16"
    made, same_rounding = (Pipeline(tiny_bundle, engine).generate(n=2, num_steps=2).images for engine in engines)
    # The conditioner's weights are rounded in the one and not in the other.
    assert np.abs(made.astype(int) - same_rounding).mean() <= 4


@pytest.fixture
def changed(tiny_bundle: Bundle, tmp_path: Path) -> Callable[[Callable[[onnx.ModelProto], None]], Bundle]:
    """changed(how): the bundle with a denoiser that `how` has changed, unchecked."""

    def change(how: Callable[[onnx.ModelProto], None]) -> Bundle:
        path = Path(shutil.copytree(tiny_bundle.path, tmp_path / "changed"))
        model = onnx.load(path / "denoiser.onnx")
        how(model)
        onnx.save(model, path / "denoiser.onnx")
        return dataclasses.replace(tiny_bundle, path=path)

    return change


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == f"module.model.{name}")


def spoil(model: onnx.ModelProto) -> None:
    found = tensor(model, "unet.conv_out.weight")
    values = numpy_helper.to_array(found).copy()
    values.flat[0] = float("inf")
    found.CopyFrom(numpy_helper.from_array(values, found.name))


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    tensor(model, old).name = f"module.model.{new}"
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == f"module.model.{old}":
                node.input[place] = f"module.model.{new}"


def cut(model: onnx.ModelProto) -> None:
    """A convolution whose output nobody has asked for is gone, and with it whatever came after."""
    last = next(i for i, node in enumerate(model.graph.node) if "module.model.unet.conv_out.weight" in node.input)
    del model.graph.node[last:]


def share(model: onnx.ModelProto, old: str, new: str) -> None:
    """As the exporter leaves equal tensors: one for both."""
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == f"module.model.{old}":
                node.input[place] = f"module.model.{new}"
    model.graph.initializer.remove(tensor(model, old))


@pytest.mark.parametrize("kept", ["the first's name", "the last's name"])
def test_layers_with_equal_weights_share_a_tensor(
    changed: Callable[[Callable[[onnx.ModelProto], None]], Bundle], tiny_bundle: Bundle, kept: str
) -> None:
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    pairs = {
        f"{block}.norm2.weight": f"{block}.norm1.weight",
        f"{block}.norm3.weight": f"{block}.norm1.weight",
        f"{block}.norm3.bias": f"{block}.norm1.bias",
        "unet.up_blocks.0.resnets.0.conv2.bias": "unet.up_blocks.0.resnets.0.conv1.bias",
    }

    if kept == "the last's name":
        pairs = {
            f"{block}.norm1.weight": f"{block}.norm3.weight",
            f"{block}.norm2.weight": f"{block}.norm3.weight",
            f"{block}.norm1.bias": f"{block}.norm3.bias",
            "unet.up_blocks.0.resnets.0.conv1.bias": "unet.up_blocks.0.resnets.0.conv2.bias",
        }

    def how(model: onnx.ModelProto) -> None:
        for old, new in pairs.items():
            share(model, old, new)

    found, before = weights.load(changed(how)).state_dict(), weights.load(tiny_bundle).state_dict()
    assert same(found, {name: before[pairs.get(name, name)] for name in before}) == set()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (spoil, r"denoiser\.onnx: tensor module\.model\.unet\.conv_out\.weight .* has non-finite values"),
        (
            lambda model: rename(model, "unet.conv_in.weight", "unet.conv_in.kernel"),
            r"denoiser\.onnx: has tensor unet\.conv_in\.kernel .*; the model of training\.json uses unet\.conv_in\.w",
        ),
        (cut, r"denoiser\.onnx: has no tensor for unet\.conv_out\.weight, which the model of training\.json uses"),
    ],
    ids=["not finite", "another name", "cut off"],
)
def test_what_does_not_fit_is_named(
    changed: Callable[[Callable[[onnx.ModelProto], None]], Bundle], how: Callable[[onnx.ModelProto], None], said: str
) -> None:
    with pytest.raises(BundleError, match=said):
        weights.load(changed(how))
