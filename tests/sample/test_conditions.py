"""Rows of `cond`: made once per text and code, in the order asked for; zeros where there is no text."""

from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine, fake_bundle
from fake_text import MAX_LENGTH, text_bundle

from ddm_rt.sample.loop.conditions import Conditions
from ddm_rt.sample.loop.guidance import Condition

SIZE = (8, 8)


def test_the_least_recent_row_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddm_rt.sample.loop.conditions._KEPT", 0)  # then there is room for 48
    engine = FakeEngine()
    conditions = Conditions(fake_bundle(), engine)
    made = []
    for scale in (*range(48), 0, 48, 0, 1):
        conditions.gather([Condition(None, 0)], float(scale), SIZE)
        made.append(len(engine.conditioned))
    assert made == [*range(1, 49), 48, 49, 49, 50]


def test_each_text_is_encoded_once_and_each_row_made_once(tmp_path: Path) -> None:
    engine = FakeEngine()
    conditions = Conditions(text_bundle(tmp_path), engine)
    wanted = [Condition("a nurse", 1), Condition("a nurse", -1), Condition("a judge", 1), Condition("a nurse", 1)]
    cond = conditions.gather(wanted, 1.0, SIZE)
    assert len(engine.encoded) == 2
    assert engine.conditioned == [1, -1, 1]
    for row, condition in zip(cond["token"], wanted, strict=True):
        np.testing.assert_array_equal(conditions.gather([condition], 1.0, SIZE)["token"], row[None])
    assert len(np.unique(cond["token"], axis=0)) == 3
    assert (len(engine.encoded), len(engine.conditioned)) == (2, 3)
    conditions.gather([Condition("a nurse", 1)], 0.5, SIZE)
    assert (len(engine.encoded), len(engine.conditioned)) == (2, 4)


def test_only_families_that_know_sizes_have_a_row_per_size(tmp_path: Path) -> None:
    for sized, rows in ((False, 1), (True, 2)):
        engine = FakeEngine()
        conditions = Conditions(text_bundle(tmp_path / str(sized), sized=sized), engine)
        tokens = [conditions.gather([Condition("a nurse", 0)], 1.0, size)["token"] for size in ((8, 8), (8, 16))]
        assert len(engine.conditioned) == rows
        assert np.array_equal(*tokens) is not sized


def test_sizes_and_pooled_text_are_what_diffusers_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict] = []
    engine = FakeEngine()
    conditioner = engine.conditioner

    def watched(context, code, scale, added):
        given.append({"context": context, **added})
        return conditioner(context, code, scale, added)

    monkeypatch.setattr(engine, "conditioner", watched)
    conditions = Conditions(text_bundle(tmp_path, sized=True), engine)
    conditions.gather([Condition("a nurse", 0), Condition(None, -1)], 1.0, (8, 16))
    text, nothing = given
    for one in given:
        assert one["time_ids"].tolist() == [[8, 16, 0, 0, 8, 16]]
        assert {value.dtype for value in one.values()} == {np.dtype(np.float32)}
        assert (one["context"].shape, one["text_embeds"].shape) == ((1, MAX_LENGTH, 5), (1, 2))
    assert text["context"].any()
    assert text["text_embeds"].any()
    assert not nothing["context"].any()
    assert not nothing["text_embeds"].any()
    assert len(engine.encoded) == 1


def test_without_prompts_the_context_is_zeros() -> None:
    conditions = Conditions(fake_bundle(), FakeEngine())
    cond, rows = conditions.probe_rows(1.0, SIZE)
    assert conditions.versions == {}
    assert len(cond["token"]) == rows == 5  # the null code and four codes


def test_probe_rows_are_unlike(tmp_path: Path) -> None:
    conditions = Conditions(text_bundle(tmp_path), FakeEngine())
    cond, rows = conditions.probe_rows(1.0, SIZE)
    assert len(cond["token"]) == rows
    assert len(np.unique(cond["token"], axis=0)) == rows
    assert conditions.versions.keys() == {"tokenizers"}
