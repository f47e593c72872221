"""Steering: what the operator does to a response, and that a model which isn't steered is the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ddm_rt.config import ModelConfig, SteeredLayer
from ddm_rt.model.checkpoint.folder import read_checkpoint
from ddm_rt.model.latent import LatentDDM
from ddm_rt.model.steering import PREDICTION, SteeringConditioner, attention_layers, change, packed_width
from ddm_rt.model.unet import DDM
from ddm_rt.presets import PRESETS

SHAPE = (4, 8, 8)  # of the tiny preset's latents
ORTHONORMAL = 1e-5


def basis(rank: int, width: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, rank)).Q.T


def pixel_model(steered_from: float = 0.0, rank: int = 1) -> DDM:
    place = SteeredLayer(name=PREDICTION, width=4 * 8 * 8, rank=rank)
    torch.manual_seed(0)
    config = PRESETS["tiny"].model.model_copy(update={"steering": (place,), "steered_from": steered_from})
    return fill(DDM(config, SHAPE, ((0,), (1,))))


def fill(model: Any) -> Any:
    """Random vectors within the span of random directions."""
    places = model.steering.layers
    bases = [basis(place.rank, place.width) for place in places]
    vectors = [torch.randn(2, place.rank) @ rows for place, rows in zip(places, bases, strict=True)]
    with torch.no_grad():
        model.conditioner.basis.weight.copy_(torch.cat([rows.flatten() for rows in bases])[None])
        model.conditioner.vector.weight.copy_(torch.cat(vectors, 1))
    return model.eval()


def call(model: Any, x_t: torch.Tensor, code: list[int], scale: float = 1.0, t: float = 500.0) -> torch.Tensor:
    count = len(code)
    context = torch.randn(count, 3, model.context_dim, generator=torch.Generator().manual_seed(1))
    cond = model.condition(context, torch.tensor(code), torch.full((count,), scale))
    with torch.no_grad():
        found: torch.Tensor = model(x_t, torch.full((count,), t), cond)
    return found


@pytest.mark.parametrize("rank", [1, 3])
def test_nothing_of_the_directions_is_left_and_the_codes_are_added(rank: int) -> None:
    torch.manual_seed(0)
    x, rows = torch.randn(2, 5, 16), basis(rank, 16)
    v = torch.randn(2, rank) @ rows
    every = rows.expand(2, -1, -1)
    found = x + change(x, v, every, torch.ones(2))
    torch.testing.assert_close((found - v[:, None]) @ rows.T, torch.zeros(2, 5, rank), atol=ORTHONORMAL, rtol=0)
    rest = torch.eye(16) - rows.T @ rows
    torch.testing.assert_close(found @ rest, x @ rest, atol=ORTHONORMAL, rtol=0)
    half = x + change(x, v, every, torch.full((2,), 0.5))
    torch.testing.assert_close(half, (x + found) / 2, atol=ORTHONORMAL, rtol=0)


def test_the_null_code_and_a_scale_of_zero_are_the_plain_model_to_the_bit() -> None:
    model, x_t = pixel_model(), torch.randn(2, *SHAPE)
    plain = DDM(PRESETS["tiny"].model, SHAPE).eval()
    plain.unet.load_state_dict(model.unet.state_dict())
    wanted = call(plain, x_t, [-1, -1])
    assert torch.equal(call(model, x_t, [-1, -1]), wanted)
    assert torch.equal(call(model, x_t, [0, 1], scale=0.0), wanted)
    assert not torch.equal(call(model, x_t, [0, 1])[0], wanted[0])


def test_a_prediction_has_its_code_s_place_along_the_directions() -> None:
    model, x_t = pixel_model(rank=2), torch.randn(3, *SHAPE)
    rows = model.conditioner.basis.weight.detach().view(2, -1)
    found = call(model, x_t, [0, 1, -1]).flatten(1) @ rows.T
    wanted = model.conditioner.vector.weight.detach() @ rows.T
    torch.testing.assert_close(found[:2], wanted, atol=1e-4, rtol=0)
    assert float((found[2] - wanted[0]).abs().max()) > 0.1


def test_timesteps_below_the_lowest_are_left_alone() -> None:
    model, x_t = pixel_model(steered_from=300.0), torch.randn(1, *SHAPE)
    assert torch.equal(call(model, x_t, [0], t=299.0), call(model, x_t, [-1], t=299.0))
    assert not torch.equal(call(model, x_t, [0], t=300.0), call(model, x_t, [-1], t=300.0))


def test_another_size_is_steered_as_it_looks_at_the_directions_size() -> None:
    model = pixel_model()
    x_t = torch.randn(1, SHAPE[0], 12, 16)
    assert call(model, x_t, [0]).shape == x_t.shape
    assert torch.equal(call(model, x_t, [-1]), call(model, x_t, [0], scale=0.0))
    assert not torch.equal(call(model, x_t, [-1]), call(model, x_t, [0]))


@pytest.mark.parametrize("ready", [False, True])
def test_cross_attention_of_a_checkpoint_is_steered_and_the_null_code_is_the_checkpoint(
    checkpoints: Mapping[str, Path], ready: bool
) -> None:
    config: ModelConfig = read_checkpoint(checkpoints["sd15"]).model
    torch.manual_seed(0)
    plain = LatentDDM(config).eval()
    places = tuple(SteeredLayer(name=name, width=width, rank=2) for name, width in attention_layers(plain.unet).items())
    model = fill(LatentDDM(config.model_copy(update={"steering": places}), ((0,), (1,))))
    model.load_state_dict(plain.state_dict(), strict=False)
    assert model.cond_names == ("text_tokens", "steering", "code_scale")
    specs = {spec.name: spec.shape for spec in model.cond_specs((), ready=ready)}
    assert specs["steering"] == (packed_width(places),)
    responses: dict[str, torch.Tensor] = {}
    name, width = places[0].name, places[0].width
    layer = dict(model.unet.named_modules())[name]
    layer.register_forward_hook(lambda _module, _given, out: responses.update({name: out}))  # after ours
    x_t = torch.randn(2, 4, 8, 8)
    context = torch.randn(2, 3, model.context_dim)
    cond = model.condition(context, torch.tensor([1, -1]), torch.ones(2))
    t = torch.full((2,), 500.0)
    with torch.no_grad():
        wanted = plain(x_t, t, {"text_tokens": context})
        if ready:
            cond = model.ready(cond)
            model.take_ready()
        found = model(x_t, t, cond)
    if not ready:
        assert torch.equal(found[1], wanted[1])
    torch.testing.assert_close(found[1], wanted[1], atol=1e-5, rtol=0)
    assert float((found[0] - wanted[0]).abs().max()) > 1e-3
    first = model.conditioner.basis.weight.detach()[0, : 2 * width].view(2, width)
    along = responses[name][0] @ first.T
    torch.testing.assert_close(along, (model.conditioner.vector.weight.detach()[1, :width] @ first.T).expand_as(along))


def test_a_code_s_array_holds_its_vectors_and_then_the_directions() -> None:
    places = (SteeredLayer(name="a", width=3, rank=1), SteeredLayer(name="b", width=2, rank=2))
    conditioner = SteeringConditioner(2, places)
    with torch.no_grad():
        conditioner.basis.weight.copy_(torch.arange(7.0)[None])
    context = torch.zeros(2, 1, 4)
    text, packed, scale = conditioner(context, torch.tensor([1, -1]), torch.tensor([0.5, 0.5]))
    assert text is context
    assert packed.shape == (2, packed_width(places))
    assert torch.equal(packed[0, :5], conditioner.vector.weight[1])
    assert packed[0, 5:].tolist() == list(range(7))
    assert scale.tolist() == [0.5, 0.0]
