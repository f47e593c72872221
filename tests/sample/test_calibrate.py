"""Calibrations: from audited images to weights of codes, and what is refused."""

import hashlib
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from calibration_settings import SETTINGS
from fake_engine import fake_bundle
from tolerances import SHARE_ABS, SOLVED_SHARE_ABS

from ddm_rt.bundle import Bundle, add_directory, copy_bundle
from ddm_rt.config import SamplerName
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.runtime import Codes
from ddm_rt.sample.calibration import posterior
from ddm_rt.sample.calibration.calibration import (
    Settings,
    base_weights,
    calibration,
    load_all,
    resolve,
    solve,
    store,
    with_target,
)
from ddm_rt.sample.calibration.groups import Attribute, parse_target
from ddm_rt.sample.pipeline import Pipeline

GENDER = Attribute(name="gender", groups=("female", "male"))
RACE = Attribute(name="race", groups=("asian", "white"))
# Per code, audited images of female&asian, female&white, male&asian, male&white.
COUNTS = ((6, 2, 0, 0), (1, 6, 1, 0), (0, 0, 7, 1), (0, 1, 1, 6))
CELLS = (("female", "asian"), ("female", "white"), ("male", "asian"), ("male", "white"))
AUDITED = [(code, CELLS[i]) for code, row in enumerate(COUNTS) for i, count in enumerate(row) for _ in range(count)]


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    return copy_bundle(tiny_bundle, tmp_path / "bundle")


def made(bundle: Bundle, settings: Settings = SETTINGS):
    return calibration(bundle, (GENDER, RACE), AUDITED, settings, {"method": "audit"})


@pytest.fixture
def calibrated(bundle: Bundle) -> Bundle:
    return store(bundle, made(bundle), "default")[0]


def means(counts: np.ndarray) -> np.ndarray:
    return posterior.mean(counts, posterior.fitted_prior(counts))


def test_counts_are_kept_per_combination_and_summed_per_attribute(bundle: Bundle) -> None:
    record = calibration(bundle, (GENDER, RACE), [*AUDITED, (2, None)], SETTINGS, {})
    assert record.counts == COUNTS
    assert record.unsure == (0, 0, 1, 0)
    assert record.audited == 32
    assert record.table([GENDER]).tolist() == [[8, 0], [7, 1], [0, 8], [1, 7]]
    assert record.table([RACE]).tolist() == [[6, 2], [2, 6], [7, 1], [1, 7]]
    assert record.table([GENDER, RACE]).tolist() == [list(row) for row in COUNTS]


@pytest.mark.parametrize("target", ["female=.3,male=.7", "female=.5,male=.5;race:asian=.4,white=.6"])
def test_weights_give_the_target_by_the_posterior_means(calibrated: Bundle, target: str) -> None:
    found = resolve(calibrated, target, SETTINGS)
    weights = np.array(found.code_weights)
    assert weights.sum() == pytest.approx(1, abs=SHARE_ABS)
    record, calibration_id = load_all(calibrated)["default"]
    for part in parse_target(target, record.attributes):
        assert weights @ means(record.table(part.attributes)) == pytest.approx(part.shares, abs=SOLVED_SHARE_ABS)
        shares = [share for share, _ in found.shares[part.name].values()]
        assert shares == pytest.approx(part.shares, abs=SOLVED_SHARE_ABS)
    assert found.calibration_id == calibration_id
    assert 1 < found.effective_codes <= 4


def test_half_widths_are_those_of_a_weighted_sum() -> None:
    """Codes are audited apart, so that variances add up: Σπ²v."""
    record, found = with_target(made(fake_bundle()), "female=.3,male=.7", fake_bundle().codes)
    variances = posterior.variance(record.table([GENDER]))
    for group, (_, width) in enumerate(found.shares["gender"].values()):
        terms = (weight * weight * v for weight, v in zip(found.code_weights, variances[:, group], strict=True))
        assert width == pytest.approx(posterior.Z90 * math.sqrt(sum(terms)), abs=SHARE_ABS)


def test_combinations(calibrated: Bundle) -> None:
    found = resolve(calibrated, "gender&race:uniform", SETTINGS)
    record, _ = load_all(calibrated)["default"]
    shares = np.array(found.code_weights) @ means(record.table([GENDER, RACE]))
    assert shares == pytest.approx([0.25] * 4, abs=SOLVED_SHARE_ABS)


def test_the_id_is_the_hash_of_the_stored_file_and_the_bundle_keeps_its_own(bundle: Bundle) -> None:
    stored, calibration_id = store(bundle, made(bundle), "by-hand")
    content = (stored.path / "calibrations" / "by-hand" / "calibration.json").read_bytes()
    assert calibration_id == hashlib.sha256(content).hexdigest()
    assert stored.bundle_id == bundle.bundle_id
    assert load_all(stored) == {"by-hand": (made(bundle), calibration_id)}


