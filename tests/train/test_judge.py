"""The judge learns, is a function of its seed, and refuses what it can't be trained on."""

import numpy as np
import pytest
import torch

from ddm_rt.errors import DdmError
from ddm_rt.train import judge


def bars(n: int, size: tuple[int, int], channels: int = 1, seed: int = 0):
    """Two classes: a horizontal or a vertical bar at a random place."""
    rng = np.random.default_rng(seed)
    images = np.full((n, channels, *size), -1, dtype=np.float32)
    labels = np.arange(n, dtype=np.int64) % 2
    for i, label in enumerate(labels):
        at = rng.integers(2, min(size) - 4)
        if label:
            images[i, :, :, at : at + 2] = 1
        else:
            images[i, :, at : at + 2, :] = 1
    return images, labels


def test_learns_held_out_images():
    model = judge.fit(*bars(200, (16, 16)), seed=0, steps=60)
    counts = judge.confusion(model, *bars(100, (16, 16), seed=1))
    assert counts.sum() == 100
    assert np.trace(counts) >= 98


@pytest.mark.parametrize(("size", "channels"), [((32, 32), 1), ((17, 23), 3), ((8, 8), 1)])
def test_shapes(size, channels):
    images, labels = bars(12, size, channels)
    model = judge.fit(images, labels, seed=0, steps=1)
    logits, features = model(torch.from_numpy(images))
    assert (logits.shape, features.shape) == ((12, 2), (12, judge.FEATURE_DIM))
    assert 60_000 <= sum(p.numel() for p in model.parameters()) <= 150_000


def test_same_seed_same_weights_and_global_generator_untouched():
    images, labels = bars(40, (16, 16))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, again, other = (judge.fit(images, labels, seed=seed, steps=5).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_progress_reports_each_step():
    seen = []
    judge.fit(*bars(8, (8, 8)), seed=0, steps=3, progress=lambda done, loss: seen.append((done, loss)))
    assert [done for done, _ in seen] == [1, 2, 3]
    assert all(np.isfinite(loss) for _, loss in seen)


def test_augmentation_keeps_shape_and_background():
    x = torch.full((4, 1, 20, 12), -1.0)
    out = judge.augment(x, torch.Generator().manual_seed(0))
    assert out.shape == x.shape
    # Blank paper stays blank but for contrast (at most a fifth) and noise: no grey from outside the frame.
    assert out.mean() < -0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[0], y), "expected float32"),
        (lambda x, y: (x.astype(np.float64), y), "float64"),
        (lambda x, y: (x[:, :, :4], y), "at least 8"),
        (lambda x, y: (x * 2, y), "outside"),
        (lambda x, y: (x * np.nan, y), "not finite"),
        (lambda x, y: (x, y[:-1]), "labels"),
        (lambda x, y: (x, y - 1), "0 or more"),
        (lambda x, y: (x, y * 2), "images per class"),
        (lambda x, y: (x, y * 0), "images per class"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(DdmError, match=message):
        judge.fit(*change(*bars(8, (16, 16))), seed=0, steps=1)


def test_no_steps():
    with pytest.raises(DdmError, match="steps is 0"):
        judge.fit(*bars(8, (16, 16)), seed=0, steps=0)
