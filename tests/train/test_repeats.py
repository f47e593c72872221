"""What keeps images of rare codes from being learnt by heart: a cap on repeats, and images that are moved."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ddm_rt.config import RunConfig, parse
from ddm_rt.errors import DdmError
from ddm_rt.presets import resolve
from ddm_rt.train.loop import Trainer, shifted
from ddm_rt.train.pixels import PixelSubject
from ddm_rt.train.trainee import Classes, Material

Make = Callable[..., RunConfig]


def trainer_of(config: RunConfig, sizes: tuple[int, ...]) -> Trainer:
    """Of top codes with so many images."""
    y = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
    classes = Classes(y, len(sizes), tuple(range(len(sizes))))
    latents = torch.zeros(len(y), *config.model.latent_shape(config.data))
    return Trainer(config, Material(latents, classes, lambda: PixelSubject(config, classes.shared_of)))


@pytest.mark.parametrize(
    ("sizes", "most", "shares"),
    [
        ((80, 20), 1.0, (0.8, 0.2)),
        ((80, 20), 1.5, (0.7, 0.3)),
        ((80, 20), 2.5, (0.5, 0.5)),
        ((60, 30, 10), 1.5, (0.425, 0.425, 0.15)),
        ((88, 8, 4), 2.0, (0.76, 0.16, 0.08)),
    ],
)
def test_no_image_is_drawn_more_often_than_the_cap_and_shares_are_as_even_as_that_allows(
    tiny: Make, sizes: tuple[int, ...], most: float, shares: tuple[float, ...]
) -> None:
    trainer = trainer_of(tiny({"train.max_repeats": most, "train.batch_size": 40}), sizes)
    y = trainer.material.classes.y
    assert y is not None
    drawn = [y[trainer.draw(torch.Generator().manual_seed(step))] for step in range(200)]
    found = torch.bincount(torch.cat(drawn), minlength=len(sizes)) / (200 * 40)
    assert found.numpy() == pytest.approx(shares, abs=0.005)
    for one in drawn:  # in every minibatch too
        assert (torch.bincount(one, minlength=len(sizes)) - 40 * torch.tensor(shares)).abs().max() < 3


def test_a_cap_that_equal_shares_keep_changes_no_draw(tiny: Make) -> None:
    for sizes, most in (((80, 20), 2.5), ((50, 50), 1.0)):
        plain, capped = (trainer_of(tiny({"train.max_repeats": cap}), sizes) for cap in (None, most))
        for step in range(3):
            a, b = (one.draw(torch.Generator().manual_seed(step)) for one in (plain, capped))
            assert torch.equal(a, b)


def test_images_are_moved_by_whole_pixels_and_their_edges_repeat() -> None:
    images = torch.arange(2 * 3 * 64.0).reshape(2, 3, 8, 8)
    moved = F.pixel_shuffle(shifted(F.pixel_unshuffle(images, 4), 2, 4, torch.Generator().manual_seed(3)), 4)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    for i in range(2):
        places = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(moved[i], padded[i, :, y : y + 8, x : x + 8])
        ]
        assert len(places) == 1
    many = shifted(torch.arange(64.0).reshape(1, 64, 1, 1).expand(500, -1, -1, -1), 1, 8, torch.Generator())
    assert len(torch.unique(many, dim=0)) == 9, "each of the moves"


def test_a_step_learns_from_moved_images_and_stays_a_function_of_seed_and_step(tiny: Make) -> None:
    config = tiny({"train.shift": 1})
    trainers = [trainer_of(config, (20, 10)) for _ in range(2)]
    for trainer in trainers:
        trainer.material.latents.copy_(
            torch.randn(30, *trainer.material.latents.shape[1:], generator=torch.Generator())
        )
    first, second = (trainer.batch() for trainer in trainers)
    assert torch.equal(first.x_t, second.x_t)
    plain = trainer_of(tiny(), (20, 10))
    plain.material.latents.copy_(trainers[0].material.latents)
    assert torch.equal(plain.batch().image, first.image), "the same images"
    assert not torch.equal(plain.batch().x_t, first.x_t)


def test_runs_without_them_have_the_configuration_that_they_had(tiny: Make) -> None:
    assert not {"max_repeats", "shift"} & json.loads(tiny().model_dump_json())["train"].keys()
    config = tiny({"train.max_repeats": 2.0, "train.shift": 1})
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_bad_values_are_named() -> None:
    for fields, said in (
        ({"train.max_repeats": 0.5}, "train.max_repeats"),
        ({"train.shift": -1}, "train.shift"),
    ):
        with pytest.raises(DdmError, match=said):
            resolve("tiny", fields)


def test_images_of_a_checkpoint_are_not_moved() -> None:
    tree = resolve("tiny", {"train.shift": 1, "data.channels": 3}).model_dump()
    tree["model"] |= {"family": "sd", "vae": {"channels": 3}, "text_encoders": [{"layers": 1}]}
    tree["model"]["unet"]["in_channels"] = 4
    tree["base"] = {"path": "sd15", "sha256": "0" * 64}
    with pytest.raises(DdmError, match=r"train\.shift moves pixels; a checkpoint's images are encoded before training"):
        parse(RunConfig, tree, "config.json")
    tree["train"]["shift"] = 0
    parse(RunConfig, tree, "config.json")
