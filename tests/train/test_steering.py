"""`train.steering`: directions from responses, and the run that a plain one becomes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import drawings
from safetensors.torch import load_file

from ddm_rt import data
from ddm_rt.config import RunConfig, SteeringSite
from ddm_rt.errors import DdmError
from ddm_rt.files import sha256
from ddm_rt.model.assemble import assemble, read_file
from ddm_rt.model.steering import PREDICTION
from ddm_rt.runtime import Codes
from ddm_rt.train.steering.directions import directions, orthonormal
from ddm_rt.train.steering.run import STRENGTH, steer

CLOSE = {"atol": 1e-5, "rtol": 0.0}


def of_kinds(shared: tuple[tuple[int, ...], ...], counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Responses [N,6] around a mean for each code, and the codes."""
    torch.manual_seed(0)
    code = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return torch.randn(len(shared), 6)[code] + 0.1 * torch.randn(len(code), 6), code


def test_at_strength_one_a_code_is_where_its_images_are_along_the_directions() -> None:
    shared = ((0,), (1,), (2,))
    responses, code = of_kinds(shared, [5, 3, 2])
    basis, vectors = directions(responses, code, shared, 1.0)
    means = torch.stack([responses[code == k].mean(0) for k in range(3)])
    assert basis.shape == (2, 6), "three deviations from their mean span two directions"
    torch.testing.assert_close(vectors, means @ basis.T @ basis, **CLOSE)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2), **CLOSE)


def test_two_codes_have_one_direction_and_strength_moves_them_along_it() -> None:
    shared = ((0,), (1,))
    responses, code = of_kinds(shared, [8, 2])
    weak, strong = (directions(responses, code, shared, strength) for strength in (1.0, 3.0))
    assert weak.basis.shape == (1, 6)
    mean = weak.vectors.mean(0)
    torch.testing.assert_close(strong.vectors - mean, 3 * (weak.vectors - mean), **CLOSE)
    along = weak.vectors @ weak.basis.T
    torch.testing.assert_close(along[:, None] * weak.basis, weak.vectors[:, None], **CLOSE)


def test_codes_of_a_top_code_share_it_and_cells_add_their_values() -> None:
    responses, code = of_kinds(((0,), (0,), (1,)), [4, 4, 4])
    _, vectors = directions(responses, code, ((0,), (0,), (1,)), 2.0)
    assert torch.equal(vectors[0], vectors[1])
    shared = ((0, 2), (0, 3), (1, 2), (1, 3))
    responses, code = of_kinds(shared, [4, 2, 3, 1])
    basis, vectors = directions(responses, code, shared, 1.0)
    assert len(basis) == 2
    torch.testing.assert_close(vectors[0] + vectors[3], vectors[1] + vectors[2], **CLOSE)


