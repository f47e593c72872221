"""Names of low-rank factors: every spelling is merged into its layer, and any other text is one clear error."""

from collections.abc import Mapping
from pathlib import Path

import adapters
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ddm_rt.errors import DdmError
from ddm_rt.model.checkpoint.adapter import merge_adapter
from ddm_rt.model.latent import LatentDDM

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
ENCODER = "text_model.encoder.layers.0.self_attn"
UNET_LAYER, ENCODER_LAYER = f"unet.{BLOCK}.to_q", f"text_encoder.{ENCODER}.q_proj"
OUT = f"unet.{BLOCK}.to_out.0"
# Factors A and B, and the layer that they mean.
SPELLINGS = {
    (f"unet.{BLOCK}.to_q.lora_A.weight", f"unet.{BLOCK}.to_q.lora_B.weight"): UNET_LAYER,
    (f"unet.{BLOCK}.to_q.lora_A.default.weight", f"unet.{BLOCK}.to_q.lora_B.default.weight"): UNET_LAYER,
    (f"unet.{BLOCK}.to_q.lora.down.weight", f"unet.{BLOCK}.to_q.lora.up.weight"): UNET_LAYER,
    (f"unet.{BLOCK}.to_q.lora_down.weight", f"unet.{BLOCK}.to_q.lora_up.weight"): UNET_LAYER,
    (f"unet.{BLOCK}.processor.to_q_lora.down.weight", f"unet.{BLOCK}.processor.to_q_lora.up.weight"): UNET_LAYER,
    (f"unet.{BLOCK}.processor.to_out_lora.down.weight", f"unet.{BLOCK}.processor.to_out_lora.up.weight"): OUT,
    (f"{ENCODER_LAYER}.lora_linear_layer.down.weight", f"{ENCODER_LAYER}.lora_linear_layer.up.weight"): ENCODER_LAYER,
    (f"text_encoder.{ENCODER}.to_q_lora.down.weight", f"text_encoder.{ENCODER}.to_q_lora.up.weight"): ENCODER_LAYER,
    (f"{ENCODER_LAYER}.lora.down.weight", f"{ENCODER_LAYER}.lora.up.weight"): ENCODER_LAYER,
}
OTHERS = ("lora_A.weight", "conv_in.weight", "conv_in.bias", "to_q.lora_A.bias", "to_q.lora_C.weight")
OTHERS += ("to_q.lora_embedding_A", "to_q.lora_A.weight.extra")
ALPHAS = ("to_q.alpha", "processor.to_q_lora.down.weight.alpha")
SIDE = 32  # of the layers


@pytest.fixture(scope="module")
def model(checkpoints: Mapping[str, Path]) -> LatentDDM:
    """sd15, which no test changes for good."""
    return adapters.load(checkpoints["sd15"])


def weight(model: LatentDDM, layer: str) -> torch.Tensor:
    component, _, name = layer.partition(".")
    module = model.unet if component == "unet" else model.text_encoders[0]
    found = {n.removeprefix("text_model."): p for n, p in module.named_parameters()}
    return found[f"{name.removeprefix('text_model.')}.weight"].detach().clone()


def change(model: LatentDDM, layer: str, path: Path, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What merging a file of `tensors` adds to the layer's weight, which is taken back."""
    save_file(dict(tensors), path)
    before = weight(model, layer)
    report = merge_adapter(model, path)
    after = weight(model, layer)
    assert len(report.merged) == 1
    save_file({name: -t if "B" in name or "up" in name else t for name, t in tensors.items()}, path)
    merge_adapter(model, path)
    return after - before


@pytest.mark.parametrize("names", SPELLINGS, ids=lambda names: names[0])
def test_every_spelling(model: LatentDDM, tmp_path: Path, names: tuple[str, str]) -> None:
    a, b = torch.randn(2, SIDE), torch.randn(SIDE, 2)
    found = change(model, SPELLINGS[names], tmp_path / "lora.safetensors", dict(zip(names, (a, b), strict=True)))
    torch.testing.assert_close(found, b @ a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_an_alpha_is_called_after_its_layer_or_its_first_factor(model: LatentDDM, tmp_path: Path, alpha: str) -> None:
    a, b = torch.randn(2, SIDE), torch.randn(SIDE, 2)
    names = {f"unet.{BLOCK}.processor.to_q_lora.down.weight": a, f"unet.{BLOCK}.processor.to_q_lora.up.weight": b}
    tensors = names | {f"unet.{BLOCK}.{alpha}": torch.tensor(6.0)}
    found = change(model, UNET_LAYER, tmp_path / "lora.safetensors", tensors)
    torch.testing.assert_close(found, 3 * b @ a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_other_names_are_no_factors(model: LatentDDM, tmp_path: Path, name: str) -> None:
    save_file({f"unet.{name}": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(DdmError, match=f"tensor {name} is not a factor of plain low-rank adaptation"):
        merge_adapter(model, tmp_path / "lora.safetensors")


@settings(max_examples=50)
@given(st.text(alphabet="abloradwnuptqe_.ABd \n", max_size=40), st.sampled_from(["unet", "text_encoder"]))
def test_any_text_is_refused_by_one_error(
    model: LatentDDM, tmp_path_factory: pytest.TempPathFactory, name: str, component: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_file({f"{component}.{name}": torch.zeros(2, 2)}, path)
    with pytest.raises(DdmError):
        merge_adapter(model, path)
