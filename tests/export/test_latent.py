"""Bundles of Stable Diffusion: parity with torch at sizes that the exporter didn't see, their configuration, fp16."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import one_level
from diffusers import UNet2DConditionModel
from latent_runs import EXPORT, EXPORTED, add_indicator, write_run
from numpy.typing import NDArray
from tolerances import EXPORT_FP32_ABS, PRECISION_REL
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ddm_rt import graph_files
from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision, RunConfig, parse_json
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.export import graph
from ddm_rt.export import run as run_export
from ddm_rt.export.precision.convert import convert
from ddm_rt.export.run import export_run, read_text
from ddm_rt.graph_files import open_session
from ddm_rt.model.assemble import assemble
from ddm_rt.model.checkpoint.importing import import_run
from ddm_rt.model.latent import LatentDDM
from ddm_rt.presets import resolve
from ddm_rt.runtime import Codes

BEGIN, END = 49406, 49407


def read_config(run: Path) -> RunConfig:
    return parse_json(RunConfig, (run / "config.json").read_bytes(), run)


def model_of(run: Path) -> LatentDDM:
    model = assemble(run, read_config(run), parse_json(Codes, (run / "codes.json").read_bytes(), run))
    assert isinstance(model, LatentDDM)
    return model


def call(path: Path, feeds: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    session = open_session(path, threads=1)
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(None, {k: v.numpy() for k, v in feeds.items()}), strict=True))


def close(found: Mapping[str, NDArray[Any]], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, want in wanted.items():
        np.testing.assert_allclose(found[name], want.numpy(), rtol=0, atol=EXPORT_FP32_ABS, err_msg=name)


def prompts(batch: int, pad: int) -> Tensor:
    """Token ids of prompts with 0, 9, 18... words; the last fills the encoder's window."""
    lengths = [9 * i for i in range(batch - 1)] + [75]
    rows = [[BEGIN, *range(500, 500 + n), END] + [pad] * (75 - n) for n in lengths]
    return torch.tensor(rows)


@pytest.mark.parametrize("family", EXPORTED)
@torch.inference_mode()
def test_every_graph_computes_what_torch_does(
    family: str, latent_runs: Mapping[str, Path], exported_bundles: Mapping[str, Bundle]
) -> None:
    model, bundle = model_of(latent_runs[family]), exported_bundles[family]
    generator = torch.Generator().manual_seed(7)
    batch, height, width = 5, 6, 14
    ids = {spec.input: prompts(batch, spec.pad_id) for spec in bundle.config.text}
    text = model.encode_text(*ids.values())
    close(call(bundle.graphs["text_encoder"], ids), text)

    given = {"context": text["context"], "code": torch.arange(batch) - 1, "indicator_scale": torch.linspace(0, 2, 5)}
    sizes = torch.tensor([[48.0, 112.0, 0.0, 0.0, 48.0, 112.0]]).repeat(batch, 1)
    added = {name: {**text, "time_ids": sizes}[name] for name in model.added_names}
    cond = model.condition(*given.values(), added)
    close(call(bundle.graphs["conditioner"], given | added), cond)

    x_t = torch.randn((batch, 4, height, width), generator=generator)
    t = torch.linspace(0, 999, batch)
    close(call(bundle.graphs["denoiser"], {"x_t": x_t, "t": t, **cond}), {"output": model(x_t, t, cond)})
    small = x_t[:, :, :3, :5]
    close(call(bundle.graphs["decoder"], {"x0": small}), {"image": model.decode(small)})


@pytest.mark.slow(reason="another export")
@torch.inference_mode()
def test_a_plain_run_has_the_checkpoints_own_unet(
    checkpoints: Mapping[str, Path],
    exported_bundles: Mapping[str, Bundle],
    tmp_path: Path,
    known_graphs: Callable[..., None],
) -> None:
    """Without codes the graphs take no code; with the null code those of a run with codes ignore the indicator."""
    coded = exported_bundles["sd15"]
    known_graphs(coded, fresh=("conditioner", "denoiser"))
    bundle = export_run(write_run(checkpoints["sd15"], tmp_path / "run"), tmp_path / "bundle")
    assert bundle.config.num_codes == 0
    assert [spec.name for spec in bundle.config.cond] == ["text_tokens"]
    generator = torch.Generator().manual_seed(0)
    context, x_t = torch.randn((2, 77, 32), generator=generator), torch.randn((2, 4, 8, 8), generator=generator)
    t = torch.tensor([0.0, 999.0])
    np.testing.assert_array_equal(call(bundle.graphs["conditioner"], {"context": context})["text_tokens"], context)
    unet = UNet2DConditionModel.from_pretrained(checkpoints["sd15"] / "unet")
    want = unet(x_t, t, context, return_dict=False)[0]
    close(call(bundle.graphs["denoiser"], {"x_t": x_t, "t": t, "text_tokens": context}), {"output": want})

    feeds = {"x_t": x_t, "t": t, "text_tokens": context, "code_scale": torch.zeros(2)}
    a, b = (
        call(coded.graphs["denoiser"], {**feeds, "indicator_tokens": torch.randn((2, 4, 32), generator=generator)})
        for _ in range(2)
    )
    np.testing.assert_array_equal(a["output"], b["output"])


