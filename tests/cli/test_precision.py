"""`ddm-rt export --precision`: from a run, from a bundle, with its calibration set; sampling from what it makes."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from known_graphs import trace_knowing

from ddm_rt.bundle import Bundle
from ddm_rt.config import NULL_CODE, Precision
from ddm_rt.export import graph
from ddm_rt.export.precision import convert as export_precision
from ddm_rt.workflows.export import LATENTS, PIXELS, calibrate


def test_calibration_is_balanced_and_deterministic(tiny_bundle: Bundle) -> None:
    first, again = (calibrate(tiny_bundle, 8) for _ in range(2))
    assert first.origin == again.origin
    for a, b in zip(first.calls, again.calls, strict=True):
        assert a.keys() == {"x_t", "t", "text_tokens", "indicator_tokens", "code_scale"}
        assert all((a[name] == b[name]).all() for name in a)
    counts = {int(code): count for code, count in first.origin["images_per_code"].items()}
    assert counts.pop(NULL_CODE) == 2
    per_top = [sum(count for code, count in counts.items() if code // 2 == top) for top in range(2)]
    assert per_top == [4, 4]
    steps = tiny_bundle.config.sampling.num_steps
    assert first.origin["steps"] == list(range(steps))  # there are fewer than are kept
    assert steps < PIXELS.kept
    # Both branches of guidance: null codes have an indicator scale of 0.
    scales = np.concatenate([call["code_scale"] for call in first.calls])
    assert len(scales) == first.origin["rows"] == steps * (8 * 2 + 2)
    assert (scales == 0).sum() == steps * (8 + 2)


def test_a_model_of_latents_takes_few_passes(latent_bundles: Mapping[str, Bundle]) -> None:
    found = calibrate(latent_bundles["sd15"])
    assert sum(found.origin["images_per_code"].values()) == LATENTS.images + 1
    assert found.origin["steps"] == list(range(LATENTS.kept))
    assert found.origin["num_steps"] == LATENTS.steps
    assert found.origin["threads"] == found.threads


def test_noise_that_tries_out_batch_sizes_is_not_recorded(tiny_bundle: Bundle) -> None:
    timesteps = {float(t) for call in calibrate(tiny_bundle, 2).calls for t in call["t"]}
    assert len(timesteps) == tiny_bundle.config.sampling.num_steps
    assert all(len(set(call["t"])) == 1 for call in calibrate(tiny_bundle, 2).calls)


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_a_bundle_becomes_one_that_samples(
    ddm_rt, bundle: Bundle, sampled: tuple[Path, object], tmp_path: Path, precision: str
) -> None:
    images = () if precision == "fp16" else ("--calibration-images", 4)
    line = ("--precision", precision, *images)
    done = ddm_rt("export", bundle.path, *line, "--out", tmp_path / "made")
    assert done.code == 0, done.err
    assert f"precision: {precision}" in done.out
    made = Bundle.load(tmp_path / "made")
    assert made.index.provenance["precision"]["source_bundle_id"] == bundle.bundle_id
    assert made.bundle_id in done.out
    assert ddm_rt("sample", made.path, "-n", 12, "--seed", 5, "--out", tmp_path / "images").code == 0
    manifest, plain = (json.loads((place / "manifest.json").read_text()) for place in (tmp_path / "images", sampled[0]))
    assert manifest["precision"] == precision
    assert plain["precision"] == "fp32"
    assert [image["code"] for image in manifest["images"]] == [image["code"] for image in plain["images"]]
    assert [image["seed"] for image in manifest["images"]] == [image["seed"] for image in plain["images"]]
    line = ("--from", tmp_path / "images" / "manifest.json", "--index", 7, "--out", tmp_path / "again")
    assert ddm_rt("sample", made.path, *line).code == 0
    (name,) = (path.name for path in (tmp_path / "again").glob("0*.png"))
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "images" / name).read_bytes()


def test_bf16_is_made_and_not_run(ddm_rt, bundle: Bundle, tmp_path: Path) -> None:
    assert ddm_rt("export", bundle.path, "--precision", "bf16", "--out", tmp_path / "made").code == 0
    said = ddm_rt("sample", tmp_path / "made", "--backend", "onnxruntime", "--out", tmp_path / "images").refusal()
    assert "ONNX Runtime has no bf16 operators on the CPU, and this bundle is bf16" in said
    assert not (tmp_path / "images").exists()


def test_a_run_becomes_a_bundle_of_that_precision(
    ddm_rt, tiny_run: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing, which takes seconds, is replaced by the graphs of the same run."""
    monkeypatch.setattr(graph, "trace", trace_knowing(bundle))
    assert ddm_rt("export", tiny_run, "--precision", "fp16", "--out", tmp_path / "made").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    made = Bundle.load(tmp_path / "made")
    assert made.config.precision is Precision.FP16
    assert made.index.provenance["precision"]["source_bundle_id"] == bundle.bundle_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "is a bundle already; give a run, or the --precision to convert it to"),
        (("--precision", "fp16", "--plugin"), "need the run that it was made from"),
        (
            ("--precision", "fp16", "--calibration-images", 4),
            "--calibration-images: fp16 isn't calibrated; int8 and fp8",
        ),
    ],
)
def test_options_that_do_not_go_together(ddm_rt, bundle: Bundle, tmp_path: Path, options, message: str) -> None:
    assert message in ddm_rt("export", bundle.path, *options, "--out", tmp_path / "made").refusal()
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_is_none(ddm_rt, bundle: Bundle, tmp_path: Path) -> None:
    said = ddm_rt("export", bundle.path, "--precision", "fp12", "--out", tmp_path / "made")
    assert said.code == 2
    assert "fp12" in said.err
    assert "bf16" in said.err


def test_a_conversion_that_fails_leaves_nothing(
    ddm_rt, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> float:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_precision, "_difference", broken)
    assert "No space left" in ddm_rt("export", bundle.path, "--precision", "fp16", "--out", tmp_path / "m").refusal()
    assert list(tmp_path.iterdir()) == []
