"""The benchmarks' own parts: registered cases, rows in one schema, configurations side by side, two files compared."""

import json
import sys
from pathlib import Path
from typing import Any

import compare
import numpy as np
import pytest
import run
from bench_parts import rows
from bench_parts.feeds import feeds
from bench_parts.peak import gflop
from bench_parts.workers import Call, Timed, side_by_side
from pages import fair_throughput
from peers import PEERS, Configuration
from registry import BENCHMARKS, EAGER, ORT, OURS_ORT, Case
from store import RESULTS
from subjects import SUBJECTS, Subject

from ddm_rt.bundle import Bundle
from ddm_rt.errors import DdmError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def subject(tiny_bundle: Bundle) -> Subject:
    return Subject(name="tiny", bundle=str(tiny_bundle.path))


def test_what_is_registered_is_there() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert all((ROOT / test).is_file() for test in benchmark.tests), name
        for case in benchmark.cases:
            assert case.subject in SUBJECTS
            assert len({each[0].name for each in case.sets}) == 1, "one baseline for all sets of a case"
            assert all(each.peer in PEERS for configurations in case.sets for each in configurations)


def test_extras_are_those_of_the_package() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for _, extra in PEERS.values() if extra} <= extras.keys()


def timed(subject: Subject, configurations: tuple[Configuration, ...], call: Call, rounds: int) -> list[Timed]:
    return side_by_side([(each, subject) for each in configurations], 1, call, rounds)


@pytest.mark.slow(reason="each configuration is a process that imports everything first")
def test_every_configuration_gives_what_the_baseline_gives(subject: Subject, tmp_path: Path) -> None:
    case = Case("tiny, batch 3", "digits", Call("step", 3), ((EAGER, ORT, OURS_ORT),), 3)
    made = run.measure("step", case, subject, 1, 3, "python benchmarks/run.py step")
    assert [row.configuration for row in made] == ["diffusers eager", "ONNX Runtime", "ours, onnxruntime"]
    for row in made:
        assert len(row.samples_ms) == 3
        assert row.peak_mem_mib > 50
        assert row.gflop is not None
        assert row.gflop > 0
    assert made[0].error is None
    assert all(row.error is not None and row.error < 1e-4 for row in made[1:])
    assert made[0].speedup == 1
    out = tmp_path / "rows.jsonl"
    rows.append(out, made[:1])
    rows.append(out, made[1:])
    assert rows.read(out) == [rows.kept(row) for row in made]
    rows.write_markdown(out)
    page = out.with_suffix(".md").read_text()
    assert "## step: tiny, batch 3" in page
    assert "3 interleaved rounds, 1 threads" in page
    assert "`python benchmarks/run.py step`" in page


@pytest.mark.slow(reason="as above")
def test_whole_images_are_in_range(subject: Subject) -> None:
    ours = Configuration("ours", "ours", {"backend": "onnxruntime", "num_steps": 2})
    theirs = Configuration("theirs", "eager", {"num_steps": 2})
    for each in timed(subject, (theirs, ours), Call("images", 2), 1):
        assert each.output.shape == (2, *each.output.shape[1:])
        assert np.isfinite(each.output).all()


def test_a_process_that_ends_says_why(subject: Subject) -> None:
    wrong = Configuration("wrong", "ours", {"backend": "abacus"})
    with pytest.raises(DdmError, match=r"wrong: its process ended: .*'abacus' is unknown"):
        timed(subject, (wrong,), Call("step", 1), 1)


def test_inputs_are_the_same_everywhere_and_work_grows_with_them(subject: Subject) -> None:
    first, again = feeds(subject, 2), feeds(subject, 2)
    assert first.keys() == again.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
    assert gflop(subject, 4, None) == pytest.approx(2 * gflop(subject, 2, None), rel=0.01)


@pytest.mark.slow(reason="starts pytest")
def test_nothing_is_timed_where_tests_fail(tmp_path: Path) -> None:
    failing = tmp_path / "test_fails.py"
    failing.write_text("def test_it() -> None:\n    assert False\n")
    with pytest.raises(DdmError, match="nothing is timed: "):
        run.check_tests([str(failing)])


def row(**changes: Any) -> rows.Row:
    tree = json.loads(
        """{"benchmark": "step", "case": "c", "configuration": "ours", "precision": "fp32", "baseline": "b", "batch": 1,
        "threads": 1, "samples_ms": [1, 2, 3], "latency_p25_ms": 1, "latency_p50_ms": 2, "latency_p75_ms": 3,
        "first_call_ms": 9, "images_per_s": null, "speedup": 2.0, "speedup_range": [1.9, 2.1], "gflop": null,
        "gflop_per_s": null, "peak_share": null, "peak_mem_mib": 9, "error": null, "versions": {}, "commit": "c",
        "command": "r", "tests": [], "when": "now", "machine": {"system": "s", "processor": "p", "cpus": 2,
        "clock_mhz": null, "memory_gib": 1, "gpu": null, "python": "3", "load_average": 0}}"""
    )
    return rows.Row.model_validate({**tree, **changes})


@pytest.mark.parametrize(
    ("after", "code", "word"),
    [
        ({"speedup": 1.5, "speedup_range": (1.4, 1.6)}, 1, "slower"),
        ({"speedup": 1.5, "speedup_range": (1.4, 2.0)}, 0, ""),
        ({"speedup": 1.97, "speedup_range": (1.0, 1.0)}, 0, ""),
        ({"speedup": 3.0, "speedup_range": (2.9, 3.1)}, 0, "faster"),
    ],
)
def test_a_loss_beyond_both_spreads_is_told(
    after: dict[str, Any], code: int, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name, one in (("a", row()), ("b", row(**after))):
        rows.append(tmp_path / name, [one])
    monkeypatch.setattr(sys, "argv", ["compare.py", str(tmp_path / "a"), str(tmp_path / "b")])
    assert compare.main() == code
    assert capsys.readouterr().out.splitlines()[2].endswith(f"| {word} |")


def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        assert run.main() == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        return err

    assert "benchmark 'fastest' is unknown; there are: step" in said("fastest")
    assert "expected NAME..., --work and --out, or --list" in said("step")
    damaged = tmp_path / "rows.jsonl"
    damaged.write_text('{"benchmark": 1}\n')
    with pytest.raises(DdmError, match=r"rows\.jsonl, line 1: field "):
        rows.read(damaged)


def test_a_dropped_idea_has_its_figure_or_says_that_it_has_none(tmp_path: Path) -> None:
    fixed, free = (
        row(case="digits, batch 32", configuration=name, samples_ms=samples)
        for name, samples in (("OpenVINO", (1.0, 1.0)), ("OpenVINO, free axes", (2.0, 4.0)))
    )
    rows.append(tmp_path / "step.jsonl", [fixed, free])
    lines = fair_throughput.dropped(tmp_path).splitlines()
    assert "- **OpenVINO with free axes, one compiled graph for all shapes**: 0.38x (digits, batch 32); slower" in (
        " ".join(lines)
    )
    assert any("**torch.compile in place of eager**: not measured yet" in line for line in lines)
    assert "of a call saved (speed.md)" in fair_throughput.dropped(RESULTS)
