"""What a request's body becomes, and which field an error names."""

from dataclasses import replace
from typing import Any

import pytest
from fake_engine import fake_bundle
from pydantic import ValidationError

from ddm_rt.bundle import Bundle
from ddm_rt.sample.request import Request
from ddm_rt.serve.http.errors import Failure
from ddm_rt.serve.http.schema import ImageRequest, sizes_of
from ddm_rt.serve.settings import HttpSettings


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return fake_bundle()


def asked(bundle: Bundle, http: HttpSettings | None = None, **body: object) -> Request:
    return ImageRequest.model_validate(body).asked(bundle, http or HttpSettings())


def test_an_empty_body_asks_for_one_image_of_the_bundle_s_own_kind(bundle: Bundle) -> None:
    one, other = asked(bundle), asked(bundle)
    assert one.n == 1
    assert (one.width, one.height) == (8, 8)
    assert one.seed != other.seed  # so that two calls are not the same image
    assert one.scope == "default"


def test_ours_and_openai_s_fields_reach_the_pipeline(bundle: Bundle) -> None:
    body = {
        "prompt": "",
        "n": 3,
        "size": "12x8",
        "model": "fake",
        "user": "someone",
        "seed": 2**64 - 1,
        "steps": 7,
        "sampler": "euler",
        "indicator_guidance_scale": 2,
        "target": "code:0=.3,code:1=.7",
        "scope": "campaign",
        "leave_alone": ["woman"],
        "guidance_interval": [0, 0.5],
        "apg": [15, 0],
        "cache": 5,
    }
    found = asked(bundle, HttpSettings(sizes=("12x8",)), **body)
    assert (found.width, found.height) == (12, 8)
    assert found.num_steps == 7
    assert found.seed == 2**64 - 1
    assert found.scope == "campaign"
    assert found.leave_alone == ["woman"]
    assert (found.guidance_interval, found.apg, found.cache) == ([0, 0.5], [15, 0], 5)
    assert [asked(bundle, cache=each).cache for each in ("auto", "off", None)] == ["auto", "off", None]


def test_a_null_is_as_a_field_left_out_save_for_the_scope(bundle: Bundle) -> None:
    names = ("prompt", "n", "size", "seed", "steps", "sampler", "negative_prompt", "stream", "user", "deadline_s")
    nulls = asked(bundle, **dict.fromkeys(names))
    assert replace(nulls, seed=0) == replace(asked(bundle), seed=0)
    assert asked(bundle, scope=None).scope is None


def test_requests_without_quota_get_no_scope_unasked(bundle: Bundle) -> None:
    assert asked(bundle, balance="off").scope is None
    assert asked(fake_bundle(num_codes=0)).scope is None
    assert asked(bundle, HttpSettings(scope=None)).scope is None


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"model": "dall-e-3"}, "model", 404),
        ({"size": "1024x1024"}, "size", 400),
        ({"output_compression": 50}, "output_compression", 400),
    ],
)
def test_what_this_server_has_not_got(bundle: Bundle, body: dict[str, object], param: str, status: int) -> None:
    with pytest.raises(Failure) as caught:
        asked(bundle, **body)
    assert (caught.value.param, caught.value.status) == (param, status)


@pytest.mark.parametrize(
    "body",
    [
        {"n": 0},
        {"n": True},
        {"n": "many"},
        {"size": "8"},
        {"size": "8x8\n"},
        {"size": "٨x٨"},
        {"seed": -1},
        {"seed": 2**64},
        {"steps": 0},
        {"guidance_scale": float("nan")},
        {"indicator_guidance_scale": float("inf")},
        {"partial_images": 4},
        {"leave_alone": [""]},
        {"guidance_interval": [0.2]},
        {"guidance_interval": [0.2, 1.2]},
        {"apg": 15},
        {"cache": 1},
        {"cache": "8"},
        {"cache": {"steps": [0, 9], "rows": []}},
        {"apg": ["15", "0"]},
        {"deadline_s": 0},
        {"quality": "best"},
        {"background": "transparent"},
        {"n_images": 3},
        {"prompt": "x" * 32_001},
    ],
)
def test_what_is_no_request(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        ImageRequest.model_validate(body)
    assert caught.value.errors()[0]["loc"][0] == next(iter(body))


def test_a_prompt_is_dropped_only_where_the_bundle_takes_none(bundle: Bundle) -> None:
    assert asked(bundle, prompt="a dog").prompt is None
    assert asked(bundle, HttpSettings(strict_prompt=True), prompt="a dog").prompt == "a dog"  # the pipeline says no
    assert asked(fake_bundle(prompt_free=False), prompt="a dog").prompt == "a dog"


def test_a_model_has_the_name_that_it_is_served_by(bundle: Bundle) -> None:
    http = HttpSettings(name="photos", model_aliases=("dall-e-2",))
    for name in ("photos", "fake", "dall-e-2"):  # "fake" is the name in the bundle's configuration
        assert asked(bundle, http, model=name)
    with pytest.raises(Failure, match="this server has 'photos', 'fake', 'dall-e-2'"):
        asked(bundle, http, model="dall-e-3")


def test_a_model_has_other_names(bundle: Bundle) -> None:
    http = HttpSettings(model_aliases=("gpt-image-1", "dall-e-2"))
    for name in ("gpt-image-1", "dall-e-2", None):
        assert asked(bundle, http, model=name)
    with pytest.raises(Failure, match="this server has 'fake', 'gpt-image-1', 'dall-e-2'"):
        asked(bundle, http, model="dall-e-3")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "b64_json"),
        ({"model": "gpt-image-1"}, "b64_json"),
        ({"model": "dall-e-2"}, "url"),
        ({"model": "dall-e-2", "response_format": "b64_json"}, "b64_json"),
        ({"response_format": "url"}, "url"),
    ],
)
def test_images_come_as_openai_s_model_has_them(body: dict[str, Any], expected: str) -> None:
    assert ImageRequest.model_validate(body).answers_with == expected


@pytest.mark.parametrize(
    ("size", "made"),
    [
        ("1024x1024", "16x16"),
        ("1536x1024", "12x8"),
        ("64x64", "16x16"),
        ("12x8", "12x8"),
        (None, "8x8"),
        ("auto", "8x8"),
        ("1x2048", "16x16"),
    ],
)
def test_the_nearest_size_is_made_and_scaled(bundle: Bundle, size: str | None, made: str) -> None:
    http = HttpSettings(sizes=("12x8", "16x16"), resize=True)
    body = ImageRequest(size=size)
    request = body.asked(bundle, http)
    assert f"{request.width}x{request.height}" == made
    scaled = body.scaled_to(bundle, http)
    assert scaled == (None if size in (None, "auto", made) else tuple(map(int, str(size).split("x"))))


def test_a_picture_is_not_scaled_to_any_length(bundle: Bundle) -> None:
    with pytest.raises(Failure, match="at most 3840 a side"):
        asked(bundle, HttpSettings(resize=True), size="3841x1")


def test_sizes_are_listed_once(bundle: Bundle) -> None:
    assert sizes_of(bundle, HttpSettings(sizes=("12x8", "8x8", "12x8"))) == ("8x8", "12x8")
