"""What a request says about text: defaults, what a bundle doesn't take, and manifests that don't go with it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from fake_engine import fake_bundle
from fake_text import text_bundle

from ddm_rt.bundle import Bundle
from ddm_rt.config import Balance
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.sample.calibration.calibration import Settings
from ddm_rt.sample.checks import indicator_guidance
from ddm_rt.sample.pipeline import null_text, texts_of
from ddm_rt.sample.request import SETTINGS, Request, ResolvedRequest


def asked(bundle: Bundle, n: int = 4, **request: Any) -> ResolvedRequest:
    return Request(n=n, **request).resolve(bundle).request


def left_alone(bundle: Bundle, n: int = 4, **request: Any) -> tuple[int, ...]:
    return tuple(sorted({*range(n)} - {*Request(n=n, **request).resolve(bundle).codes.balanced}))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return text_bundle(tmp_path)


def test_no_prompt_is_the_empty_one(bundle: Bundle) -> None:
    for prompt in (None, "", [], [""], ["", ""]):
        found = asked(bundle, prompt=prompt)
        assert (found.prompt, found.negative_prompt, found.guidance_scale, found.leave_alone) == ("", None, 2.0, None)


def test_a_number_is_no_prompt() -> None:
    with pytest.raises(DdmError, match="prompt is 3; expected text, or a list of texts"):
        asked(fake_bundle(), prompt=3)


def test_prompts_are_taken_in_turn(bundle: Bundle) -> None:
    assert asked(bundle, prompt=["a nurse", "a judge", ""], n=5).prompt == ("a nurse", "a judge", "")
    assert asked(bundle, prompt=("a nurse", "a nurse")).prompt == "a nurse"


def test_images_whose_prompt_has_a_word_are_left_alone(bundle: Bundle) -> None:
    prompts = ["a judge", "a female judge", "a Female nurse"]
    assert asked(bundle, prompt=prompts, n=5, leave_alone=["female"]).leave_alone == ("female",)
    assert left_alone(bundle, prompt=prompts, n=5, leave_alone=["female"]) == (1, 2, 4)
    assert left_alone(bundle, prompt="a judge", leave_alone=["female"]) == ()
    assert left_alone(bundle, prompt="female", leave_alone={"jobs": ["female"]}) == ()
    assert left_alone(bundle, prompt="female", leave_alone={"jobs": ["female"]}, scope="jobs") == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"height": 0}, "height is 0; expected a multiple of"),
        ({"width": 9}, "width is 9; expected a multiple of"),
        ({"prompt": "\ud800"}, "prompt is .*Unicode"),
        ({"prompt": ["a nurse", 3]}, "prompt is 3; expected text"),
        ({"prompt": b"a nurse"}, "prompt is 97; expected text"),
        ({"negative_prompt": "\udcff"}, "negative_prompt is .*Unicode"),
        ({"negative_prompt": 3}, "negative_prompt is 3; expected text"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_interval": (0.5, 0.5)}, r"guidance_interval is \(0.5, 0.5\); expected a start below a stop, both"),
        ({"guidance_interval": (0.5, 1.5)}, r"guidance_interval is \(0.5, 1.5\); .* within 0 and 1"),
        ({"guidance_interval": (0.1, 0.2), "num_steps": 4}, r"guidance_interval .*; none of the 4 steps is in it"),
        ({"guidance_interval": 0.5}, "guidance_interval is 0.5; expected numbers: start, stop"),
        (
            {"guidance_interval": (0, float("nan"))},
            r"\(0.0, nan\); expected 2 finite numbers: start, stop",
        ),
        ({"apg": (15,)}, r"apg is \(15.0,\); expected 2 finite numbers: norm, eta"),
        ({"apg": (0, 0)}, r"apg is \(0.0, 0.0\); expected a norm of 1e-06 to"),
        ({"apg": (15, -1)}, r"apg is \(15.0, -1.0\); expected a norm of 1e-06 to"),
        ({"leave_alone": "female"}, "leave_alone is 'female'"),
        ({"leave_alone": ["female"], "codes": [0]}, "leave_alone .*codes are given"),
        ({"leave_alone": ["female"], "balance": Balance.ON}, 'leave_alone .*balance is "on"'),
    ],
)
def test_what_cannot_be_asked(bundle: Bundle, options: dict[str, Any], said: str) -> None:
    with pytest.raises(DdmError, match=said):
        asked(bundle, **options)


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "guidance_scale", "leave_alone"])
def test_a_prompt_free_bundle_takes_no_text(field: str) -> None:
    with pytest.raises(DdmError, match=f"{field} is .*prompt-free"):
        asked(fake_bundle(), **{field: {"guidance_scale": 3.0, "leave_alone": ["female"]}.get(field, "a nurse")})
    found = asked(fake_bundle())
    assert (found.prompt, found.negative_prompt, found.guidance_scale, found.leave_alone) == (None,) * 4


def test_what_stands_in_for_no_prompt(tmp_path: Path) -> None:
    plain, sd, sdxl = fake_bundle(), text_bundle(tmp_path / "sd"), text_bundle(tmp_path / "sdxl", sized=True)
    assert [null_text(bundle.config, None) for bundle in (plain, sd, sdxl)] == [None, "", None]
    for bundle in (sd, sdxl):
        assert [null_text(bundle.config, text) for text in ("", "blurry")] == ["", "blurry"]


def test_joint_guidance_where_nobody_sets_the_codes(tmp_path: Path) -> None:
    joint, apart = text_bundle(tmp_path), text_bundle(tmp_path, indicator_guidance_scale=2.0)
    assert indicator_guidance(joint.config, None, 6.0) == 6.0
    assert indicator_guidance(joint.config, 3.0, 6.0) == 3.0
    assert indicator_guidance(apart.config, None, 6.0) == 2.0
    with pytest.raises(DdmError, match="indicator_guidance_scale is -1"):
        indicator_guidance(joint.config, -1, 6.0)
    with pytest.raises(BundleError, match=r"sampling\.indicator_guidance_scale"):
        indicator_guidance(fake_bundle(indicator_guidance_scale=None).config, None, None)


def recorded(**request: Any) -> ResolvedRequest:
    settings = {"n": 2, "seed": 0, "balance": "auto", "height": 8, "width": 8, "eta": 0.0, "clip": None}
    return ResolvedRequest(**settings, indicator_guidance_scale=1.0, indicator_scale=1.0, **request)


def test_texts_of_a_manifest(bundle: Bundle) -> None:
    one, several = (recorded(prompt=prompt, guidance_scale=2.0) for prompt in ("a nurse", ("a nurse", "a judge")))
    assert texts_of(bundle, one, [None, None]) == ["a nurse", "a nurse"]
    assert texts_of(bundle, several, ["a judge", "a nurse"]) == ["a judge", "a nurse"]
    assert texts_of(fake_bundle(), recorded(), [None]) == [None]


def test_manifests_of_another_kind_of_bundle(bundle: Bundle) -> None:
    text, none = recorded(prompt="a nurse", guidance_scale=2.0), recorded()
    several = recorded(prompt=("a nurse", "a judge"), guidance_scale=2.0)
    for where, request, images, field in (
        (bundle, none, [None], "request.prompt: expected one"),
        (bundle, recorded(prompt="a nurse"), [None], "request.guidance_scale: expected one"),
        (bundle, several, ["a nurse", None], "images.1.prompt: expected text"),
        (fake_bundle(), text, [None], "request.prompt: expected none"),
        (fake_bundle(), recorded(guidance_scale=2.0), [None], "request.guidance_scale: expected none"),
        (fake_bundle(), none, [None, "a nurse"], "images.1.prompt: expected none"),
    ):
        with pytest.raises(DdmError, match=f"manifest: field {field}"):
            texts_of(where, request, images)


def test_a_calibration_knows_every_setting() -> None:
    """A setting that it didn't know could change the images that it stands for, and nobody would say so."""
    assert {*SETTINGS} <= {*Settings.model_fields}


def test_a_manifest_holds_every_field_that_images_depend_on() -> None:
    """A new field of `Request` goes into `ResolvedRequest` too, or stands here, with what becomes of it."""
    elsewhere = {
        "num_steps",  # a field of the manifest itself
        "sampler",  # the same
        "target",  # the same
        "allow_stale",  # decides whether there are images, not which
    }
    assert {field.name for field in dataclasses.fields(Request)} - elsewhere <= set(ResolvedRequest.model_fields)