def test_a_direction_of_nothing_is_left_out() -> None:
    rows = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1e-9], [1.0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(orthonormal(rows), torch.eye(3, dtype=torch.float64)[:2])
    assert orthonormal(torch.zeros(2, 3)).shape == (0, 3)


def test_a_steered_run_has_the_weights_the_codes_and_what_it_was(plain_x0_run: Path, steered_run: Path) -> None:
    config = read_file(RunConfig, steered_run / "config.json")
    codes = read_file(Codes, steered_run / "codes.json")
    assert [leaf.size for leaf in codes.leaves] == [30, 10]
    assert config.steering is not None
    assert config.steering.source == sha256(plain_x0_run / "weights.safetensors")
    assert (config.steering.site, config.steering.strength) == (SteeringSite.PREDICTION, STRENGTH["prediction"])
    assert [(place.name, place.rank) for place in config.model.steering] == [(PREDICTION, 1)]
    assert config.sampling.indicator_guidance_scale == 1.0, "one branch"
    before, after = (load_file(run / "weights.safetensors") for run in (plain_x0_run, steered_run))
    assert {name for name in after if name not in before} == {"conditioner.basis.weight", "conditioner.vector.weight"}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    found = json.loads((steered_run / "provenance.json").read_bytes())
    assert found["steering"]["source"] == config.steering.source
    assert found["source"]["name"] == "plain_x0"


def test_directions_of_a_prediction_are_those_of_the_images(plain_x0_run: Path, steered_run: Path) -> None:
    config = read_file(RunConfig, steered_run / "config.json")
    model = assemble(steered_run, config, read_file(Codes, steered_run / "codes.json"))
    latents = model.encode(torch.from_numpy(data.load(config.data).latent_input())).flatten(1)
    across = torch.tensor([kind == "across" for kind in drawings(40)[1]])
    apart = latents[across].mean(0) - latents[~across].mean(0)
    basis = model.conditioner.basis.weight[0]
    assert float((apart @ basis).abs() / apart.norm()) == pytest.approx(1, abs=1e-5)


def test_the_same_again_gives_the_same_bytes(plain_x0_run: Path, steered_run: Path, tmp_path: Path) -> None:
    source = read_file(RunConfig, steered_run / "config.json").codes.source
    again = steer(plain_x0_run, tmp_path / "again", {"codes.source": str(source)})
    for name in ("config.json", "codes.json", "weights.safetensors"):
        assert (again / name).read_bytes() == (steered_run / name).read_bytes()


@pytest.fixture(scope="module")
def sd(checkpoints: Mapping[str, Path]) -> Path:
    return checkpoints["sd15"]


def test_a_checkpoint_is_steered_at_its_cross_attention(sd: Path, captioned: Path, tmp_path: Path) -> None:
    codes = tmp_path / "codes.json"
    codes.write_text(json.dumps({"code": [i % 2 for i in range(24)]}))
    fields = {"data.source": str(captioned), "codes.source": str(codes)}
    run = steer(sd, tmp_path / "run", fields, images=4)
    config = read_file(RunConfig, run / "config.json")
    assert config.steering is not None
    assert config.base is not None
    assert config.steering.source == config.base.sha256
    assert (config.steering.images, len(config.steering.timesteps)) == (8, 8)
    assert all(place.name.endswith("attn2") for place in config.model.steering)
    assert not (run / "cache").exists()
    model = assemble(run, config, read_file(Codes, run / "codes.json"))
    assert model.conditioner is not None
    assert torch.isfinite(model.conditioner.vector.weight).all()


def test_prompts_are_codes_that_the_model_draws_itself(sd: Path, tmp_path: Path) -> None:
    contrast = ("a bar", "a white bar on black")
    run = steer(sd, tmp_path / "run", {"sampling.num_steps": 2}, contrast=contrast, images=2)
    codes = read_file(Codes, run / "codes.json")
    config = read_file(RunConfig, run / "config.json")
    assert codes.rule["prompts"] == list(contrast)
    assert [leaf.size for leaf in codes.leaves] == [2, 2]
    assert config.steering is not None
    assert config.steering.contrast == contrast
    assemble(run, config, codes)


def test_bad_sources_are_named(plain_x0_run: Path, steered_run: Path, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DdmError, match="has codes already"):
        steer(tiny_run, out)
    with pytest.raises(DdmError, match="has codes already"):
        steer(steered_run, out)
    with pytest.raises(DdmError, match="takes no text, so its cross-attention gives the same"):
        steer(plain_x0_run, out, site=SteeringSite.ATTENTION)
    with pytest.raises(DdmError, match="--contrast needs a model that does"):
        steer(plain_x0_run, out, contrast=("a", "b"))
    with pytest.raises(DdmError, match="expected a finished run, or a checkpoint folder"):
        steer(tmp_path / "nothing", out)
    assert not out.exists()


def test_a_model_that_predicts_noise_has_no_prediction_to_steer(tiny_run_without_codes: Path, tmp_path: Path) -> None:
    with pytest.raises(DdmError, match="predicts epsilon; the site prediction needs"):
        steer(tiny_run_without_codes, tmp_path / "out")


def test_codes_that_share_a_top_code_leave_nothing_to_steer_by(plain_x0_run: Path, tmp_path: Path) -> None:
    images = len(data.load(read_file(RunConfig, plain_x0_run / "config.json").data).images)
    codes = tmp_path / "codes.json"
    codes.write_text(json.dumps({"code": [i % 2 for i in range(images)], "top_code": [0, 0]}))
    with pytest.raises(DdmError, match="nothing sets its codes apart"):
        steer(plain_x0_run, tmp_path / "out", {"codes.source": str(codes)})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strength": float("nan")}, "--strength is nan; expected a number from 0 to 1e\\+06"),
        ({"steered_from": float("nan")}, "--from is nan; expected a timestep from 0 to 999"),
        ({"steered_from": 1000.0}, "--from is 1000.0; expected a timestep from 0 to 999"),
        ({"strength": 1e39}, "--strength is 1e\\+39; expected a number from 0"),
        (
            {"fields": {"train.indicator": "none"}},
            "train.indicator: belongs to the finished model",
        ),
        (
            {"fields": {"schedule.prediction_type": "epsilon"}},
            "schedule.prediction_type: belongs to",
        ),
    ],
)
def test_bad_options_are_named_before_anything_is_measured(
    plain_x0_run: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DdmError, match=said):
        steer(plain_x0_run, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
