"""Checkpoints: every layout gives diffusers' own weights, and what isn't one gets a single clear error."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import adapters
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ddm_rt.config import Family, PredictionType, SamplerName
from ddm_rt.errors import DdmError
from ddm_rt.model.checkpoint.folder import Checkpoint, component_module, load_base, read_checkpoint
from ddm_rt.model.latent import LatentDDM

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
WEIGHTS["text_encoder_2"] = "model"


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> LatentDDM:
    with torch.device("meta"):
        model = LatentDDM(checkpoint.model)
    load_base(model, checkpoint, dtype)
    return model


def components(checkpoint: Checkpoint) -> tuple[str, ...]:
    encoders = ("text_encoder", "text_encoder_2")[: len(checkpoint.model.text_encoders)]
    return ("unet", "vae", *encoders)


def check_weights(model: LatentDDM, want: Any, names: tuple[str, ...]) -> None:
    for component in names:
        found = component_module(model, component).state_dict()
        expected = getattr(want, component).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), component


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_a_familys_checkpoint_is_read_as_diffusers_reads_it(checkpoints: Mapping[str, Path], family: str) -> None:
    found = read_checkpoint(checkpoints[family])
    xl = family == "sdxl"
    assert found.model.family is (Family.SDXL if xl else Family.SD)
    assert (found.model.patch, found.image_size) == (8, 64)
    assert found.sampling.sampler is (SamplerName.EULER if xl else SamplerName.DDIM)
    assert found.sampling.guidance_scale == (5.0 if xl else 7.5)
    assert found.schedule.prediction_type is PredictionType("v_prediction" if family == "sd21" else "epsilon")
    assert found.schedule.steps_offset == 1
    assert found.empty_negative_is_zero is xl
    assert found.stands_for is None
    assert [path.name for path in found.tokenizers] == ["tokenizer", "tokenizer_2"][: 1 + xl]
    model = load(found)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    check_weights(model, adapters.pipeline(checkpoints[family]), components(found))
    assert len(found.base.sha256) == 64


def bins(folder: Path) -> None:
    for component, stem in WEIGHTS.items():
        path = folder / component / f"{stem}.safetensors"
        if path.exists():
            torch.save(
                load_file(path), folder / component / f"{stem.replace('model', 'pytorch_model', stem == 'model')}.bin"
            )
            path.unlink()


def shards(folder: Path) -> None:
    for component, stem in WEIGHTS.items():
        path = folder / component / f"{stem}.safetensors"
        if path.exists():
            tensors = load_file(path)
            path.unlink()
            names = sorted(tensors)
            weight_map = {}
            for i, part in enumerate((names[::2], names[1::2]), 1):
                file = f"{stem}-0000{i}-of-00002.safetensors"
                save_file({name: tensors[name] for name in part}, path.with_name(file))
                weight_map |= dict.fromkeys(part, file)
            path.with_name(f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = edit(load_file(path))
    path.unlink()  # whoever has mapped the old file keeps it
    save_file(tensors, path)


def old_names(folder: Path) -> None:
    """As in files of years ago: the VAE's attention by other names and as convolutions, and a buffer too many."""
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def vae(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {}
        for name, tensor in tensors.items():
            for ours, theirs in new.items():
                if f".attentions.0.{ours}." in name:
                    name = name.replace(ours, theirs)
                    tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
            found[name] = tensor.contiguous()
        assert any("proj_attn" in name for name in found)
        return found

    def encoder(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        bare = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
        prefixed = {f"text_model.{name}": tensor for name, tensor in bare.items()}
        return prefixed | {"text_model.embeddings.position_ids": torch.arange(77)[None]}

    change(folder / "vae/diffusion_pytorch_model.safetensors", vae)
    change(folder / "text_encoder/model.safetensors", encoder)


def bare_names(folder: Path) -> None:
    change(
        folder / "text_encoder/model.safetensors",
        lambda tensors: {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()},
    )


@pytest.mark.parametrize("layout", [bins, shards, old_names, bare_names], ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_weights(
    checkpoints: Mapping[str, Path], tmp_path: Path, layout: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(checkpoints["sd15"], tmp_path / "copy"))
    layout(folder)
    found = read_checkpoint(folder)
    check_weights(load(found), adapters.pipeline(checkpoints["sd15"]), components(found))
    assert found.base.sha256 != read_checkpoint(checkpoints["sd15"]).base.sha256


def test_a_variant_beside_the_plain_files(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints["sd15"], tmp_path / "copy"))
    half = adapters.pipeline(checkpoints["sd15"]).to(torch.float16)
    half.save_pretrained(folder, variant="fp16")
    found = read_checkpoint(folder, "fp16")
    check_weights(load(found, torch.float16), half, components(found))
    check_weights(load(found), half.to(torch.float32), components(found))
    assert found.base.variant == "fp16"
    plain = read_checkpoint(folder)
    check_weights(load(plain), adapters.pipeline(checkpoints["sd15"]), components(plain))
    with pytest.raises(DdmError, match="no weight file is of the variant 'int3'"):
        read_checkpoint(folder, "int3")


def test_the_base_entry_is_of_the_content_not_the_place(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    before = read_checkpoint(checkpoints["sd15"]).base
    folder = Path(shutil.copytree(checkpoints["sd15"], tmp_path / "copy"))
    (folder / "README.md").write_text("not part of it")
    after = read_checkpoint(folder).base
    assert (before.sha256, after.path) == (after.sha256, folder.resolve())
    for name in ("tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json", "vae/config.json"):
        digest = read_checkpoint(folder).base.sha256
        (folder / name).write_text((folder / name).read_text() + "\n")
        assert read_checkpoint(folder).base.sha256 != digest, name


def edit(name: str, **fields: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return spoil


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


INDEX, UNET, VAE, TEXT = "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"
UNREADABLE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "Flux": ("sd15", edit(INDEX, _class_name="FluxPipeline"), "field _class_name: 'FluxPipeline' is not supported"),
    "SD3": ("sd15", edit(INDEX, _class_name="StableDiffusion3Pipeline"), "supported: StableDiffusionPipeline"),
    "inpainting": ("sd15", edit(INDEX, _class_name="StableDiffusionInpaintPipeline"), "InpaintPipeline' is not"),
    "no class": ("sd15", edit(INDEX, _class_name=["x"]), "field _class_name"),
    "refiner": ("sdxl", edit(INDEX, requires_aesthetics_score=True), "refiners are not supported"),
    "no index": ("sd15", remove(INDEX), "model_index.json: cannot be read (No such file"),
    "index not JSON": ("sd15", lambda folder: (folder / INDEX).write_bytes(b"\xff{"), "model_index.json: not JSON"),
    "index a list": ("sd15", lambda folder: (folder / INDEX).write_text("[]"), "expected a JSON object"),
    **{
        f"no {name}": ("sd15", remove(name), f"{name}: missing; a StableDiffusionPipeline has unet, vae, scheduler")
        for name in ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
    },
    "no second encoder": ("sdxl", remove("text_encoder_2"), "text_encoder_2: missing; a StableDiffusionXLPipeline has"),
    "no configuration": ("sd15", remove(UNET), "unet/config.json: cannot be read"),
    "no scheduler file": ("sd15", remove("scheduler/scheduler_config.json"), "scheduler_config.json: cannot be read"),
    "no weights": ("sd15", remove("vae/diffusion_pytorch_model.safetensors"), "vae: no weights; expected"),
    "no vocabulary": ("sd15", remove("tokenizer/tokenizer.json"), "tokenizer: no tokenizer; expected tokenizer.json"),
    "nine channels": ("sd15", edit(UNET, in_channels=9), "field in_channels: 9 (out_channels: 4); expected the VAE's"),
    "other latents": ("sd15", edit(VAE, latent_channels=16), "field in_channels: 4 (out_channels: 4); expected"),
    "hidden sizes": (
        "sd15",
        edit(TEXT, hidden_size=48),
        "32; the text encoders' hidden_size gives 48",
    ),
    "two hidden sizes": ("sdxl", edit("text_encoder_2/config.json", hidden_size=64), "hidden_size gives 32 + 64"),
    "pooled size": ("sdxl", edit("text_encoder_2/config.json", projection_dim=8), "projection_dim = 56"),
    "SD index on XL": ("sdxl", edit(INDEX, _class_name="StableDiffusionPipeline"), "addition_embed_type: 'text_time'"),
    "guidance embedding": ("sd15", edit(UNET, time_cond_proj_dim=256), "field time_cond_proj_dim: 256"),
    "latent statistics": ("sd15", edit(VAE, latents_mean=[0.0] * 4), "field latents_mean"),
    "another VAE": ("sd15", edit(VAE, _class_name="AutoencoderTiny"), "field _class_name: 'AutoencoderTiny'"),
    "another encoder": (
        "sd15",
        edit(TEXT, architectures=["T5EncoderModel"]),
        "field architectures: ['T5EncoderModel']",
    ),
    "architectures": ("sd15", edit(TEXT, architectures=3), "field architectures: 3"),
    "blocks": ("sd15", edit(UNET, block_out_channels=[32]), "unet/config.json: makes no UNet2DConditionModel"),
    "a word for a size": ("sd15", edit(TEXT, hidden_size="wide"), "text_encoder/config.json: makes no CLIPTextModel"),
    "no levels": ("sd15", edit(VAE, block_out_channels=None), "vae/config.json: makes no AutoencoderKL"),
    "no side": ("sd15", edit(UNET, sample_size=None), "field sample_size: None; expected one positive number"),
    "two sides": ("sd15", edit(UNET, sample_size=[8, 16]), "field sample_size: [8, 16]"),
    "scheduler": (
        "sd15",
        edit("scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
        "'FlowMatchEulerDiscreteScheduler' is not supported; schedulers: DDIMScheduler",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_is_no_checkpoint_of_ours(checkpoints: Mapping[str, Path], tmp_path: Path, case: str) -> None:
    family, spoil, said = UNREADABLE[case]
    folder = Path(shutil.copytree(checkpoints[family], tmp_path / "copy"))
    spoil(folder)
    with pytest.raises(DdmError) as error:
        read_checkpoint(folder)
    assert str(error.value).startswith(str(folder))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(DdmError, match="no such directory; expected a checkpoint folder in diffusers' format"):
        read_checkpoint(tmp_path / "nowhere")


def nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors["conv_in.bias"][1] = torch.nan
    return tensors


UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
UNLOADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        f"{UNET_FILE}: not a readable safetensors file",
    ),
    "not finite": (lambda path: change(path, nan), f"{UNET_FILE}: tensor conv_in.bias has non-finite values"),
    "too large": (
        lambda path: change(path, lambda tensors: tensors | {"conv_in.bias": torch.full((32,), 1e6)}),
        "tensor conv_in.bias has values beyond the range of torch.float16",
    ),
    "missing": (
        lambda path: change(path, lambda tensors: {n: t for n, t in tensors.items() if n != "conv_out.bias"}),
        f"{UNET_FILE}: tensor conv_out.bias is missing; the config.json beside it needs it",
    ),
    "foreign": (
        lambda path: change(path, lambda tensors: tensors | {"tower.weight": torch.zeros(1)}),
        f"{UNET_FILE}: tensor tower.weight is foreign",
    ),
    "of another shape": (
        lambda path: change(path, lambda tensors: tensors | {"conv_in.bias": torch.zeros(33)}),
        f"{UNET_FILE}: tensor conv_in.bias is [33]; config.json says [32]",
    ),
}


@pytest.mark.parametrize("case", UNLOADABLE)
def test_weights_that_are_no_weights(checkpoints: Mapping[str, Path], tmp_path: Path, case: str) -> None:
    folder = Path(shutil.copytree(checkpoints["sd15"], tmp_path / "copy"))
    spoil, said = UNLOADABLE[case]
    spoil(folder / UNET_FILE)
    with pytest.raises(DdmError) as error:
        load(read_checkpoint(folder), torch.float16)
    assert said in str(error.value)


def test_pickled_code_is_not_run(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints["sd15"], tmp_path / "copy"))
    (folder / UNET_FILE).unlink()
    adapters.write_pickle(folder / UNET_FILE.replace("safetensors", "bin"), tmp_path / "ran")
    with pytest.raises(DdmError, match=r"diffusion_pytorch_model\.bin: not readable as weights alone"):
        load(read_checkpoint(folder))
    assert not (tmp_path / "ran").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ("_class_name", "requires_aesthetics_score", "force_zeros_for_empty_prompt", "unet", "vae", "scheduler")


@pytest.fixture(scope="module")
def spoilt(checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of sd15 whose index each example writes anew."""
    return Path(shutil.copytree(checkpoints["sd15"], tmp_path_factory.mktemp("spoilt") / "copy"))


@given(tree=JSON | st.dictionaries(st.sampled_from(FIELDS), JSON | st.just("StableDiffusionPipeline"), max_size=4))
def test_any_index_is_read_or_refused(spoilt: Path, tree: Any) -> None:
    (spoilt / INDEX).write_text(json.dumps(tree))
    refusal = None
    try:
        found = read_checkpoint(spoilt)
    except DdmError as error:
        refusal = str(error)
    assert found.model.family is Family.SD if refusal is None else refusal.startswith(str(spoilt))
