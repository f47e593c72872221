"""Adapters: the same outputs as peft and diffusers give, and one clear error for what can't be merged."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import adapters
import pytest
import torch
from safetensors.torch import load_file, save_file
from tolerances import ADAPTER_ABS

from ddm_rt.errors import DdmError
from ddm_rt.model.checkpoint.adapter import merge_adapter
from ddm_rt.model.latent import LatentDDM

ENCODERS = {"sd15": ("text_encoder",), "sd21": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}

XL = pytest.mark.slow(reason="the second encoder's adapter is quick in PEFT's layout")
_SLOW = pytest.mark.slow(reason="SDXL has all that they have, and a second encoder")
VARIANT = pytest.mark.slow(reason="two seconds each; the family's own adapter is quick")
FAMILIES = (pytest.param("sd15", marks=_SLOW), pytest.param("sd21", marks=_SLOW), "sdxl")
STEPS = 6


@pytest.fixture(scope="module")
def sound(checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for sd15's UNet. Read-only."""
    return adapters.write_peft(checkpoints["sd15"], tmp_path_factory.mktemp("adapters") / "adapter")


@pytest.fixture
def copied(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "adapter"))


@torch.inference_mode()
def check_outputs(model: LatentDDM, want: Any, family: str) -> None:
    """One UNet call, and what the text encoders give, against the networks of the pipeline `want`."""
    x_t, t, context, added = adapters.unet_inputs(want)
    cond = model.condition(context, torch.full((2,), -1), torch.ones(2), added)
    expected = want.unet(x_t, t, context, added_cond_kwargs=added or None).sample
    torch.testing.assert_close(model(x_t, t, cond), expected, rtol=0, atol=ADAPTER_ABS)
    encoded = model.encode_text(*adapters.token_ids(want, family))
    embeds = want.encode_prompt(
        adapters.PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    torch.testing.assert_close(encoded["context"], embeds[0], rtol=0, atol=ADAPTER_ABS)
    if family == "sdxl":
        torch.testing.assert_close(encoded["text_embeds"], embeds[2], rtol=0, atol=ADAPTER_ABS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_peft_adapter_gives_what_peft_and_diffusers_give(
    checkpoints: Mapping[str, Path], tmp_path: Path, family: str
) -> None:
    base = checkpoints[family]
    folder = adapters.write_peft(base, tmp_path / "adapter", encoders=ENCODERS[family])
    want, model = adapters.with_peft(base, folder), adapters.load(base)
    report = merge_adapter(model, folder)
    assert report.unmatched == ("unet: query", "unet: value")
    assert len(report.merged) == len(set(report.merged))
    check_outputs(model, want, family)

    ours = adapters.pipeline(base)
    untouched, expected = adapters.latents(ours, STEPS), adapters.latents(want, STEPS)
    adapters.put_networks(ours, model)
    torch.testing.assert_close(adapters.latents(ours, STEPS), expected, rtol=0, atol=ADAPTER_ABS)
    assert (untouched - expected).abs().max() > 1000 * ADAPTER_ABS, "the adapter does something"


@VARIANT
@pytest.mark.parametrize(
    "settings",
    [
        {"safe": False},
        {"use_rslora": True},
        {"rank_pattern": {"attn1.to_q": 4}, "alpha_pattern": {"attn2.to_v": 5}},
        {"target_modules": r".*attn1\.to_(q|k|out\.0)"},
        {"target_modules": ["conv1", "proj_in", "to_out.0"]},
        {"target_modules": ["to_q", "conv1"], "use_dora": True, "use_rslora": True},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_settings_of_peft(checkpoints: Mapping[str, Path], tmp_path: Path, settings: dict[str, Any]) -> None:
    base = checkpoints["sd15"]
    folder = adapters.write_peft(base, tmp_path / "adapter", **settings)
    model = adapters.load(base)
    merge_adapter(model, folder)
    check_outputs(model, adapters.with_peft(base, folder), "sd15")


@pytest.mark.parametrize(
    ("family", "metadata"),
    [("sd15", True), pytest.param("sd15", False, marks=VARIANT), pytest.param("sdxl", True, marks=XL)],
)
def test_a_single_file_of_diffusers(
    checkpoints: Mapping[str, Path], tmp_path: Path, family: str, metadata: bool
) -> None:
    """Without metadata the file doesn't know α: the scale is 1, here as in diffusers."""
    base = checkpoints[family]
    alpha = 32 if metadata else 8
    path, want = adapters.write_single_file(
        base, tmp_path, encoders=ENCODERS[family], metadata=metadata, lora_alpha=alpha
    )
    model = adapters.load(base)
    report = merge_adapter(model, path)
    assert {name.split(".")[0] for name in report.merged} == {"unet", *ENCODERS[family]}
    check_outputs(model, want, family)


@VARIANT
@pytest.mark.parametrize("settings", [{"rank_pattern": {"attn1.to_q": 4}}, {"use_dora": True}], ids=" ".join)
def test_a_single_file_as_diffusers_itself_loads_it(
    checkpoints: Mapping[str, Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    base = checkpoints["sd15"]
    path, _ = adapters.write_single_file(base, tmp_path, **settings)
    want, model = adapters.pipeline(base), adapters.load(base)
    want.load_lora_weights(path)
    merge_adapter(model, path.parent)
    check_outputs(model, want, "sd15")


@pytest.mark.parametrize("family", ["sd15", pytest.param("sdxl", marks=XL)])
def test_kohyas_layout_with_its_alphas(checkpoints: Mapping[str, Path], tmp_path: Path, family: str) -> None:
    base = checkpoints[family]
    path = adapters.write_kohya(base, tmp_path / "lora.safetensors", alpha=2.0, sdxl=family == "sdxl")
    want, model = adapters.pipeline(base), adapters.load(base)
    state, alphas = want.lora_state_dict(path, unet_config=want.unet.config)
    own, own_alphas = ({k: v for k, v in tree.items() if k.startswith("unet.")} for tree in (state, alphas))
    want.load_lora_into_unet(own, own_alphas, want.unet)
    stem = f"lora_te{'1' * (family == 'sdxl')}_text_model_encoder_layers_0_self_attn_q_proj"
    factors = load_file(path)
    layer = next(m for n, m in want.text_encoder.named_modules() if n.endswith("layers.0.self_attn.q_proj"))
    layer.weight.data += 2.0 / 4 * factors[f"{stem}.lora_up.weight"] @ factors[f"{stem}.lora_down.weight"]
    report = merge_adapter(model, path)
    assert not report.unmatched
    check_outputs(model, want, family)


def test_a_peft_folder_for_the_unet_alone(checkpoints: Mapping[str, Path], sound: Path) -> None:
    base = checkpoints["sd15"]
    model = adapters.load(base)
    merge_adapter(model, sound / "unet")
    check_outputs(model, adapters.with_peft(base, sound), "sd15")


def test_layers_that_match_nothing_are_reported(checkpoints: Mapping[str, Path], copied: Path) -> None:
    path = copied / "unet" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors |= {
        "base_model.model.tower.to_q.lora_A.weight": torch.zeros(8, 4),
        "base_model.model.tower.to_q.lora_B.weight": torch.zeros(4, 8),
    }
    save_file(tensors, path)
    report = merge_adapter(adapters.load(checkpoints["sd15"]), copied)
    assert report.unmatched == ("unet.tower.to_q", "unet: query", "unet: value")


def edit_settings(folder: Path, **fields: Any) -> None:
    path = folder / "unet" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "unet" / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


LAYER = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def first_set(tensors: dict[str, torch.Tensor], end: str, value: torch.Tensor) -> None:
    tensors[min(name for name in tensors if name.endswith(end))] = value


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "settings not JSON": (lambda f: (f / "unet/adapter_config.json").write_text("{"), "adapter_config.json: not JSON"),
    "settings a list": (lambda f: (f / "unet/adapter_config.json").write_text("[]"), "expected a JSON object"),
    "no rank": (lambda f: edit_settings(f, r=0), "field r"),
    "no alpha": (lambda f: edit_settings(f, lora_alpha=None), "field lora_alpha"),
    "a pattern": (
        lambda f: edit_settings(f, rank_pattern={"(": 4}),
        "field rank_pattern.(.[key]: Input should be a valid regular",
    ),
    "DoRA without magnitudes": (
        lambda f: edit_settings(f, use_dora=True),
        "has no lora_magnitude_vector; its settings say use_dora: True",
    ),
    "magnitudes without DoRA": (
        lambda f: edit_tensors(f, lambda t: t.update({f"{LAYER}.lora_magnitude_vector": torch.ones(32)})),
        "has a lora_magnitude_vector; its settings say use_dora: False",
    ),
    "magnitudes of another base": (
        lambda f: (
            edit_settings(f, use_dora=True),
            edit_tensors(f, lambda t: t.update({f"{LAYER}.lora_magnitude_vector": torch.ones(7)})),
        ),
        "the adapter is for another base",
    ),
    "LoKr": (lambda f: edit_settings(f, peft_type="LOKR"), "field peft_type: 'LOKR' is not supported"),
    "biases": (lambda f: edit_settings(f, bias="all"), "field bias: 'all' is not supported"),
    "whole modules": (lambda f: edit_settings(f, modules_to_save=["conv_in"]), "field modules_to_save"),
    "another base weight": (lambda f: edit_settings(f, init_lora_weights="pissa"), "field init_lora_weights: 'pissa'"),
    "another rank": (lambda f: edit_settings(f, r=4), "has rank 8; its settings (r, rank_pattern) say 4"),
    "no weights": (lambda f: (f / "unet/adapter_model.safetensors").unlink(), "no weights; expected adapter_model"),
    "truncated": (
        lambda f: (f / "unet/adapter_model.safetensors").write_bytes(
            (f / "unet/adapter_model.safetensors").read_bytes()[:-9]
        ),
        "adapter_model.safetensors: not a readable safetensors file",
    ),
    "empty": (lambda f: edit_tensors(f, dict.clear), "it is empty"),
    "NaN": (
        lambda f: edit_tensors(
            f, lambda t: first_set(t, "lora_B.weight", next(iter(t.values())).new_full((32, 8), torch.nan))
        ),
        "has non-finite values",
    ),
    "too large": (lambda f: edit_settings(f, lora_alpha=1e300), "has non-finite values, alone or added to the base's"),
    "another base": (
        lambda f: edit_tensors(f, lambda t: first_set(t, "lora_A.weight", torch.zeros(8, 7))),
        "the adapter is for another base",
    ),
    "a factor alone": (lambda f: edit_tensors(f, lambda t: t.pop(min(t))), "has the factor B alone; expected A and B"),
    "a number as factor": (
        lambda f: edit_tensors(f, lambda t: first_set(t, "lora_A.weight", torch.tensor(1.0))),
        "expected A [r, in] and B [out, r]",
    ),
    "a bias": (
        lambda f: edit_tensors(f, lambda t: t.update({"base_model.model.conv_in.bias": torch.zeros(3)})),
        "tensor conv_in.bias is not a factor of plain low-rank adaptation",
    ),
    "other layers": (
        lambda f: edit_tensors(f, lambda t: [t.update({n.replace("blocks", "towers"): t.pop(n)}) for n in list(t)]),
        "none of its layers is in the base checkpoint's unet",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_merged(checkpoints: Mapping[str, Path], sound: Path, copied: Path, case: str) -> None:
    spoil, said = BROKEN[case]
    spoil(copied)
    refuse(checkpoints["sd15"], copied, said)


def refuse(base: Path, adapter: Path, said: str) -> None:
    """One line that names the adapter, and not a weight has changed."""
    model = adapters.load(base)
    before = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    with pytest.raises(DdmError) as error:
        merge_adapter(model, adapter)
    assert said in str(error.value)
    assert str(adapter) in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.unet.state_dict().items())


def test_an_adapter_of_another_family(checkpoints: Mapping[str, Path], sound: Path, tmp_path: Path) -> None:
    refuse(checkpoints["sdxl"], sound, "the adapter is for another base")
    path, _ = adapters.write_single_file(checkpoints["sdxl"], tmp_path, encoders=ENCODERS["sdxl"])
    refuse(checkpoints["sd15"], path, "the adapter is for another base")
    tensors = {
        f"text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_{side}.weight": torch.zeros(size)
        for side, size in (("A", (8, 32)), ("B", (32, 8)))
    }
    save_file(tensors, tmp_path / "second.safetensors")
    refuse(checkpoints["sd15"], tmp_path / "second.safetensors", "is for a text_encoder_2")


def test_pickled_code_is_not_run(checkpoints: Mapping[str, Path], copied: Path, tmp_path: Path) -> None:
    (copied / "unet/adapter_model.safetensors").unlink()
    adapters.write_pickle(copied / "unet/adapter_model.bin", tmp_path / "ran")
    refuse(checkpoints["sd15"], copied, "adapter_model.bin: not readable as weights alone")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "it is empty"),
        ({"vae.conv.lora_A.weight": (4, 4)}, "tensor vae.conv.lora_A.weight is foreign"),
        ({"unet.conv_in.dora_scale": (4,)}, "DoRA is not supported"),
        ({"unet.conv_in.alpha": (1,)}, "it is empty"),
        ({"unet.conv_in.alpha": (2,)}, "expected one finite number"),
        ({"unet.conv_in.weight.alpha": (1,)}, "it is empty"),
        ({"lora_unet_conv_in.alpha": (3,)}, "expected one finite number"),
        ({"lora_unet_conv_in.dora_scale": (4,)}, "DoRA is not supported in kohya's layout"),
        ({"lora_unet_conv_in.lora_down.weight": (4, 4)}, "names of kohya's layout that diffusers can't read"),
        ({"lora_unet_conv_in.hada_w1_a": (4, 4)}, "names of kohya's layout that diffusers can't read"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value) or "nothing",
)
def test_single_files_that_are_none(
    checkpoints: Mapping[str, Path], tmp_path: Path, tensors: dict[str, tuple[int, ...]], said: str
) -> None:
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, tmp_path / "lora.safetensors")
    refuse(checkpoints["sd15"], tmp_path / "lora.safetensors", said)


@pytest.mark.parametrize("header", ["{", "[]", '{"unet.r": 0, "unet.lora_alpha": 1}'])
def test_a_malformed_header_is_named(checkpoints: Mapping[str, Path], tmp_path: Path, header: str) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"unet.conv_in.lora_A.weight": torch.ones(1, 4, 3, 3)}, path, {"lora_adapter_metadata": header})
    refuse(checkpoints["sd15"], path, "field r: " if "unet" in header else "field lora_adapter_metadata of the header")


@pytest.mark.parametrize("nested", [False, True])
def test_a_single_file_may_be_a_bin(checkpoints: Mapping[str, Path], tmp_path: Path, nested: bool) -> None:
    tensors = {
        f"unet.{LAYER.removeprefix('base_model.model.')}.lora_{side}.weight": torch.ones(shape)
        for side, shape in (("A", (1, 32)), ("B", (32, 1)))
    }
    torch.save({"state_dict": tensors} if nested else tensors, tmp_path / "lora.bin")
    model = adapters.load(checkpoints["sd15"])
    layer = model.unet.get_submodule(LAYER.removeprefix("base_model.model."))
    before = layer.weight.clone()
    merge_adapter(model, tmp_path / "lora.bin")
    torch.testing.assert_close(layer.weight, before + 1)


def test_no_adapter_at_all(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    refuse(checkpoints["sd15"], tmp_path / "nowhere", "no such adapter")
    (tmp_path / "empty").mkdir()
    refuse(checkpoints["sd15"], tmp_path / "empty", "not an adapter; expected unet/adapter_config.json")
