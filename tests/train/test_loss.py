"""The DDM objective against the paper's formula, written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import LOSS_REL
from torch import Tensor

from ddm_rt.train.loss import ddm_loss, dropped, training_target


def tensors(seed: int, batch: int = 5, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, batch, 2, 3, 4, generator=generator)
    return prediction, target, torch.randn(batch, classes, generator=generator)


def by_hand(prediction: Tensor, target: Tensor, logits: Tensor, y: list[int], weight: float) -> float:
    """(1 - α)·mean((ε̂ - ε)²) + α·mean over known samples of -log softmax(logits)[y], number by number."""
    squares = [(p - t) ** 2 for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True)]
    entropies = [
        math.log(sum(math.exp(value) for value in row)) - row[label]
        for row, label in zip(logits.tolist(), y, strict=True)
        if label >= 0
    ]
    entropy = sum(entropies) / len(entropies) if entropies else 0.0
    return (1 - weight) * sum(squares) / len(squares) + weight * entropy


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 1000),
    y=st.lists(st.integers(-1, 2), min_size=5, max_size=5),
    weight=st.floats(0, 1),
)
def test_it_is_the_paper_s_formula_over_the_samples_with_a_code(seed: int, y: list[int], weight: float) -> None:
    prediction, target, logits = tensors(seed)
    loss = ddm_loss(prediction, target, logits, torch.tensor(y), weight)
    assert loss.item() == pytest.approx(by_hand(prediction, target, logits, y, weight), rel=LOSS_REL)


def test_a_dropped_sample_gives_the_head_no_gradient() -> None:
    prediction, target, logits = tensors(0)
    logits.requires_grad_()
    ddm_loss(prediction, target, logits, torch.tensor([0, -1, 2, -1, 1]), 0.05).backward()
    assert logits.grad is not None
    assert (logits.grad[[1, 3]] == 0).all()
    assert (logits.grad[[0, 2, 4]] != 0).any(dim=1).all()


@pytest.mark.parametrize("known", [None, 0.0])
def test_where_no_sample_has_a_code_the_head_adds_nothing(known: float | None) -> None:
    prediction, target, logits = tensors(2)
    loss = ddm_loss(prediction, target, logits, torch.full((5,), -1), 0.05, known)
    assert loss.item() == pytest.approx(by_hand(prediction, target, logits, [-1] * 5, 0.05), rel=LOSS_REL)


def test_without_a_head_it_is_the_mean_square_alone() -> None:
    prediction, target, logits = tensors(1)
    expected = torch.nn.functional.mse_loss(prediction, target)
    assert torch.equal(ddm_loss(prediction, target, None, torch.zeros(5, dtype=torch.int64), 0.05), expected)
    assert torch.equal(ddm_loss(prediction, target, logits, None, 0.05), expected)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_target_and_x_t_give_x0_and_noise_back(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 2, 5, 3, generator=generator, dtype=torch.float64)
    levels = torch.tensor([0.999, 0.7, 0.2, 0.01], dtype=torch.float64)
    x_t, target = training_target(kind, x0, noise, levels)
    signal, sigma = levels.sqrt().view(-1, 1, 1, 1), (1 - levels).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(x_t, signal * x0 + sigma * noise)
    recovered = {
        "epsilon": (x_t - sigma * target) / signal,
        "sample": target,
        "v_prediction": signal * x_t - sigma * target,
    }[kind]
    torch.testing.assert_close(recovered, x0)


def test_shares_of_dropped_samples() -> None:
    count, both, code, text = 200_000, 0.08, 0.05, 0.05
    no_code, no_text = dropped(count, both, code, text, torch.Generator().manual_seed(0))
    shares = {
        "both": ((no_code & no_text).double().mean().item(), both),
        "code alone": ((no_code & ~no_text).double().mean().item(), code),
        "text alone": ((~no_code & no_text).double().mean().item(), text),
        "neither": ((~no_code & ~no_text).double().mean().item(), 1 - both - code - text),
    }
    for name, (share, expected) in shares.items():
        spread = 5 * math.sqrt(expected * (1 - expected) / count)
        assert abs(share - expected) < spread, name


@pytest.mark.parametrize(("probabilities", "lost"), [((0, 0, 0), (0, 0)), ((1, 0, 0), (1, 1)), ((0, 0, 1), (0, 1))])
def test_dropping_never_or_always(probabilities: tuple[float, float, float], lost: tuple[int, int]) -> None:
    found = dropped(1000, *probabilities, torch.Generator().manual_seed(0))
    assert tuple(int(part.double().mean()) for part in found) == lost