def test_stored_weights_are_used_as_they_are(bundle: Bundle) -> None:
    record, found = with_target(made(bundle), "male=.4,female=.6", bundle.codes)
    assert found.calibration_id is None
    altered = record.targets[0].model_copy(update={"code_weights": (0.1, 0.2, 0.3, 0.4)})
    stored, _ = store(bundle, record.model_copy(update={"targets": (altered,)}), "default")
    assert resolve(stored, "female=.6,male=.4", SETTINGS).code_weights == (0.1, 0.2, 0.3, 0.4)
    assert resolve(stored, "female=.5,male=.5", SETTINGS).code_weights != (0.1, 0.2, 0.3, 0.4)


def test_without_a_target_every_attribute_is_even(bundle: Bundle) -> None:
    record, found = with_target(made(bundle), None, bundle.codes)
    assert found.target == "gender:female=0.5,male=0.5;race:asian=0.5,white=0.5"
    assert [stored.target for stored in record.targets] == [found.target]


def test_sampling_draws_by_the_weights_and_records_the_calibration(calibrated: Bundle) -> None:
    pipeline = Pipeline.load(calibrated, backend="onnxruntime", threads=1)
    generation = pipeline.generate(n=40, target="female=.3,male=.7")
    weights = resolve(calibrated, "female=.3,male=.7", SETTINGS)
    counts = np.bincount(generation.codes, minlength=4)
    assert np.abs(counts - 40 * np.array(weights.code_weights)).max() < 2
    assert generation.manifest["calibration_id"] == weights.calibration_id
    with pytest.raises(DdmError, match=r"num_steps is 3 \(calibrated at 4\)"):
        pipeline.generate(n=1, target="female=.3,male=.7", num_steps=3)


@pytest.mark.parametrize(
    ("target", "share"),
    [("female=.99,male=.01", "female=0.99"), ("race:asian=1", "asian=1"), ("male=0,female=1", "female=1")],
)
def test_a_target_out_of_reach_is_refused_with_how_far_it_goes(calibrated: Bundle, target: str, share: str) -> None:
    with pytest.raises(DdmError) as caught:
        resolve(calibrated, target, SETTINGS)
    assert f"target {share} is out of reach: with 32 audited images the codes surely give" in str(caught.value)
    assert "more audits" in str(caught.value)


def test_shares_in_reach_that_exclude_each_other(bundle: Bundle) -> None:
    """Women are all asian and men all white: half of either can't go with 80 % asian."""
    audited = [(code, ("female", "asian") if code < 2 else ("male", "white")) for code in range(4) for _ in range(20)]
    record = calibration(bundle, (GENDER, RACE), audited, SETTINGS, {})
    base = base_weights(bundle.codes)
    parts = parse_target("female=.5,male=.5;race:asian=.8,white=.2", record.attributes)
    with pytest.raises(DdmError, match="each share is in reach, but not all at once; the nearest is female="):
        solve(record, parts, base)
    assert solve(record, parts, base, nearest=True).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_steps": 8}, "num_steps is 8 (calibrated at 4)"),
        ({"sampler": SamplerName.EULER}, "sampler is euler (calibrated at ddim)"),
        ({"indicator_guidance_scale": 3.0}, "indicator_guidance_scale is 3.0 (calibrated at 1.5)"),
        ({"precision": "int8"}, "precision is int8 (calibrated at fp32)"),
        ({"prompt": "a nurse"}, "prompt is a nurse (calibrated at not set)"),
        ({"height": 32}, "height is 32 (calibrated at 16)"),
    ],
)
def test_other_settings_are_refused_unless_stale_is_allowed(calibrated: Bundle, change, said: str, caplog) -> None:
    asked = SETTINGS.model_copy(update=change)
    with pytest.raises(DdmError) as caught:
        resolve(calibrated, "female=.5,male=.5", asked)
    assert f"no calibration holds for these settings: default: {said}" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        found = resolve(calibrated, "female=.5,male=.5", asked, allow_stale=True)
    assert found.code_weights == resolve(calibrated, "female=.5,male=.5", SETTINGS).code_weights
    assert said in caplog.text


def test_a_calibration_with_a_scope_holds_for_it_alone_and_for_any_prompt(bundle: Bundle) -> None:
    stored, _ = store(bundle, made(bundle, SETTINGS.model_copy(update={"scope": "portraits"})), "default")
    asked = SETTINGS.model_copy(update={"scope": "portraits", "prompt": "a nurse"})
    assert resolve(stored, "female=.5,male=.5", asked).name == "default"
    with pytest.raises(DdmError, match="scope is not set"):
        resolve(stored, "female=.5,male=.5", SETTINGS)
    any_scope, _ = store(bundle, made(bundle), "default")
    assert resolve(any_scope, "female=.5,male=.5", SETTINGS.model_copy(update={"scope": "portraits"})).name == "default"