@pytest.mark.parametrize("family", EXPORTED)
def test_config_and_tokenizers(
    family: str, latent_runs: Mapping[str, Path], exported_bundles: Mapping[str, Bundle]
) -> None:
    bundle, xl = exported_bundles[family], family == "sdxl"
    config, dim = bundle.config, 64 if xl else 32
    assert (config.family, config.prompt_free) == ("sdxl" if xl else "sd", False)
    assert (config.latent_shape, config.size_multiple, config.channels) == ((4, 8, 8), 16, 3)
    assert config.context_shape == ("tokens", dim)
    assert {spec.name: spec.shape for spec in config.cond} == {
        "text_tokens": ("tokens", dim),
        "indicator_tokens": (4, dim),
        "code_scale": (),
        **({"pooled_text": (32,), "sizes": (6,)} if xl else {}),
    }
    assert {spec.name: spec.shape for spec in config.added} == ({"text_embeds": (32,), "time_ids": (6,)} if xl else {})
    assert config.empty_negative_is_zero is xl
    first = 0 if family == "sd21" else END  # "!" is token 0
    assert [(spec.input, spec.max_length, spec.pad_id) for spec in config.text] == [
        ("input_ids", 77, first),
        *([("input_ids_2", 77, 0)] if xl else []),
    ]
    for spec in config.text:
        tokenizer = json.loads((bundle.path / spec.tokenizer).read_text())
        assert tokenizer["truncation"] is tokenizer["padding"] is None  # the sampler's
    base = read_config(latent_runs[family]).base
    assert base is not None
    assert bundle.training.run.base == base.model_copy(update={"path": Path(base.path.name)})
    assert bundle.index.provenance["parity_max_abs_error"].keys() == bundle.graphs.keys()


@EXPORT
def test_graphs_say_what_is_free_and_nothing_of_their_origin(exported_bundles: Mapping[str, Bundle]) -> None:
    bundle = exported_bundles["sdxl"]
    shapes: dict[str, list[Any]] = {}
    for path in bundle.graphs.values():
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")  # megabytes of random bytes hold any short word
        content = model.SerializeToString()
        for word in (b"pkg.torch", b"stack_trace", b".py", b"site-packages", os.fsencode(Path.home())):
            assert word not in content, f"{path.name} holds {word!r}"
        assert {node.domain for node in model.graph.node} == {""}
        for value in (*model.graph.input, *model.graph.output):
            shapes[value.name] = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    assert shapes == {
        "input_ids": ["batch", 77],
        "input_ids_2": ["batch", 77],
        "context": ["batch", "tokens", 64],  # the conditioner's; the encoder's has the tokenizers' length
        "text_embeds": ["batch", 32],
        "time_ids": ["batch", 6],
        "code": ["batch"],
        "indicator_scale": ["batch"],
        "text_tokens": ["batch", "tokens", 64],
        "indicator_tokens": ["batch", 4, 64],
        "code_scale": ["batch"],
        "pooled_text": ["batch", 32],
        "sizes": ["batch", 6],
        "x_t": ["batch", 4, "height", "width"],
        "t": ["batch"],
        "output": ["batch", 4, "height", "width"],
        "x0": ["batch", 4, "height", "width"],
        "image": ["batch", 3, "image_height", "image_width"],
    }


