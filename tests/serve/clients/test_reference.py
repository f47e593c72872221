"""Each value that OpenAI's own types name today is taken, or is known to be refused."""

import typing
from typing import Any

import httpx2
import pytest
from patience import PATIENCE_S

generate = pytest.importorskip("openai.types.image_generate_params", reason="needs ddm-rt[integration]")

pytestmark = pytest.mark.slow(reason="needs ddm-rt[integration]")

# What this server doesn't make: transparent pictures, animations and drawings.
REFUSED = {("background", "transparent"), ("output_format", "gif"), ("output_format", "svg")}
NOT_HERE = {"frame_count", "frame_duration_ms", "svg"}
# Fields whose values no type lists.
FREE: dict[str, list[Any]] = {
    "prompt": ["a digit"],
    "model": ["gpt-image-1", "dall-e-2", "dall-e-3", None],
    "n": [1, None],
    "output_compression": [100, None],
    "partial_images": [0, 1, 2, 3, None],
    "safety_identifier": ["someone", None],
    "size": ["1536x864", "3840x2160"],
    "user": ["someone"],
}


def _literals(hint: Any) -> list[Any]:
    """The values that a hint lists."""
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [value for part in typing.get_args(hint) for value in _literals(part)]


def test_every_value_of_the_reference_is_taken_or_named_here(url: str) -> None:
    fields = typing.get_type_hints(generate.ImageGenerateParamsBase)
    assert set(fields) > NOT_HERE
    with httpx2.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
        for name in set(fields) - NOT_HERE:
            # OpenAI's partial images come with streams only.
            stream = {"stream": True} if name == "partial_images" else {}
            # Which models there are is the server's own.
            values = [*(_literals(fields[name]) if name != "model" else []), *FREE.get(name, [])]
            assert values, name
            for value in values:
                answer = client.post("images/generations", json={"prompt": "a digit", "steps": 1, name: value} | stream)
                expected = 400 if (name, value) in REFUSED else 200
                assert answer.status_code == expected, (name, value, answer.text[:300])
                if expected == 400:
                    assert answer.json()["error"]["param"] == name
        for name in NOT_HERE:
            answer = client.post("images/generations", json={name: 2})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_parameter")
