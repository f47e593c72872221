"""Each rival on a tiny model: the property that makes it what it is."""

from typing import Any

import numpy as np
import pytest
import torch
from rivals import (
    apg,
    cads,
    distribution,
    equisteer,
    fairimagen,
    hspace,
    interval,
    named,
    probe,
    regularised,
    sampling,
    selfdebias,
    weak,
)
from rivals.table import RIVALS, refusal
from tolerances import UNIT_ABS
from torch import Tensor

from ddm_rt.config import PredictionType, SamplerName, ScheduleConfig
from ddm_rt.model.unet import DDM
from ddm_rt.presets import PRESETS
from ddm_rt.sample.loop.noise import Stream, normal
from ddm_rt.schedule import Schedule, step_table

STEPS, TOKENS, WIDTH = 4, 5, 16


@pytest.fixture(scope="module")
def model() -> sampling.Model:
    """Random weights; latents of 4x8x8, 4 steps, no clip."""
    config = PRESETS["tiny"]
    torch.manual_seed(0)
    ddm = DDM(config.model, config.model.latent_shape(config.data)).eval().requires_grad_(False)
    schedule = Schedule.from_config(ScheduleConfig(prediction_type=PredictionType.SAMPLE))
    table = step_table(schedule, SamplerName.DDIM, STEPS)
    shape = config.model.latent_shape(config.data)
    return sampling.Model(sampling.Denoiser(ddm.unet), schedule, table, shape, lambda x0: x0.numpy())


