"""`ddm-rt bench`: what it prints, as tables and as JSON, and what it refuses."""

import json
from pathlib import Path

import pytest

from ddm_rt.evaluate.latency import Speed

LINE = ("bench", "--threads", 1, "--rounds", 3, "--processes", 0, "--batch", "1,2")
DIGITS = "digits@steps=2"


def test_tables_name_the_machine_the_version_the_baseline_and_the_spread(ddm_rt) -> None:
    said = ddm_rt(*LINE, DIGITS, "--against", "digits@steps=3")
    assert said.code == 0, said.err
    shown = " ".join(said.out.split())
    for expected in ("p50 ms", "first image", "baseline", "[", "ddm_rt 0.", "load average before: ", "3 rounds"):
        assert expected in shown
    assert f"{DIGITS}: bundle " in shown
    assert "onnxruntime fp32, 1 threads, ddim 2 steps, guidance 1.5" in shown


def test_json_is_the_schema_and_nothing_else(ddm_rt) -> None:
    said = ddm_rt(*LINE, DIGITS, "--against", "digits@steps=6", "--json")
    assert said.code == 0, said.err
    speed = Speed.model_validate_json(said.out)
    assert [row.n for row in speed.side.rows] == [1, 2]
    for row in speed.side.rows:
        assert row.rounds == 3
        assert 0 < row.latency_p25_ms <= row.latency_p50_ms <= row.latency_p95_ms <= row.latency_p99_ms
        assert row.images_per_s == pytest.approx(1000 * row.n / row.latency_p50_ms)
        assert row.speedup is not None
        assert row.speedup_range is not None
    assert speed.baseline is not None
    assert speed.baseline.rows[0].speedup is None
    assert (speed.side.facts.num_steps, speed.baseline.facts.num_steps) == (2, 6)
    assert speed.machine.cpus >= 1


def test_a_new_process_makes_its_first_image(ddm_rt) -> None:
    line = ("bench", DIGITS, "--threads", 1, "--rounds", 1, "--processes", 1, "--batch", 1, "--json")
    cold = json.loads(ddm_rt(*line).out)["side"]["cold_s"]
    assert len(cold) == 1
    assert cold[0] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch", "1,0"), "--batch '1,0': expected numbers of at least 1"),
        (("--batch", "many"), "--batch 'many': expected numbers of at least 1"),
        (("--seconds", 0), "expected batches and rounds of at least 1, seconds above 0"),
        (("--prompt", "a nurse"), "prompt is given; bundle 'digits' is prompt-free"),
        (("--against", "digits@backend=tensorrt"), "backend 'tensorrt' is not available"),
    ],
)
def test_a_mistake_is_one_line(ddm_rt, options: tuple, message: str) -> None:
    assert message in ddm_rt("bench", DIGITS, "--processes", 0, *options).refusal()


def test_images_are_no_bundle(ddm_rt, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert "holds images, made already; expected a bundle" in ddm_rt("bench", tmp_path / "images").refusal()