@EXPORT
def test_fp16_with_weights_beside_the_graphs(
    exported_bundles: Mapping[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDXL's VAE asks to stay float32; every other graph is half the size, and close to what it was."""
    bundle = exported_bundles["sdxl"]
    monkeypatch.setattr(graph_files, "MAX_INLINE_BYTES", 2**17)
    half = convert(bundle, tmp_path / "fp16", Precision.FP16)
    files = half.index.files
    assert files["decoder.onnx"] == bundle.index.files["decoder.onnx"]
    assert {"text_encoder.onnx.data", "denoiser.onnx.data", "tokenizer/tokenizer_2.json"} <= files.keys()
    assert files["denoiser.onnx.data"].bytes < 0.6 * bundle.index.files["denoiser.onnx"].bytes
    generator = torch.Generator().manual_seed(0)
    feeds = {
        "x_t": torch.randn((2, 4, 8, 12), generator=generator),
        "t": torch.tensor([20.0, 900.0]),
        "text_tokens": torch.randn((2, 77, 64), generator=generator),
        "indicator_tokens": torch.randn((2, 4, 64), generator=generator),
        "code_scale": torch.tensor([0.0, 1.0]),
        "pooled_text": torch.randn((2, 32), generator=generator),
        "sizes": torch.tensor([[512.0, 768.0, 0.0, 0.0, 512.0, 768.0]]).repeat(2, 1),
    }
    want, got = (call(b.graphs["denoiser"], feeds)["output"] for b in (bundle, half))
    limit = PRECISION_REL["fp16"][0]
    assert limit is not None
    assert np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) <= limit


def test_a_traced_graphs_weights_are_the_modules_own_memory() -> None:
    linear = nn.Sequential(nn.Linear(64, 48), nn.Conv1d(3, 4, 1)).eval().requires_grad_(False)
    traced = graph.trace(linear, {"x": torch.zeros(2, 3, 64)}, ("y",), {"x": {0: "batch"}, "y": {0: "batch"}})
    assert [name for name, array in traced.weights.items() if array.shape == (64, 48)]  # transposed for MatMul
    for array in traced.weights.values():
        assert np.shares_memory(array, linear[0].weight.numpy())
    assert not any(tensor.raw_data for tensor in traced.model.graph.initializer if tensor.name in traced.weights)


@pytest.mark.slow(reason="another export; that of full size shows the memory")
def test_torch_lets_go_of_a_part_before_onnx_runtime_opens_its_graph(
    write_run: Callable[..., Path],
    tiny_bundle: Bundle,
    tmp_path: Path,
    known_graphs: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[StorageWeakRef] = []
    alive: dict[str, int] = {}
    assembled = run_export.assemble
    small = one_level()  # the denoiser is traced, which takes time by its layers

    def assemble_watched(*args: Any) -> Any:
        model = assembled(*args)
        storages = (parameter.untyped_storage() for parameter in model.unet.parameters())
        held.extend(StorageWeakRef(s) for s in storages if s.nbytes() > graph_files.MIN_EXTERNAL_BYTES)
        return model

    def difference_watched(path: Path, *args: Any) -> float:
        alive[path.name] = sum(not weights.expired() for weights in held)
        return 0.0  # the other graphs are those of another model

    monkeypatch.setattr(run_export, "assemble", assemble_watched)
    monkeypatch.setattr(graph, "difference", difference_watched)
    known_graphs(tiny_bundle, fresh=("denoiser",))
    export_run(write_run(tmp_path / "run", resolve("tiny", {"model.unet": small}), num_codes=4), tmp_path / "bundle")
    assert held
    assert alive == {"conditioner.onnx": len(held), "denoiser.onnx": 0, "decoder.onnx": 0}


def test_a_checkpoint_in_fp16_is_exported_in_float32_network_by_network(
    checkpoints: Mapping[str, Path],
    latent_bundles: Mapping[str, Bundle],
    tmp_path: Path,
    known_graphs: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import_run(checkpoints["sd15"], tmp_path / "run", dtype=torch.float16)
    run = add_indicator(tmp_path / "run")
    dtypes: list[list[torch.dtype]] = []
    expected = graph.expected

    def expected_watched(module: Any, cases: Any) -> Any:
        networks = module.model.text_encoders, module.model.unet, module.model.vae
        dtypes.append([next(network.parameters()).dtype for network in networks])
        return expected(module, cases)

    monkeypatch.setattr(graph, "expected", expected_watched)
    monkeypatch.setattr(graph, "difference", lambda *args: 0.0)  # the graphs are those of another checkpoint
    known_graphs(latent_bundles["sd15"])
    bundle = export_run(run, tmp_path / "bundle")
    half, full = torch.float16, torch.float32
    assert dtypes == [[full, half, half], [full, half, half], [full, full, half], [full, full, full]]

    codes = parse_json(Codes, (run / "codes.json").read_bytes(), run)
    as_stored = assemble(run, read_config(run), codes, None)
    assert as_stored.unet.conv_in.weight.dtype == half
    assert bundle.config.num_codes == 4


@pytest.mark.parametrize(("size", "refused"), [(9.0, True), (30.0, False)])
def test_hidden_states_in_the_tens_may_differ_by_more(
    size: float, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "difference", lambda *args: 2e-4)
    check = pytest.raises(DdmError, match=r"expected at most 0\.0001") if refused else nullcontext()
    with check:
        run_export._checked_difference(tmp_path / "x.onnx", onnx.ModelProto(), [], [(torch.tensor([-size]),)])


def test_a_tokenizer_that_does_not_fit_is_named(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    base = shutil.copytree(checkpoints["sd15"], tmp_path / "base")
    run = write_run(base, tmp_path / "run")
    config = read_config(run)
    encoder = config.model.text_encoders[0] | {"vocab_size": 1000}
    small = config.model_copy(update={"model": config.model.model_copy(update={"text_encoders": (encoder,)})})
    with pytest.raises(BundleError, match=r"base/tokenizer: has 49408 words; its text encoder's vocab_size is 1000"):
        read_text(run, small)
    for file in (base / "tokenizer").iterdir():
        file.write_text("nothing of ours")
    with pytest.raises(BundleError, match=r"base/tokenizer: not a tokenizer that transformers reads"):
        read_text(run, config)
