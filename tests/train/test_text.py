"""Prompts of the training images as token ids."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from ddm_rt.errors import BundleError
from ddm_rt.model.checkpoint.folder import read_checkpoint
from ddm_rt.train.checkpoint.model import NULL_TEXT
from ddm_rt.train.checkpoint.prepare import distinct, token_ids

BEGIN, END = 49406, 49407


def test_prompts_are_kept_once_after_the_null_text() -> None:
    texts, text_of = distinct(["b", "a", "b", "c"])
    assert texts == ("", "b", "a", "c")
    assert texts[NULL_TEXT] == ""
    assert text_of.tolist() == [1, 2, 1, 3]


def test_each_encoder_of_sdxl_gets_its_own_padding(checkpoints: Mapping[str, Path]) -> None:
    first, second = token_ids(read_checkpoint(checkpoints["sdxl"]), ("", "a bar"))
    assert first.shape == second.shape == (2, 77)
    assert first[0].tolist() == [BEGIN] + [END] * 76
    assert second[0].tolist() == [BEGIN, END] + [0] * 75  # "!" pads
    assert torch.equal(first[1, :4], second[1, :4])


def test_a_long_prompt_is_cut_and_said_to_be(checkpoints: Mapping[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    long = "bar " * 90
    with caplog.at_level(logging.WARNING):
        (ids,) = token_ids(read_checkpoint(checkpoints["sd15"]), ("", "bar " * 75, long))
    assert ids.shape == (3, 77)
    assert (ids[:, -1] == END).all()
    (record,) = caplog.records
    assert record.getMessage() == f"prompts that are longer than 77 tokens and cut there: 1, first {long!r}"


def test_a_damaged_tokenizer_is_named(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    import dataclasses

    checkpoint = read_checkpoint(checkpoints["sd15"])
    (tmp_path / "tokenizer.json").write_text("{")
    broken = dataclasses.replace(checkpoint, tokenizers=(tmp_path,))
    with pytest.raises(BundleError, match="not a tokenizer that transformers reads"):
        token_ids(broken, ("",))
