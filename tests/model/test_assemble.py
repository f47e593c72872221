"""A run's model, whole: the base's images without code and LoRA, peft's with LoRA, and one error for bad weights."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import adapters
import pytest
import torch
from peft import inject_adapter_in_model
from safetensors.torch import load_file, save_file
from tolerances import ADAPTER_ABS, EXPORT_FP32_ABS
from torch import Tensor

from ddm_rt.config import RunConfig, parse_json
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.model.assemble import WEIGHTS, assemble
from ddm_rt.model.latent import LatentDDM
from ddm_rt.model.unet import DDM
from ddm_rt.runtime import Codes

Tensors = dict[str, Tensor]
STEPS = 20


def assembled(run: Path, dtype: torch.dtype = torch.float32) -> LatentDDM:
    config = parse_json(RunConfig, (run / "config.json").read_bytes(), run)
    codes = parse_json(Codes, (run / "codes.json").read_bytes(), run)
    model = assemble(run, config, codes, dtype)
    assert isinstance(model, LatentDDM)
    return model


@pytest.fixture
def run(latent_runs: Mapping[str, Path], tmp_path: Path) -> Path:
    """A copy of sd15's run to change; its base stays where it is."""
    return Path(shutil.copytree(latent_runs["sd15"], tmp_path / "run"))


def rewrite(run: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = change(load_file(run / WEIGHTS))
    (run / WEIGHTS).unlink()
    save_file(tensors, run / WEIGHTS)


@torch.inference_mode()
def images(model: LatentDDM, pipe: Any, code: int) -> Tensor:
    """Images [1,3,H,W] from the model, by the pipeline's own scheduler and joint guidance, for `adapters.PROMPT`."""
    scheduler, x = pipe.scheduler, adapters.noise(pipe)
    scheduler.set_timesteps(STEPS)
    context = torch.cat(
        [
            model.encode_text(pipe.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids)[
                "context"
            ]
            for text in ("", adapters.PROMPT)
        ]
    )
    cond = model.condition(context, torch.tensor([-1, code]), torch.ones(2))
    for t in scheduler.timesteps:
        null, text = model(torch.cat([x, x]), t.float().expand(2), cond).chunk(2)
        x = scheduler.step(null + 7.5 * (text - null), t, x).prev_sample
    return model.decode(x)


@torch.inference_mode()
def diffusers_images(pipe: Any) -> Tensor:
    found: Tensor = pipe(
        adapters.PROMPT, num_inference_steps=STEPS, latents=adapters.noise(pipe), output_type="pt"
    ).images
    return 2 * found - 1


@pytest.mark.parametrize("weight", [pytest.param(0, marks=pytest.mark.slow(reason="1 is quick")), 1])
def test_null_code_gives_the_bases_images_and_with_the_lora_those_of_peft(
    checkpoints: Mapping[str, Path], run: Path, weight: float
) -> None:
    factors = {name: tensor for name, tensor in load_file(run / WEIGHTS).items() if name.startswith("lora.")}
    rewrite(
        run, lambda tensors: {n: weight * t if n.endswith(".B") and n in factors else t for n, t in tensors.items()}
    )
    model, pipe = assembled(run), adapters.pipeline(checkpoints["sd15"])
    base = diffusers_images(pipe)
    if weight:
        inject_adapter_in_model(adapters.settings("unet"), pipe.unet)
        for name, parameter in pipe.unet.named_parameters():
            if "lora_" in name:
                module, _, factor = name.removesuffix(".default.weight").rpartition(".lora_")
                parameter.data = factors[f"lora.unet.{module}.{factor}"]
    want = diffusers_images(pipe)
    got = images(model, pipe, code=-1).clamp(-1, 1)
    torch.testing.assert_close(got, want, rtol=0, atol=ADAPTER_ABS)
    assert torch.equal(want, base) == (not weight), "the LoRA does something"
    assert (images(model, pipe, code=2).clamp(-1, 1) - want).abs().max() > 100 * ADAPTER_ABS, "so does a code"


@pytest.mark.parametrize("family", ["sd21", "sdxl"])
@torch.inference_mode()
def test_null_code_is_the_bases_unet(
    checkpoints: Mapping[str, Path], latent_runs: Mapping[str, Path], tmp_path: Path, family: str
) -> None:
    copy = Path(shutil.copytree(latent_runs[family], tmp_path / "run"))
    rewrite(copy, lambda tensors: {n: 0 * t if n.startswith("lora.") else t for n, t in tensors.items()})
    model, pipe = assembled(copy), adapters.pipeline(checkpoints[family])
    x_t, t, context, added = adapters.unet_inputs(pipe)
    got = model(x_t, t, model.condition(context, torch.full((2,), -1), torch.ones(2), added))
    want = pipe.unet(x_t, t, context, added_cond_kwargs=added or None).sample
    torch.testing.assert_close(got, want, rtol=0, atol=EXPORT_FP32_ABS)


def test_a_run_that_adapts_the_text_encoder(checkpoints: Mapping[str, Path], run: Path) -> None:
    pipe = adapters.pipeline(checkpoints["sd15"])
    generator = torch.Generator().manual_seed(5)
    inject_adapter_in_model(adapters.settings("text_encoder"), pipe.text_encoder)
    factors = {}
    for name, parameter in pipe.text_encoder.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
            module, _, factor = name.removesuffix(".default.weight").rpartition(".lora_")
            factors[f"lora.text_encoders.0.{module}.{factor}"] = parameter.data
    rewrite(run, lambda tensors: tensors | factors)
    ids = adapters.token_ids(pipe, "sd15")
    got = assembled(run).encode_text(*ids)["context"]
    with torch.inference_mode():
        want = pipe.text_encoder(ids[0])[0]
    torch.testing.assert_close(got, want, rtol=0, atol=ADAPTER_ABS)


def test_a_trained_tensor_takes_the_place_of_the_bases(run: Path) -> None:
    trained = torch.full((32,), 0.5)
    rewrite(run, lambda tensors: tensors | {"unet.conv_in.bias": trained})
    model = assembled(run)
    assert torch.equal(model.unet.conv_in.bias, trained)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_every_tensor_has_the_dtype_that_was_asked_for(latent_runs: Mapping[str, Path]) -> None:
    model = assembled(latent_runs["sdxl"], torch.float16)
    found = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in found} == {torch.float16}
    assert not any(tensor.is_meta for tensor in found)