def test_other_guidance_is_another_setting(bundle: Bundle) -> None:
    """What a calibration was made for with plain guidance is written as it was before there was another."""
    other = SETTINGS.model_copy(update={"guidance_interval": (0.2, 0.8), "apg": (15.0, 0.0)})
    names = ["guidance_interval is (0.2, 0.8)", "apg is (15.0, 0.0)"]
    assert SETTINGS.differences(other) == [f"{name} (calibrated at not set)" for name in names]
    assert Settings.model_validate_json(other.model_dump_json()) == other
    assert not {"guidance_interval", "apg"} & SETTINGS.model_dump().keys()


def test_of_several_the_one_that_fits_is_taken_and_then_the_larger(bundle: Bundle) -> None:
    eight = SETTINGS.model_copy(update={"num_steps": 8})
    small = calibration(bundle, (GENDER,), [(code, groups[:1]) for code, groups in AUDITED[::2]], SETTINGS, {})
    stored, _ = store(bundle, small, "small")
    stored, _ = store(stored, made(bundle), "large")
    stored, _ = store(stored, made(bundle, eight), "eight")
    assert resolve(stored, "female=.5,male=.5", SETTINGS).name == "large"
    assert resolve(stored, "female=.5,male=.5", eight).name == "eight"


def test_a_calibration_of_another_bundle_is_stale(calibrated: Bundle, bundle: Bundle) -> None:
    foreign = made(bundle).model_copy(update={"bundle_id": "f" * 64})
    stored, _ = store(calibrated, foreign, "default")
    with pytest.raises(DdmError, match="it is of another bundle, ffffffffffff"):
        resolve(stored, "female=.5,male=.5", SETTINGS)


def test_unknown_groups_and_no_calibration(calibrated: Bundle, tiny_bundle: Bundle) -> None:
    with pytest.raises(DdmError, match="group 'tall' is unknown; known: gender: female, male; race: asian, white"):
        resolve(calibrated, "tall=.5,small=.5", SETTINGS)
    with pytest.raises(DdmError, match="no calibration that knows groups; `ddm-rt calibrate` adds one"):
        resolve(tiny_bundle, "female=.5,male=.5", SETTINGS)
    with pytest.raises(DdmError, match="the bundle has no codes"):
        base_weights(Codes(origin="none"))


def test_bad_audits(bundle: Bundle) -> None:
    for audited, message in (
        (AUDITED[:7], "7 audited images have their groups; expected at least 8"),
        ([*AUDITED, (4, CELLS[0])], "has code 4; expected 0 to 3"),
        ([*AUDITED, (-1, CELLS[0])], "has code -1"),
        ([*AUDITED, (0, ("female", "tall"))], "audited image is female&tall; known: female&asian"),
    ):
        with pytest.raises(DdmError, match=message):
            calibration(bundle, (GENDER, RACE), audited, SETTINGS, {})
    with pytest.raises(DdmError, match=r"calibration name '\.\./x'; expected letters"):
        store(bundle, made(bundle), "../x")


def test_a_damaged_calibration_is_named(calibrated: Bundle) -> None:
    path = calibrated.path / "calibrations" / "default" / "calibration.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BundleError, match=r"calibration\.json: truncated"):
        load_all(calibrated)
    shutil.rmtree(path.parent)
    with pytest.raises(BundleError, match="missing"):
        load_all(calibrated)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": COUNTS[:3]}, "field counts: expected 4 codes with 4 counts each"),
        ({"targets": [{"target": "gender:female=1", "code_weights": [0.5, 0.5, 0.5, 0.5]}]}, "expected 4, of sum 1"),
        ({"attributes": [{"name": "a", "groups": ["x"]}]}, "expected two or more different ones"),
    ],
)
def test_a_calibration_that_contradicts_itself_is_refused(bundle: Bundle, change, message: str) -> None:
    content = type(made(bundle)).model_validate(made(bundle).model_dump() | change).model_dump_json()
    stored = add_directory(
        bundle, "calibrations/default", lambda folder: (folder / "calibration.json").write_text(content)
    )
    with pytest.raises(DdmError) as caught:
        load_all(stored)
    assert message in str(caught.value)


def test_a_calibration_of_a_scope_holds_for_whatever_is_asked_in_it() -> None:
    """And one without a scope for its prompts, in any scope."""
    texts = {"prompt": "a nurse", "negative_prompt": "blurry"}
    other = SETTINGS.model_copy(update={**texts, "scope": "campaign"})
    assert SETTINGS.model_copy(update={"scope": "campaign"}).differences(other) == []
    assert SETTINGS.differences(other) == [f"{name} is {text} (calibrated at not set)" for name, text in texts.items()]
    assert SETTINGS.model_copy(update=texts).differences(other) == []
