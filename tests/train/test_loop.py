"""The loop: a step is a function of seed, step and state, so a checkpoint loses nothing; batches are balanced."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tolerances import DEVICE_LOSS_REL, LOSS_REL
from torch import Tensor

from ddm_rt.config import NULL_CODE, RunConfig
from ddm_rt.errors import BundleError
from ddm_rt.model.unet import DDM
from ddm_rt.train.distributed import Processes
from ddm_rt.train.loop import KEPT_CHECKPOINTS, Batch, Pool, Trainer, step_seed
from ddm_rt.train.pixels import PixelSubject
from ddm_rt.train.trainee import Classes, Material

STEPS = 12
MODES = {
    "codes": {},
    "codes, no head": {"train.indicator_weight": 0.0},
    "labels": {"train.indicator": "labels"},
    "none": {"train.indicator": "none"},
}


def training_set(mode: str, config: RunConfig, images: int = 30) -> Material:
    """Random latents; with codes 0, 0, 0, 1, 2, 3, 0, ... under top codes 0, 0, 1, 1 (5:1)."""
    latents = torch.randn(images, *config.model.latent_shape(config.data), generator=torch.Generator().manual_seed(9))
    code = torch.tensor([0, 0, 0, 1, 1, 2 + images % 2])[torch.arange(images) % 6]
    if mode == "none":
        classes = Classes()
    elif mode == "labels":
        classes = Classes((code > 1).long(), 2)
    else:
        code[5] = 3
        classes = Classes(code, 4, (0, 0, 1, 1))
    return Material(latents, classes, lambda: PixelSubject(config, classes.shared_of))


OTHERS = pytest.mark.slow(reason="codes are quick, which have most of the state")


@pytest.fixture(params=["codes", *(pytest.param(mode, marks=OTHERS) for mode in MODES if mode != "codes")])
def trainer(request: pytest.FixtureRequest, tiny: Callable[..., RunConfig]) -> Callable[[], Trainer]:
    """Makes equal trainers."""
    config = tiny(MODES[request.param])
    data = training_set(request.param.split(",")[0], config)
    return lambda: Trainer(config, data)


def advance(trainer: Trainer, steps: int) -> list[float]:
    return [trainer.advance() for _ in range(steps)]


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_resumed_run_ends_in_the_same_bits(trainer: Callable[[], Trainer], tmp_path: Path) -> None:
    straight = trainer()
    losses = advance(straight, STEPS)
    for stop in (1, 5, STEPS - 1):
        interrupted = trainer()
        before = advance(interrupted, stop)
        path = interrupted.save_checkpoint(tmp_path / str(stop), "digest")
        del interrupted
        torch.randn(3)  # someone else's use of the global generator
        resumed = trainer()
        resumed.load_checkpoint(path, "digest")
        assert resumed.step == stop
        assert before + advance(resumed, STEPS - stop) == losses
        assert_same_bits(resumed.tensors(), straight.tensors())
        assert_same_bits(resumed.weights(), straight.weights())


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")
def test_losses_gradients_and_state_are_on_the_trainers_device_for_which_torchs_meta_device_stands_in(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """Tensors of two devices can't meet; a meta tensor has a place and a shape, and no numbers."""
    config = tiny()
    there = Trainer(config, training_set("codes", config), Processes(torch.device("meta")))
    with pytest.raises(RuntimeError, match="fused=True` requires"):  # the optimizer's step, which has no such device
        there.advance()
    assert {parameter.grad.device.type for parameter in there.parameters if parameter.grad is not None} == {"meta"}
    here = Trainer(config, training_set("codes", config))
    here.advance()
    there.load_checkpoint(here.save_checkpoint(tmp_path, "digest"), "digest")
    assert there.tensors().keys() == here.tensors().keys()
    on_the_host = {name for name, tensor in there.tensors().items() if tensor.device.type != "meta"}
    assert on_the_host == {"ema.n_averaged"}, "a count that only the host reads"


