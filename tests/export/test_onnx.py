"""Exported bundles: parity with torch at sizes that the exporter didn't see, reproducibility, refusals."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file
from tolerances import EXPORT_FP32_ABS
from torch import Tensor, nn

from ddm_rt import graph_files
from ddm_rt.bundle import GRAPHS, Bundle
from ddm_rt.config import RunConfig
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.export.classifier import export_classifier
from ddm_rt.export.run import export_run
from ddm_rt.model.assemble import read_file
from ddm_rt.model.unet import DDM
from ddm_rt.presets import resolve
from ddm_rt.runtime import Codes


def load_model(run: Path) -> DDM:
    config = read_file(RunConfig, run / "config.json")
    codes = Codes.model_validate_json((run / "codes.json").read_bytes())
    model = DDM(config.model, config.model.latent_shape(config.data), codes.shared_of).eval()
    model.load_state_dict(load_file(run / "weights.safetensors"))
    return model


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(path: Path, feeds: dict[str, Tensor]) -> list[np.ndarray]:
    return session(path).run(None, {name: tensor.numpy() for name, tensor in feeds.items()})


@pytest.mark.parametrize(("batch", "height", "width", "tokens"), [(1, 8, 8, 1), (5, 6, 14, 7), (70, 4, 2, 2)])
@torch.inference_mode()
def test_parity_at_any_batch_size_and_token_count(
    tiny_run: Path, tiny_bundle: Bundle, batch: int, height: int, width: int, tokens: int
) -> None:
    model = load_model(tiny_run)
    generator = torch.Generator().manual_seed(batch)
    context = torch.randn((batch, tokens, 16), generator=generator)
    code = torch.arange(batch) % 5 - 1
    scale = torch.linspace(0, 2, batch)
    cond = model.condition(context, code, scale)
    found = run(tiny_bundle.graphs["conditioner"], {"context": context, "code": code, "indicator_scale": scale})
    for (name, want), got in zip(cond.items(), found, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=EXPORT_FP32_ABS, err_msg=name)

    x_t = torch.randn((batch, 4, height, width), generator=generator)
    t = torch.rand(batch, generator=generator) * 999
    want = model(x_t, t, cond)
    (got,) = run(tiny_bundle.graphs["denoiser"], {"x_t": x_t, "t": t, **cond})
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=EXPORT_FP32_ABS)

    (image,) = run(tiny_bundle.graphs["decoder"], {"x0": x_t})
    np.testing.assert_array_equal(image, model.decode(x_t).numpy())


@torch.inference_mode()
def test_parity_without_codes(tiny_run_without_codes: Path, plain_bundle: Bundle) -> None:
    model = load_model(tiny_run_without_codes)
    generator = torch.Generator().manual_seed(0)
    context = torch.randn((3, 2, 16), generator=generator)
    x_t = torch.randn((3, 4, 6, 10), generator=generator)
    t = torch.tensor([0.0, 500.5, 999.0])
    (tokens,) = run(plain_bundle.graphs["conditioner"], {"context": context})
    np.testing.assert_array_equal(tokens, context.numpy())
    (got,) = run(plain_bundle.graphs["denoiser"], {"x_t": x_t, "t": t, "text_tokens": context})
    want = model(x_t, t, {"text_tokens": context})
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=EXPORT_FP32_ABS)
    assert plain_bundle.config.num_codes == 0
    assert [spec.name for spec in plain_bundle.config.cond] == ["text_tokens"]


@torch.inference_mode()
def test_null_code_ignores_the_indicator_bit_for_bit(tiny_bundle: Bundle) -> None:
    generator = torch.Generator().manual_seed(0)
    feeds = {
        "x_t": torch.randn((2, 4, 8, 8), generator=generator),
        "t": torch.tensor([10.0, 900.0]),
        "text_tokens": torch.randn((2, 1, 16), generator=generator),
        "code_scale": torch.zeros(2),
    }
    tokens = [torch.randn((2, 4, 16), generator=generator) for _ in range(2)]
    a, b = (run(tiny_bundle.graphs["denoiser"], {**feeds, "indicator_tokens": t})[0] for t in tokens)
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow(reason="another export")
def test_three_resolution_levels(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    """Sizes that halve twice, so that the upsampling sizes are formulas and not factors."""
    config = resolve("tiny")
    unet = config.model.unet | {
        "block_out_channels": [8, 8, 16],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    }
    config = config.model_copy(update={"model": config.model.model_copy(update={"unet": unet})})
    bundle = export_run(write_run(tmp_path / "run", config, num_codes=2), tmp_path / "bundle")
    assert bundle.config.size_multiple == 8
    rng = np.random.default_rng(0)
    feeds = {
        "x_t": rng.standard_normal((2, 4, 4, 12), np.float32),
        "t": np.ones(2, np.float32),
        "text_tokens": np.zeros((2, 1, 16), np.float32),
        "indicator_tokens": rng.standard_normal((2, 4, 16), np.float32),
        "code_scale": np.ones(2, np.float32),
    }
    assert session(bundle.graphs["denoiser"]).run(None, feeds)[0].shape == (2, 4, 4, 12)


def test_config_of_the_bundle(tiny_bundle: Bundle) -> None:
    config = tiny_bundle.config
    assert config.latent_shape == (4, 8, 8)
    assert config.size_multiple == 2
    assert config.context_shape == ("tokens", 16)
    assert config.prompt_free
    assert (tiny_bundle.codes.num_codes, tiny_bundle.codes.num_top_codes) == (4, 2)
    assert {spec.name: spec.shape for spec in config.cond} == {
        "text_tokens": ("tokens", 16),
        "indicator_tokens": (4, 16),
        "code_scale": (),
    }
    parity = tiny_bundle.index.provenance["parity_max_abs_error"]
    assert parity.keys() == {"conditioner", "denoiser", "decoder"}
    assert max(parity.values()) <= EXPORT_FP32_ABS


def test_graph_dimensions_have_plain_names(tiny_bundle: Bundle) -> None:
    model = onnx.load(tiny_bundle.graphs["denoiser"])
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {
        "x_t": ["batch", 4, "height", "width"],
        "t": ["batch"],
        "text_tokens": ["batch", "tokens", 16],
        "indicator_tokens": ["batch", 4, 16],
        "code_scale": ["batch"],
        "output": ["batch", 4, "height", "width"],
    }


def test_graphs_hold_plain_ops_and_no_word_about_their_origin(tiny_bundle: Bundle) -> None:
    for name in GRAPHS:
        content = (tiny_bundle.path / name).read_bytes()
        for word in (b"pkg.torch", b"stack_trace", b".py", b"site-packages", os.fsencode(Path.home())):
            assert word not in content, f"{name} holds {word!r}"
        model = onnx.load_from_string(content)
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.functions
        onnx.checker.check_model(model, full_check=True)


def test_the_scale_goes_on_the_keys_and_never_on_a_shared_query(tiny_bundle: Bundle) -> None:
    """Two products that share a scaled query crash the TensorRT-RTX builder."""
    nodes = onnx.load(tiny_bundle.graphs["denoiser"]).graph.node
    made_by = {output: node for node in nodes for output in node.output}
    lefts = [node.input[0] for node in nodes if node.op_type == "MatMul"]
    shared = {value for value in lefts if lefts.count(value) > 1}
    queries = [made_by[value] for value in shared & made_by.keys() if made_by[value].op_type == "Transpose"]
    cross_attentions = 3  # one on the way down, two on the way up
    assert len(queries) == cross_attentions
    for query in queries:
        assert made_by[query.input[0]].op_type == "Reshape"


@pytest.mark.slow(reason="another export, in a process that imports everything first")
def test_same_run_gives_same_bundle_id_in_another_process(tiny_run: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from ddm_rt.export.run import export_run;"
        "export_run(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tiny_run), str(tmp_path / "other-name")],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        cwd=tmp_path,
        check=True,
    )
    again = Bundle.load(tmp_path / "other-name")
    assert again.bundle_id == tiny_bundle.bundle_id
    for name in ("runtime.json", "training.json", *GRAPHS):
        assert again.index.files[name] == tiny_bundle.index.files[name]


def test_provenance_of_the_run_goes_along(tiny_run: Path, tmp_path: Path, fake_trace: None) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    (copy / "provenance.json").write_text(json.dumps({"images": 625}))
    assert export_run(copy, tmp_path / "bundle").index.provenance["training"] == {"images": 625}


@pytest.fixture
def fake_trace(tiny_bundle: Bundle, known_graphs: Callable[..., None]) -> None:
    """Tests of what surrounds tracing take the traced graphs of the same weights."""
    known_graphs(tiny_bundle)


def test_progress_names_each_part(tiny_run: Path, tmp_path: Path, fake_trace: None) -> None:
    calls: list[tuple[int, int, str]] = []
    export_run(tiny_run, tmp_path / "bundle", progress=lambda *call: calls.append(call))
    assert calls == [(0, 3, "conditioner"), (1, 3, "denoiser"), (2, 3, "decoder"), (3, 3, "done")]


def test_graph_too_big_for_one_file_keeps_its_tensors_beside_it(
    tiny_run: Path, tiny_bundle: Bundle, tmp_path: Path, fake_trace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_files, "MAX_INLINE_BYTES", 100_000)
    bundle = export_run(tiny_run, tmp_path / "bundle")
    assert "denoiser.onnx.data" in bundle.index.files
    assert bundle.index.files["denoiser.onnx"].bytes < 100_000
    assert bundle.bundle_id != tiny_bundle.bundle_id
    with (bundle.path / "denoiser.onnx.data").open("r+b") as file:
        file.write(b"\1\2\3")
    with pytest.raises(BundleError, match=r"denoiser\.onnx\.data: altered"):
        Bundle.load(bundle.path)


def test_difference_above_the_tolerance_writes_nothing(tiny_run: Path, tmp_path: Path, fake_trace: None) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    weights = load_file(copy / "weights.safetensors")
    weights["unet.conv_out.bias"] += 0.01  # the graph of `fake_trace` doesn't know
    save_file(weights, copy / "weights.safetensors")
    with pytest.raises(DdmError, match=r"denoiser\.onnx: differs from torch by 0\.01.*at most 0\.0001"):
        export_run(copy, tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_disk_full_while_writing_leaves_nothing(
    tiny_run: Path, tmp_path: Path, fake_trace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(graph_files, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export_run(tiny_run, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_occupied_target_is_refused_before_any_work(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    parts: list[str] = []
    with pytest.raises(DdmError, match="not an empty directory"):
        export_run(tiny_run, tmp_path, progress=lambda done, total, name: parts.append(name))
    assert parts == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _drop(weights: dict[str, Tensor]) -> None:
    del weights["unet.conv_in.bias"]


def _add(weights: dict[str, Tensor]) -> None:
    weights["unet.extra"] = torch.zeros(1)


def _reshape(weights: dict[str, Tensor]) -> None:
    weights["unet.conv_in.bias"] = torch.zeros(9)


def _cast(weights: dict[str, Tensor]) -> None:
    weights["unet.conv_in.bias"] = weights["unet.conv_in.bias"].double()


def _nan(weights: dict[str, Tensor]) -> None:
    weights["unet.conv_in.bias"][3] = float("nan")


def _infinity(weights: dict[str, Tensor]) -> None:
    weights["conditioner.code.weight"][0, 0] = float("inf")


def _other_tree(weights: dict[str, Tensor]) -> None:
    weights["conditioner.top_of"] = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, r"tensor unet\.conv_in\.bias is missing"),
        (_add, r"tensor unet\.extra is foreign"),
        (_reshape, r"tensor unet\.conv_in\.bias is torch\.float32 \[9\]; expected torch\.float32 \[16\]"),
        (_cast, r"tensor unet\.conv_in\.bias is torch\.float64 \[16\]"),
        (_nan, r"tensor unet\.conv_in\.bias has non-finite values"),
        (_infinity, r"tensor conditioner\.code\.weight has non-finite values"),
        (_other_tree, r"tensor conditioner\.top_of differs"),
    ],
)
def test_bad_weights_are_named(
    tiny_run: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    weights = load_file(copy / "weights.safetensors")
    change(weights)
    save_file(weights, copy / "weights.safetensors")
    with pytest.raises(BundleError, match=rf"weights\.safetensors: {message}"):
        export_run(copy, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["config.json", "codes.json", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_bad_run_files_are_named(tiny_run: Path, tmp_path: Path, name: str, damage: str) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    if damage == "missing":
        (copy / name).unlink()
    elif damage == "truncated":
        (copy / name).write_bytes((copy / name).read_bytes()[:-20])
    else:
        (copy / name).write_bytes(b"\x00\xffnothing of ours")
    with pytest.raises(DdmError, match=name.replace(".", r"\.")):
        export_run(copy, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        return self.head(features), features


class Encoder(Classifier):
    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(image)[1]


@torch.inference_mode()
def test_classifier(tmp_path: Path) -> None:
    module = Classifier().eval()
    error = export_classifier(module, (1, 9, 12), tmp_path / "judge.onnx", {"classes": '["3", "8"]'})
    assert error <= EXPORT_FP32_ABS
    loaded = session(tmp_path / "judge.onnx")
    assert loaded.get_modelmeta().custom_metadata_map == {"classes": '["3", "8"]'}
    assert [item.name for item in loaded.get_inputs()] == ["image"]
    assert [item.name for item in loaded.get_outputs()] == ["logits", "features"]
    image = torch.rand((7, 1, 9, 12), generator=torch.Generator().manual_seed(0))
    for want, got in zip(module(image), loaded.run(None, {"image": image.numpy()}), strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=EXPORT_FP32_ABS)
    assert b".py" not in (tmp_path / "judge.onnx").read_bytes()


def test_encoder(tmp_path: Path) -> None:
    export_classifier(Encoder().eval(), (1, 8, 8), tmp_path / "encoder.onnx", {}, outputs=("features",))
    assert [item.name for item in session(tmp_path / "encoder.onnx").get_outputs()] == ["features"]


def test_classifier_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "judge.onnx"
    with pytest.raises(DdmError, match=r"judge\.onnx: the module is in training mode"):
        export_classifier(Classifier(), (1, 8, 8), path, {})
    with pytest.raises(DdmError, match=r"the module gives 1 tensors; expected logits, features"):
        export_classifier(Encoder().eval(), (1, 8, 8), path, {})
    broken = Classifier().eval()
    broken.head.bias.data[0] = torch.nan
    with pytest.raises(DdmError, match=r"tensor head\.bias has non-finite values"):
        export_classifier(broken, (1, 8, 8), path, {})
    assert not path.exists()
