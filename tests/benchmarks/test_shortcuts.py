"""Shortcuts: their rows, the cache without a fit, and the page."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine, fake_bundle
from pages.shortcuts import page
from shortcuts import YARDSTICK, bundle_of, configuration, main, reused, rows
from store import put

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.errors import DdmError
from ddm_rt.kernels.guided_step import guided_step_reference
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request


def test_rows_have_names_of_their_own_and_begin_with_the_yardstick() -> None:
    names = [row.name for row in rows(["student"])]
    assert names[0] == YARDSTICK
    assert len(set(names)) == len(names)
    assert names[-2:] == ["student, fp32", "student, int8"]


def test_a_row_is_timed_in_its_own_precision() -> None:
    for row in rows(["student"]):
        assert configuration(row, {}).options["precision"] == row.precision


def test_faces_bring_their_own_judge(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["shortcuts.py", "--work", "w", "--set", "s", "--faces", "f.npz", "--judge", "digits"]
    )
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--judge: --faces has its own" in capsys.readouterr().err


def test_a_folder_keeps_the_bundles_of_one_teacher(tiny_bundle: Bundle, plain_bundle: Bundle, tmp_path: Path) -> None:
    made = bundle_of("teacher", tiny_bundle.path, Precision.FP32, tmp_path)
    assert made.bundle_id == tiny_bundle.bundle_id
    with pytest.raises(DdmError, match="expected a folder of its own"):
        bundle_of("teacher", plain_bundle.path, Precision.INT8, tmp_path)


def test_reused_is_every_second_step_by_what_the_one_before_added() -> None:
    pipeline = Pipeline(fake_bundle(), FakeEngine())
    asked = Request(n=2, num_steps=6, seed=3, sampler="dpm++2m").resolve(pipeline.bundle)
    table = replace(asked.table, clip_min=np.full(6, -np.inf), clip_max=np.full(6, np.inf))
    found = reused(table)
    assert found.steps == (0, 2, 4, 5)
    rng = np.random.default_rng(0)
    x, out, before = (rng.normal(size=(2, 4, 4, 4)).astype(np.float32) for _ in range(3))
    nothing = np.zeros((2, 0), np.float32)

    def step(row: Any, x: Any, out: Any, before: Any) -> Any:
        return guided_step_reference([out], nothing, np.repeat(row[None], 2, axis=0), x, before)

    every = table.rows()
    after, x0 = step(every[2], x, out, before)
    expected, _ = step(every[3], after, after + (out - x), x0)
    made, _ = step(found.of(table).rows()[1], x, out, before)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)


def test_the_page_says_how_often_each_verdict_was_given(tmp_path: Path) -> None:
    stamp = {"machine": {"processor": "P", "cpus": 2}, "threads": 2, "commit": "c", "n": 10, "rounds": 7}
    balance = {"fd_ddm_interval": [0.0, 0.02], "scores": {"fd_ddm": 0.01}}
    shared = {"set": "3v8", "balance": balance, "neither": 0.01, **stamp}
    lines: list[dict[str, Any]] = [{**shared, "row": YARDSTICK, "seed": 0}]
    for seed, decided in ((0, "equivalent"), (1, "undecided")):
        verdicts = {
            "drift": {"decision": 0},
            "quality": {"decision": decided, "figures": [["Frechet distance", "3", 1.02, 0.99, 1.06, decided]]},
            # The wide interval of an undecided figure reaches farther than that of the one that has changed.
            "diversity": {
                "decision": "changed",
                "figures": [
                    ["recall", "8", 0.9, 0.6, 1.2, "undecided"],
                    ["precision", "8", 0.8, 0.78, 0.82, "changed"],
                ],
            },
        }
        lines.append({**shared, "row": "teacher, cache", "seed": seed, **verdicts})
    for row, rate in ((YARDSTICK, 10.0), ("teacher, cache", 40.0)):
        timing = {"1": [rate, rate, rate], "64": [2 * rate, 2 * rate, 2 * rate]}
        lines.append({"set": "3v8", "row": row, "seed": "time", "images_per_s": timing, **stamp})
    other_run = {"1": [9.0, 9.0, 9.0], "64": [9.0, 9.0, 9.0]}
    lines += [{**shared, "row": "student", "seed": 0}]
    lines += [{"set": "3v8", "row": "student", "seed": "time", "images_per_s": other_run, **stamp, "commit": "d"}]
    put(tmp_path / "shortcuts.jsonl", lines, "set", "row", "seed")
    text = page(tmp_path)
    assert "times of c, 7 rounds, 2 threads" in text
    assert "9 [9, 9]" not in text  # a factor is to the yardstick of the same run
    assert "equivalent 1, undecided 1" in text
    assert "Frechet distance, 3: 1.020 [0.990, 1.060]" in text
    assert "changed | precision, 8: 0.800 [0.780, 0.820]" in text
    assert "40 [40, 40] (4.00x)" in text
    assert "80 [80, 80] (4.00x)" in text