@pytest.mark.gpu
def test_a_cuda_device_learns_as_the_cpu_and_hands_its_checkpoint_over(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny()
    data = training_set("codes", config)
    host, device = Trainer(config, data), Trainer(config, data, Processes(torch.device("cuda")))
    assert advance(device, 3) == pytest.approx(advance(host, 3), rel=DEVICE_LOSS_REL)
    path = device.save_checkpoint(tmp_path, "digest")
    host.load_checkpoint(path, "digest")
    assert_same_bits(host.tensors(), {name: value.cpu() for name, value in device.tensors().items()})
    assert {value.device.type for value in device.weights().values()} == {"cpu"}
    assert advance(host, 2) == pytest.approx(advance(device, 2), rel=DEVICE_LOSS_REL)


def test_a_checkpoint_holds_all_that_the_next_step_depends_on(trainer: Callable[[], Trainer], tmp_path: Path) -> None:
    first = trainer()
    advance(first, 3)
    names = set(first.tensors())
    again = trainer()
    again.load_checkpoint(first.save_checkpoint(tmp_path, "digest"), "digest")
    assert_same_bits(again.tensors(), first.tensors())
    for i in range(len(first.parameters)):
        assert {f"optimizer.{i}.exp_avg", f"optimizer.{i}.exp_avg_sq", f"optimizer.{i}.step"} <= names


def test_only_the_newest_checkpoints_are_kept(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    trainer = Trainer(tiny(), training_set("codes", tiny()))
    for _ in range(4):
        trainer.advance()
        trainer.save_checkpoint(tmp_path, "digest")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step_{step:08d}.safetensors" for step in range(5 - KEPT_CHECKPOINTS, 5)
    ]


def test_a_damaged_or_foreign_checkpoint_is_named(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    trainer = Trainer(tiny(), training_set("codes", tiny()))
    trainer.advance()
    path = trainer.save_checkpoint(tmp_path, "digest")
    with pytest.raises(BundleError, match=rf"{path.name}: made with another configuration"):
        trainer.load_checkpoint(path, "another")
    wider = tiny({"model.code_embed_dim": 32})
    with pytest.raises(BundleError, match=path.name):
        Trainer(wider, training_set("codes", wider)).load_checkpoint(path, "digest")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match=rf"{path.name}: damaged checkpoint"):
        trainer.load_checkpoint(path, "digest")


@pytest.mark.parametrize("batch", [8, 12])
def test_every_minibatch_holds_equal_shares_of_the_top_codes(tiny: Callable[..., RunConfig], batch: int) -> None:
    config = tiny({"train.batch_size": batch})
    data = training_set("codes", config)
    trainer = Trainer(config, data)
    y, top_of = data.classes.y, torch.tensor(data.classes.top_of)
    assert y is not None
    seen = torch.zeros(len(data.latents))
    for step in range(300):
        index = trainer.draw(torch.Generator().manual_seed(step_seed(0, step)))
        top = top_of[y[index]]
        assert torch.bincount(top).tolist() == [batch // 2, batch // 2]
        seen += torch.bincount(index, minlength=len(seen))
    assert (seen > 0).all(), "every image is drawn"
    # Within a top code its images are equally likely: a micro-code's share is its own.
    top = top_of[y]
    for k in (0, 1):
        share = seen[top == k] / seen[top == k].sum()
        spread = 5 * (1 / len(share) / (300 * batch / 2)) ** 0.5
        assert ((share - 1 / len(share)).abs() < spread).all()


def test_an_odd_batch_is_off_by_one_at_most_and_without_balance_images_are_uniform(
    tiny: Callable[..., RunConfig],
) -> None:
    config = tiny({"train.batch_size": 7})
    data = training_set("codes", config)
    assert data.classes.y is not None
    top = torch.tensor(data.classes.top_of)[
        data.classes.y[Trainer(config, data).draw(torch.Generator().manual_seed(0))]
    ]
    assert sorted(torch.bincount(top).tolist()) == [3, 4]

    plain = Trainer(tiny({"train.balance_minibatches": False, "train.batch_size": 3000}), data)
    share = torch.bincount(plain.draw(torch.Generator().manual_seed(0)), minlength=30) / 3000
    assert ((share - 1 / 30).abs() < 5 * (1 / 30 / 3000) ** 0.5).all()


def test_the_draw_of_an_image_bears_stretches_that_add_up_to_a_little_less_than_one() -> None:
    ends = torch.cumsum(torch.full((10,), 0.1, dtype=torch.float64), 0)
    last = 1 - 2.0**-53  # the largest that is drawn
    assert ends[-1] <= last
    pool = Pool(torch.arange(20, 30), ends)
    assert [int(pool.at(v)) for v in (0.0, 0.05, 0.1, 0.15, 0.95, last)] == [20, 20, 21, 21, 29, 29]


def test_the_rate_rises_to_its_height_in_as_many_steps_as_the_warm_up_has_and_falls_to_zero(
    tiny: Callable[..., RunConfig],
) -> None:
    config = tiny({"train.steps": 8, "train.warmup_steps": 4, "train.learning_rate": 0.01})
    trainer = Trainer(config, training_set("codes", config))
    rates = []
    for _ in range(8):
        trainer.advance()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    cosine = [0.005 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates == pytest.approx([0.25 * cosine[0], 0.5 * cosine[1], 0.75 * cosine[2], *cosine[3:]], rel=LOSS_REL)


def test_a_batchs_parts_are_the_batch_and_only_its_numbers_move(tiny: Callable[..., RunConfig]) -> None:
    config = tiny({"train.batch_size": 7})
    batch = Trainer(config, training_set("codes", config)).batch()
    parts = batch.split(3)
    assert [part.size for part in parts] == [3, 3, 1]
    for found, expected in zip(map(torch.cat, zip(*parts, strict=True)), batch, strict=True):
        assert torch.equal(found, expected)
    moved = batch.to(torch.device("meta"))
    assert {name for name in Batch._fields if getattr(moved, name).device.type == "cpu"} == {"image", "no_text"}


def test_a_step_in_two_parts_is_the_step(tiny: Callable[..., RunConfig]) -> None:
    def stepped(images: int, parts: int) -> tuple[float, Tensor]:
        config = tiny({"train.batch_size": images, "train.accumulate": parts, "train.grad_clip": 1e9})
        trainer = Trainer(config, training_set("codes", config))
        loss = trainer.advance()
        return loss, torch.cat([p.grad.flatten() for p in trainer.parameters if p.grad is not None])

    (whole_loss, whole), (loss, gradients) = stepped(8, 1), stepped(4, 2)
    assert loss == pytest.approx(whole_loss, rel=LOSS_REL)
    assert float((gradients - whole).norm() / whole.norm()) < LOSS_REL


def test_gradients_are_no_longer_than_allowed_together(tiny: Callable[..., RunConfig]) -> None:
    def length(most: float) -> float:
        config = tiny({"train.grad_clip": most})
        trainer = Trainer(config, training_set("codes", config))
        trainer.advance()
        found = [parameter.grad.flatten() for parameter in trainer.parameters if parameter.grad is not None]
        return float(torch.cat(found).norm())

    free = length(1e9)
    assert length(free / 10) == pytest.approx(free / 10, rel=LOSS_REL)


def test_gradients_reach_the_conditioner_and_the_head_teaches_the_denoiser(tiny: Callable[..., RunConfig]) -> None:
    config = tiny({"train.drop_both": 0.0, "train.drop_code": 0.0, "train.drop_text": 0.0})
    trainer = Trainer(config, training_set("codes", config))
    assert trainer.head is not None
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    advance(trainer, 3)
    conditioner = {name: p for name, p in trainer.model.named_parameters() if name.startswith("conditioner.")}
    assert conditioner
    for name, parameter in conditioner.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        assert not torch.equal(parameter, before[name]), name
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainer.head.parameters())


def test_with_every_code_dropped_the_conditioner_gets_nothing(tiny: Callable[..., RunConfig]) -> None:
    config = tiny({"train.drop_both": 1.0, "train.drop_code": 0.0, "train.drop_text": 0.0})
    trainer = Trainer(config, training_set("codes", config))
    trainer.advance()
    for name, parameter in trainer.model.named_parameters():
        if name.startswith("conditioner.") and parameter.grad is not None:
            assert parameter.grad.abs().sum() == 0, name


def test_vanilla_and_paper_mode_train_diffusers_unet_and_nothing_else(tiny: Callable[..., RunConfig]) -> None:
    for mode in ("none", "labels"):
        config = tiny({"train.indicator": mode})
        trainer = Trainer(config, training_set(mode, config))
        assert all(name.startswith("unet.") for name in trainer.weights())
        assert (trainer.head is None) == (mode == "none")


def test_a_head_that_has_no_weight_in_the_loss_is_none(tiny: Callable[..., RunConfig]) -> None:
    config = tiny({"train.indicator_weight": 0.0})
    assert Trainer(config, training_set("codes", config)).head is None


def test_whoever_looks_at_the_average_leaves_the_model_as_it_was(tiny: Callable[..., RunConfig]) -> None:
    config = tiny()
    trainer = Trainer(config, training_set("codes", config))
    advance(trainer, 2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with trainer.averaged() as model:
        assert not model.training
        assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert trainer.model.training
    assert_same_bits(dict(trainer.model.state_dict()), before)


def test_the_average_starts_at_the_weights_and_follows_them(tiny: Callable[..., RunConfig]) -> None:
    config = tiny({"train.ema_decay": 0.9})
    trainer = Trainer(config, training_set("codes", config))
    # torch's AveragedModel takes the weights after the first step as they are, then averages.
    trainer.advance()
    average = {name: value.clone() for name, value in trainer.model.named_parameters()}
    for _ in range(3):
        trainer.advance()
        for name, value in trainer.model.named_parameters():
            average[name] = average[name].lerp(value.detach(), 1 - 0.9)
    for name, value in average.items():
        torch.testing.assert_close(trainer.weights()[name], value)


def test_the_global_generator_neither_matters_nor_moves(tiny: Callable[..., RunConfig]) -> None:
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        losses.append(advance(Trainer(tiny(), training_set("codes", tiny())), 3))
        assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[1]


def test_weights_fit_a_fresh_model(tiny: Callable[..., RunConfig]) -> None:
    config = tiny()
    trainer = Trainer(config, training_set("codes", config))
    trainer.advance()
    model = DDM(config.model, config.model.latent_shape(config.data), ((0,), (0,), (1,), (1,)))
    model.load_state_dict(trainer.weights())
    null = model.condition(torch.zeros(1, 1, model.context_dim), torch.tensor([NULL_CODE]), torch.ones(1))
    assert torch.isfinite(model(torch.zeros(1, *config.model.latent_shape(config.data)), torch.ones(1), null)).all()


def test_step_seeds_differ() -> None:
    seeds = {step_seed(seed, step) for seed in range(20) for step in range(200)}
    assert len(seeds) == 20 * 200
    assert all(0 <= seed < 2**63 for seed in seeds)