def tokens(seed: int, count: int = 1) -> Tensor:
    return torch.randn(count, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def step(model: sampling.Model, index: int, count: int = 6) -> sampling.Step:
    seeds = np.arange(count, dtype=np.uint64)
    x = torch.from_numpy(normal(seeds, 0, Stream.INITIAL, model.shape))
    return sampling.Step(index, STEPS, float(model.table.t[index]), *model.levels(index), x, np.arange(count), seeds)


def made(model: sampling.Model, output: sampling.Output, count: int = 6) -> Tensor:
    return model.latents(output, np.arange(count, dtype=np.uint64), np.arange(count))


def calls(model: sampling.Model, output: sampling.Output, count: int = 6) -> tuple[float, float]:
    denoiser = model.denoiser
    denoiser.forward = denoiser.backward = 0
    made(model, output, count)
    return denoiser.forward / count, denoiser.backward / count


def test_plain_sampling_calls_once_a_step_and_guidance_twice(model: sampling.Model) -> None:
    assert calls(model, sampling.plain(tokens(0))) == (STEPS, 0)
    assert calls(model, sampling.guided(tokens(0), tokens(1), 1.5)) == (2 * STEPS, 0)


def test_guidance_of_one_is_the_condition_alone(model: sampling.Model) -> None:
    plain, guided = (
        made(model, output) for output in (sampling.plain(tokens(0)), sampling.guided(tokens(0), tokens(1), 1))
    )
    torch.testing.assert_close(guided, plain, atol=UNIT_ABS, rtol=0)


def test_cads_starts_from_noise_and_ends_with_the_condition() -> None:
    assert [cads.annealing(t) for t in (1.0, 0.9, 0.75, 0.6, 0.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    context, noise = tokens(0, 2), tokens(1, 2)
    torch.testing.assert_close(cads.annealed(context, 1, noise), context, atol=UNIT_ABS, rtol=0)
    noisy = cads.annealed(context, 0, noise)
    for k in range(2):
        assert torch.corrcoef(torch.stack([noisy[k].flatten(), noise[k].flatten()]))[0, 1] > 1 - 1e-5
        torch.testing.assert_close(noisy[k].std(), context[k].std())
        torch.testing.assert_close(noisy[k].mean(), context[k].mean())


def test_cads_without_noise_is_guidance(model: sampling.Model) -> None:
    annealed, guided = cads.make(tokens(0), tokens(1), 1.5), sampling.guided(tokens(0), tokens(1), 1.5)
    first, last = step(model, 0), step(model, STEPS - 1)
    assert torch.equal(annealed(model.denoiser, last), guided(model.denoiser, last))
    assert not torch.allclose(annealed(model.denoiser, first), guided(model.denoiser, first))


def test_interval_has_one_branch_outside(model: sampling.Model) -> None:
    inside = sum(interval.inside(step(model, index)) for index in range(STEPS))
    assert 0 < inside < STEPS
    assert calls(model, interval.make(tokens(0), tokens(1), 1.5)) == (STEPS + inside, 0)


def test_apg_leaves_out_what_is_parallel_and_keeps_the_norm_down() -> None:
    apart, wanted = (torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(k)) * 5 for k in (0, 1))
    change = apg.projected(apart, wanted, 1.0) - apart
    torch.testing.assert_close((change * wanted).sum((1, 2, 3)) / wanted.square().sum((1, 2, 3)), torch.zeros(3))
    assert (change.flatten(1).norm(dim=1) <= apg.NORM * (1 + 1e-5)).all()
    small = apart + 1e-2 * wanted
    torch.testing.assert_close(apg.projected(apart, small, 1.5, eta=1.0), apart + 1.5 * (small - apart))


def heads(model: sampling.Model, classes: int = 2) -> hspace.Heads:
    """Of classes that a shift of the latents tells apart."""
    y = torch.arange(40) % classes
    latents = torch.randn(40, *model.shape, generator=torch.Generator().manual_seed(0)) * 0.1 + y.view(-1, 1, 1, 1)
    return hspace.fit(hspace.record(model, latents, tokens(0), 1, 0), y)


def test_heads_tell_classes_that_can_be_told(model: sampling.Model) -> None:
    y = torch.arange(30) % 2
    latents = torch.randn(30, *model.shape, generator=torch.Generator().manual_seed(1)) * 0.1 + y.view(-1, 1, 1, 1)
    logits = heads(model).every(hspace.record(model, latents, tokens(0), 1, 1))
    assert (logits[-1].argmax(1) == y).float().mean() > 0.9


def test_calibration_lowers_the_calibration_error_of_boasting_heads() -> None:
    generator = torch.Generator().manual_seed(0)
    h, y = torch.randn(1, 400, 8, generator=generator), torch.randint(2, (400,), generator=generator)
    boasting = hspace.Heads(torch.randn(1, 8, 2, generator=generator) * 3, torch.zeros(1, 1, 2))
    calibrated = hspace.calibrate(boasting, h, y)
    before, after = (hspace.expected_error(one.every(h), y.expand(1, -1)) for one in (boasting, calibrated))
    assert after < before


def test_distribution_guidance_lowers_its_distance(model: sampling.Model) -> None:
    found = heads(model)
    h = torch.randn(20, found.weight.shape[1], 1, 1, generator=torch.Generator().manual_seed(0)) + 1
    before = distribution.distance(found(0, h))
    after = distribution.distance(found(0, distribution.moved(h, found, 0, 10.0)))
    assert 0 <= after < before
    assert calls(model, distribution.make(tokens(0), found, 10.0)) == (STEPS, 0)
    assert not torch.equal(
        made(model, distribution.make(tokens(0), found, 1e4)), made(model, sampling.plain(tokens(0)))
    )


def test_without_strength_an_edit_of_h_changes_nothing(model: sampling.Model) -> None:
    torch.testing.assert_close(
        made(model, distribution.make(tokens(0), heads(model), 0.0)), made(model, sampling.plain(tokens(0)))
    )


def test_the_divergence_is_none_for_the_wanted_side_and_most_for_the_other() -> None:
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    found = regularised.divergence(p, torch.zeros(3, dtype=torch.int64))
    assert found.tolist() == pytest.approx([0, np.log(2), 0.2157615], abs=1e-5)


def test_regularised_guidance_goes_back_through_the_denoiser_and_raises_its_objective(model: sampling.Model) -> None:
    found = heads(model)
    output = regularised.make(tokens(0), found, 1e-3)
    assert calls(model, output) == (STEPS, STEPS)
    one = step(model, STEPS - 1)
    side = torch.from_numpy(one.quota())

    def objective(x: Tensor) -> Tensor:
        parts: list[Tensor] = []
        model.denoiser(x, one.t, tokens(0), hspace.keep(parts))
        return regularised.objective(found(one.index, parts[0]), side).sum()

    moved = output(model.denoiser, one) - model.denoiser(one.x, one.t, tokens(0))
    assert objective(one.x + 0.01 * moved / moved.norm()) > objective(one.x)


def test_selfdebias_finds_modes_and_evens_a_batch_out(model: sampling.Model) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3 // 2  # a third in the second mode
    h = torch.randn(STEPS, 60, 12, generator=generator) * 0.1 + torch.nn.functional.one_hot(y, 12) * 4
    features = torch.nn.functional.one_hot(y, 6) + torch.randn(60, 6, generator=generator) * 0.05
    modes, mode_of = selfdebias.find(h, selfdebias.project(h, features, 0), 0)
    assert len(modes.centroids) == STEPS
    assert max((mode_of == y.numpy()).mean(), (mode_of != y.numpy()).mean()) > 0.95 or len(set(mode_of)) > 2

    def distance(h: Tensor) -> Tensor:
        z = modes.projection(h, torch.zeros(len(h), dtype=torch.int64))
        return selfdebias.distance(selfdebias.shares(z, modes.centroids[0]))

    assert distance(selfdebias.moved(h[0], modes, 0, 100.0)) < distance(h[0])


def test_equisteer_leaves_nothing_along_the_directions_and_adds_one(model: sampling.Model) -> None:
    directions = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    attention = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    left = equisteer.removed(attention, directions)
    torch.testing.assert_close(left @ directions.T, torch.zeros(2, 5, 3), atol=UNIT_ABS, rtol=0)
    steered = equisteer.steered(attention, directions[:1], torch.tensor([2.0]), torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(steered.norm(dim=-1), attention.norm(dim=-1))
    assert (steered @ directions[0] > 0).all()


def test_equisteer_steers_at_the_first_steps_and_by_the_coin(model: sampling.Model) -> None:
    named_tokens = [[tokens(1), tokens(2)], [tokens(3), tokens(4)]]
    found = equisteer.prepare(model, named_tokens, [tokens(0)], tokens(5), 1.5)
    found.gate[:] = torch.inf  # no image is left alone
    steered, guided = equisteer.make(tokens(0), found, tokens(5), 1.5), sampling.guided(tokens(0), tokens(5), 1.5)
    assert calls(model, steered) == (2 * STEPS, 0)
    first, last = step(model, 0), step(model, STEPS - 1)
    assert not torch.equal(steered(model.denoiser, first), guided(model.denoiser, first))
    torch.testing.assert_close(steered(model.denoiser, last), guided(model.denoiser, last))
    found.gate[:] = -torch.inf
    torch.testing.assert_close(steered(model.denoiser, first), guided(model.denoiser, first))
    coins = step(model, 0, 400).coin()
    assert set(coins) == {0, 1}
    assert abs(coins.mean() - 0.5) < 0.1


def test_weak_guidance_changes_tokens_from_the_end_on_alone() -> None:
    context, direction = tokens(0), torch.randn(2, WIDTH)
    found = weak.added(context, 3, direction)
    torch.testing.assert_close(found[:, :3], context[:, :3].expand(2, -1, -1))
    torch.testing.assert_close(found[:, 3:] - context[:, 3:], direction[:, None].expand(-1, 2, -1))
    groups = [torch.ones(2, WIDTH), torch.zeros(3, WIDTH)]
    torch.testing.assert_close(weak.directions(groups, torch.full((4, WIDTH), 0.5))[0], torch.full((WIDTH,), 0.5))


def test_fairimagen_removes_the_groups_mean_difference() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 20)
    embeddings = rng.normal(size=(40, WIDTH)) + group[:, None] * 2.0
    found = fairimagen.fit(embeddings, group)
    mapped = embeddings @ found.keep.numpy()
    gap = mapped[group == 0].mean(0) - mapped[group == 1].mean(0)
    assert np.abs(gap).max() < 1e-5
    assert np.linalg.matrix_rank(found.keep.numpy(), tol=1e-4) == round(WIDTH * fairimagen.KEPT)


def test_words_are_handed_out_in_turn(model: sampling.Model) -> None:
    one, other = tokens(1), tokens(2)
    found = made(model, named.make([one, other], tokens(0), 1.5))
    alone = made(model, sampling.guided(one, tokens(0), 1.5))
    torch.testing.assert_close(found[::2], alone[::2], atol=UNIT_ABS, rtol=0)
    assert not torch.allclose(found[1::2], alone[1::2])


def test_a_probe_reads_what_is_there_and_no_more() -> None:
    labels = np.arange(200) % 2
    noise = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    assert probe.probe(noise + labels[:, None] * 4, labels) > 0.95
    assert abs(probe.probe(noise, labels) - 0.5) < 0.15


def test_rows_without_a_condition_say_so_and_every_row_has_a_source() -> None:
    of_pixels: dict[str, Any] = {rival.name: refusal(rival.kind, prompts=False, words=False) for rival in RIVALS}
    assert [name for name, reason in of_pixels.items() if reason is None] == [
        "vanilla",
        "SelfDebias",
        "distribution guidance",
        "classifier guidance, calibrated and regularised",
    ]
    assert all(refusal(rival.kind, prompts=True, words=True) is None for rival in RIVALS)
    assert all(rival.source and rival.read and rival.differs for rival in RIVALS)
