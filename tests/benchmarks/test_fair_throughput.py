"""Fair throughput: rows follow from the models, gates decide, and the table names the fastest that passes."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fair_throughput
import numpy as np
import pytest
from fair_throughput import AUTHORS, REFERENCE, entries, images_of, passes
from pages.fair_throughput import chart, fair, ladder
from store import save
from subjects import Subject

from ddm_rt.bundle import Bundle


@pytest.fixture
def subject(tiny_bundle: Bundle) -> Subject:
    path = str(tiny_bundle.path)
    return Subject(name="tiny", bundle=path, converted={"bf16": path, "int8": path})


def test_a_student_is_some_more_rows(subject: Subject) -> None:
    without, having = (entries(subject, subject, students) for students in ({}, {"student": subject}))
    names = [entry.name for entry in having]
    assert len(set(names)) == len(names)
    assert (names[0], names[3]) == (AUTHORS, REFERENCE)
    assert names[: len(without)] == [entry.name for entry in without]
    assert names[len(without) :] == [
        *("student, onnxruntime", "student, openvino", "student, openvino bf16", "student, openvino int8"),
    ]


def test_images_of_both_kinds_are_alike(subject: Subject) -> None:
    ours, theirs = (next(e for e in entries(subject, subject, {}) if e.name == name) for name in (REFERENCE, AUTHORS))
    ours.configuration.options["num_steps"] = theirs.configuration.options["num_steps"] = 2
    made, codes = images_of(ours, 3, 1)
    assert made.shape == (3, 16, 16, 3)
    assert codes is not None
    drawn, nothing = images_of(theirs, 3, 1)
    assert (drawn.shape, drawn.dtype, nothing) == (made.shape, np.uint8, None)


@pytest.mark.parametrize(
    ("fd", "frechet", "expected"), [(0.06, 11.5, True), (0.061, 1.0, False), (0.0, 11.6, False), (0.0, 9.0, True)]
)
def test_both_gates_count(fd: float, frechet: float, expected: bool) -> None:
    assert passes({"fd": fd, "frechet": frechet}, {"frechet": 10.0}) is expected


def result() -> dict[str, Any]:
    rates = {AUTHORS: 2.0, REFERENCE: 10.0, "teacher, openvino int8": 30.0}
    gate = {"what": "w", "precision": "fp32", "frechet": 5.0, "balance": {"fd_ddm_interval": [0, 0.1]}}
    return {
        "ladder": [*rates, "a student that isn't there"],
        "baseline": AUTHORS,
        "reference": REFERENCE,
        "rows": [
            {
                "configuration": name,
                **gate,
                "fd": 0.4 if name == AUTHORS else 0.01,
                "images_per_s": {"1": (rate / 4,) * 3, "16": (rate - 1, rate, rate + 1)},
                "best_batch": 16,
                "peak_mem_mib": 100.0,
                "passes": name != AUTHORS,
            }
            for name, rate in rates.items()
        ],
        "machine": {"processor": "an abacus", "cpus": 2, "load_average": 0.1},
        **{"rounds": 7, "n": 1000, "seed": 0, "groups": ["3", "8"], "threads": 2, "commit": "c", "command": "python x"},
    }


def test_the_table_names_the_fastest_that_passes_and_what_fails() -> None:
    page = fair(result())
    assert "The fastest that passes both gates is teacher, openvino int8: 15.0 times the authors' way" in page
    assert "at batch 1, 15.0 times it." in page
    lines = {line.split(" | ")[0]: line for line in page.splitlines()}
    assert lines[f"| {AUTHORS}"].endswith("| no |")
    assert "**10 [9, 11]**" in lines[f"| {REFERENCE}"]
    assert "an abacus, 2 CPUs, 2 threads" in page


def test_charts_have_a_bar_for_each_row_and_leave_out_what_is_not_there(tmp_path: Path) -> None:
    save("fair throughput", result(), tmp_path)
    for draw in (chart, ladder):
        drawn = ElementTree.fromstring(draw(tmp_path))
        texts = [element.text for element in drawn.iter() if element.tag.endswith("text")]
        assert {AUTHORS, REFERENCE, "teacher, openvino int8", "30 (15.0x)"} <= set(texts)
        bars = [element.get("fill") for element in drawn.iter() if element.tag.endswith("rect")]
        assert bars == ["white", "#b8b8b8", "#2a6f97", "#2a6f97"]


def test_what_is_not_judged_is_not_timed(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fair_throughput, "subject_of", lambda name, run, work: subject)
    line = ["fair", "--work", "w", "--teacher", "t", "--authors", "a", "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", line)
    assert fair_throughput.main() == 2
    assert f"{AUTHORS}: not judged yet; run with --gates first" in capsys.readouterr().err
