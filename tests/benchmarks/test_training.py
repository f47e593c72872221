"""A step of training side by side with diffusers' own script: both train the same, and their rows fit the schema."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run
import torch
from bench_parts.workers import Call
from pages import training as page
from peers import Configuration, training
from registry import BENCHMARKS, OURS_LORA, SCRIPT_LORA_CACHED, Case
from subjects import Subject

from ddm_rt.errors import DdmError


@pytest.fixture
def subject(checkpoints: Mapping[str, Path]) -> Subject:
    return Subject(name="tiny", checkpoint=str(checkpoints["sd15"]))


@pytest.mark.parametrize("cached", [False, True])
def test_the_scripts_step_trains_the_factors_alone(cached: bool, subject: Subject) -> None:
    peer = training.ScriptLora(subject, 1, cached=cached)
    before = {name: p.detach().clone() for name, p in peer._unet.named_parameters()}
    step = peer.train(2, 8)
    losses = [step() for _ in range(2)]
    assert all(loss.shape == (1,) and np.isfinite(loss).all() for loss in losses)
    moved = {name for name, p in peer._unet.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(".lora_" in name for name in moved)


def test_both_train_the_same_number_of_values(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    from ddm_rt.train import loop

    kept = loop.Trainer.advance
    monkeypatch.setattr(loop.Trainer, "advance", lambda self: (made.append(self), kept(self))[1])
    training.OursLora(subject, 1).train(2, 8)()
    script = training.ScriptLora(subject, 1, cached=True)
    theirs = sum(p.numel() for p in script._unet.parameters() if p.requires_grad)
    assert sum(p.numel() for p in made[0].trained) == theirs > 0


def test_codes_train_the_head_and_the_indicator_too(subject: Subject) -> None:
    loss = training.OursLora(subject, 1, indicator=True).train(2, 8)()
    assert np.isfinite(loss).all()


def test_a_model_that_is_no_checkpoint_is_refused() -> None:
    with pytest.raises(DdmError, match="subject small: it is no checkpoint"):
        training.OursLora(Subject(name="small", bundle="b"), 1)


def test_the_page_knows_the_configurations_by_their_names() -> None:
    (case,) = BENCHMARKS["train"].cases
    named = {each.name for configurations in case.sets for each in configurations}
    assert named == {page.SCRIPT, page.CACHED, page.OURS, page.CODES}


@pytest.mark.slow(reason="each configuration is a process that imports everything first")
def test_rows_of_training(subject: Subject) -> None:
    sets: tuple[tuple[Configuration, ...], ...] = ((SCRIPT_LORA_CACHED, OURS_LORA),)
    made = run.measure("train", Case("tiny", "sd15-checkpoint", Call("train", 2, side=8), sets, 2), subject, 1, 2, "c")
    assert [row.configuration for row in made] == [each.name for each in sets[0]]
    assert all(row.error is None and row.gflop is None and row.latency_p50_ms > 0 for row in made)
