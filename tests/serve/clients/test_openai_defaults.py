"""OpenAI's client for Python with its defaults, under each name that the model has."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from PIL import Image

openai = pytest.importorskip("openai", reason="needs ddm-rt[integration]")

pytestmark = pytest.mark.slow(reason="needs ddm-rt[integration]")


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, http_client=http) as client:
        yield client


@pytest.mark.parametrize("model", [openai.omit, "digits", "gpt-image-1", "dall-e-2", "dall-e-3"])
def test_it_gets_an_image_as_openai_s_model_gives_it(client: Any, model: Any) -> None:
    answer = client.images.generate(model=model, prompt="a digit")
    [image] = answer.data
    by_url = model in ("dall-e-2", "dall-e-3")
    content = httpx2.get(image.url, trust_env=False).content if by_url else base64.b64decode(image.b64_json)
    assert Image.open(io.BytesIO(content)).size == (32, 32)
    assert (image.url is not None, image.b64_json is not None) == (by_url, not by_url)
    assert answer.usage.total_tokens == 0


def test_it_gets_the_size_that_it_asks_for(client: Any) -> None:
    for event in client.images.generate(model="gpt-image-1", prompt="a digit", size="1536x1024", stream=True):
        assert Image.open(io.BytesIO(base64.b64decode(event.b64_json))).size == (1536, 1024)
