"""`ddm-rt cache` on the shipped digits: found, judged, recorded and sampled with."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ddm_rt.bundle import Bundle
from ddm_rt.sample.cache.record import load_all

QUICK = ("--steps", 6, "--threads", 1, "--fitted-on", 8, "--backend", "onnxruntime")


def test_a_cache_is_found_judged_and_used(ddm_rt, tmp_path: Path) -> None:
    # Shares that differ by less than .9 count as equal, and so does any quality: what passes is no matter here.
    loose = ("--margin", 0.9, "--frechet-ratio", 100)
    where = tmp_path / "digits"
    done = ddm_rt("cache", "digits", "--out", where, "--calls", "3,4", "-n", 200, *QUICK, *loose)
    assert done.code in (0, 1, 3), done.err
    assert "recorded in" in done.out
    ((name, found),) = load_all(Bundle.load(where)).items()
    assert name == f"{found.calls}-of-6"
    assert found.judged is not None
    assert (found.judged.n, found.judged.groups, found.judged.balance) == (200, ("3", "8"), "equivalent")
    assert found.judged.passed == (done.code == 0)
    assert not found.judged.convinces  # by bounds as loose as these
    assert ("auto does not take it" in done.out) == found.judged.passed
    assert 0 < found.fit.error < found.fit.spread

    sampled = ("sample", where, "-n", 2, "--steps", 6, "--threads", 1)
    made = ddm_rt(*sampled, "--cache", found.calls, "--out", tmp_path / "cached")
    assert made.code == 0, made.err
    manifest = json.loads((tmp_path / "cached" / "manifest.json").read_text("utf-8"))
    assert manifest["request"]["cache"] == found.reuse.model_dump(mode="json")
    again = ddm_rt("sample", where, "--from", tmp_path / "cached" / "manifest.json", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    first, second = (Image.open(tmp_path / each / "00000.png").tobytes() for each in ("cached", "again"))
    assert first == second


def test_without_a_judge_nothing_is_judged(ddm_rt, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = tmp_path / "digits"
    asked = ("cache", "digits", "--out", where, "--calls", 3, "--judge", "none", "--name", "three")
    done = ddm_rt(*asked, *QUICK, "--sampler", "euler")
    assert done.code == 0, done.err
    assert load_all(Bundle.load(where))["three"].judged is None
    # `auto` takes what was judged alone, and says so.
    made = ddm_rt(
        "sample", where, "-n", 1, "--steps", 6, "--sampler", "euler", "--cache", "auto", "--out", tmp_path / "o"
    )
    assert made.code == 0, made.err
    assert "cache auto: every step calls the model (three: it wasn't judged to change nothing)" in caplog.text
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text("utf-8"))
    assert "cache" not in manifest["request"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--calls", "6"), "calls has 6; expected 2 to 5, fewer than the 6 steps"),
        (("--calls", "1"), "calls has 1; expected 2 to 5"),
        (("--calls", "x"), "--calls 'x': expected a number of at least 1"),
        (("--calls", "3", "--sampler", "ddpm", "--judge", "none"), "the sampler ddpm adds noise"),
        (("--calls", "3", "--frechet-ratio", "0.5"), "frechet_ratio is 0.5; expected a number above 1"),
        (("--calls", "3", "--frechet-ratio", "nan"), "frechet_ratio is nan; expected a number above 1"),
        (("--calls", "3", "--reference", "none"), 'reference is "none", but quality and diversity need real images'),
        (("--calls", "3", "--name", ".."), "cache name '..'; expected letters, digits"),
        (("--calls", "3", "--groups", "3"), "groups are 3; expected two or more different ones"),
    ],
)
def test_what_is_refused_leaves_nothing(ddm_rt, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    assert said in ddm_rt("cache", "digits", "--out", tmp_path / "digits", *QUICK, *options).refusal()
    assert not (tmp_path / "digits").exists()