def test_a_pixel_run_is_its_own_weights(tiny_run: Path) -> None:
    config = parse_json(RunConfig, (tiny_run / "config.json").read_bytes(), tiny_run)
    model = assemble(tiny_run, config, parse_json(Codes, (tiny_run / "codes.json").read_bytes(), tiny_run))
    assert isinstance(model, DDM)
    found = load_file(tiny_run / WEIGHTS)
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def lora(tensors: Tensors, factor: str) -> str:
    return min(name for name in tensors if name.startswith("lora.") and name.endswith(f".{factor}"))


def without(tensors: Tensors, name: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key != name}


BAD: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "not finite": (lambda t: t | {lora(t, "A"): t[lora(t, "A")] * torch.inf}, "has non-finite values"),
    "foreign": (lambda t: t | {"tower.weight": torch.zeros(1)}, "tensor tower.weight is foreign"),
    "another shape": (lambda t: t | {"unet.conv_in.bias": torch.zeros(3)}, "unet.conv_in.bias is [3]; expected [32]"),
    "no code table": (lambda t: without(t, "conditioner.code.weight"), "conditioner.code.weight is missing"),
    "no tree": (lambda t: without(t, "conditioner.top_of"), "conditioner.top_of is missing"),
    "another tree": (lambda t: t | {"conditioner.top_of": torch.tensor([0, 1, 0, 1])}, "differs from what codes.json"),
    "no partner": (lambda t: without(t, lora(t, "B")), ".A has no partner or no layer"),
    "no layer": (
        lambda t: t | {"lora.unet.tower.A": torch.zeros(8, 4), "lora.unet.tower.B": torch.zeros(4, 8)},
        "lora.unet.tower.A has no partner or no layer unet.tower",
    ),
    "another rank": (lambda t: t | {lora(t, "A"): t[lora(t, "A")][:4].clone()}, "expected factors of rank 8"),
    "a number": (lambda t: t | {lora(t, "A"): torch.tensor(1.0)}, "expected factors of rank 8 for a matrix [32, 32]"),
}


@pytest.mark.parametrize("case", BAD)
def test_weights_that_do_not_fit(run: Path, case: str) -> None:
    change, said = BAD[case]
    rewrite(run, change)
    with pytest.raises(BundleError) as error:
        assembled(run)
    assert str(error.value).startswith(f"{run / WEIGHTS}: ")
    assert said in str(error.value)


def test_a_run_without_its_weights_or_base(run: Path) -> None:
    (run / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes()[:-5])
    with pytest.raises(BundleError, match=r"weights\.safetensors: not a readable safetensors file"):
        assembled(run)
    (run / WEIGHTS).unlink()
    with pytest.raises(BundleError, match=r"weights\.safetensors: missing; a finished run has it"):
        assembled(run)
    config = json.loads((run / "config.json").read_text())
    config["base"]["path"] = "nowhere"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(DdmError, match="nowhere: no such directory"):
        assembled(run)


def test_a_base_that_has_changed(checkpoints: Mapping[str, Path], run: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(checkpoints["sd15"], tmp_path / "base"))
    config = json.loads((run / "config.json").read_text())
    config["base"]["path"] = "../base"
    (run / "config.json").write_text(json.dumps(config))
    assembled(run)
    path = base / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    path.unlink()
    save_file(tensors | {"conv_in.bias": tensors["conv_in.bias"] + 1}, path)
    with pytest.raises(BundleError, match="the base checkpoint has changed since"):
        assembled(run)
