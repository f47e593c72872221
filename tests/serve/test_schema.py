"""What a request's body becomes, and which field an error names."""

from dataclasses import replace

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
    }
    found = asked(bundle, HttpSettings(sizes=("12x8",)), **body)
    assert (found.width, found.height) == (12, 8)
    assert found.num_steps == 7
    assert found.seed == 2**64 - 1
    assert found.scope == "campaign"
    assert found.leave_alone == ["woman"]


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
        {"partial_images": 2},
        {"leave_alone": [""]},
        {"deadline_s": 0},
        {"quality": "hd"},
        {"n_images": 3},
        {"prompt": "x" * 32_001},
    ],
)
def test_what_is_no_request(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        ImageRequest.model_validate(body)
    assert caught.value.errors()[0]["loc"][0] == next(iter(body))


def test_a_prompt_is_dropped_only_where_the_bundle_takes_none(bundle: Bundle) -> None:
    ignoring = HttpSettings(ignore_prompt=True)
    assert asked(bundle, ignoring, prompt="a dog").prompt is None
    assert asked(bundle, prompt="a dog").prompt == "a dog"  # the pipeline says no
    assert asked(fake_bundle(prompt_free=False), ignoring, prompt="a dog").prompt == "a dog"


def test_sizes_are_listed_once(bundle: Bundle) -> None:
    assert sizes_of(bundle, HttpSettings(sizes=("12x8", "8x8", "12x8"))) == ("8x8", "12x8")
