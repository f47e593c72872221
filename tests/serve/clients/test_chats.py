"""What Open WebUI and LibreChat send, in requests of these shapes: neither program runs here.

Open WebUI 0.12.4: `open_webui/routers/images.py`, `image_generations` and `get_image_data`.
LibreChat: `api/app/clients/tools/structured/OpenAIImageTools.js` and `DALLE3.js`, as they were in 2025.
"""

import base64
import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from patience import PATIENCE_S
from PIL import Image

pytestmark = pytest.mark.slow(reason="starts a server, which nothing shorter shows")


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx2.Client]:
    headers = {"Authorization": "Bearer none"}
    with httpx2.Client(base_url=url, headers=headers, timeout=PATIENCE_S, trust_env=False) as client:
        yield client


def _images(client: httpx2.Client, body: dict[str, Any], **query: str) -> list[dict[str, Any]]:
    answer = client.post("images/generations", json=body, params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def _size(content: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(content)).size


@pytest.mark.parametrize("model", ["dall-e-2", "dall-e-3", "digits"])
def test_open_webui_s_shape(client: httpx2.Client, model: str) -> None:
    """Its default is dall-e-2; it asks all but gpt-image for base64."""
    body = {"model": model, "prompt": "a digit", "n": 1, "size": "512x512", "response_format": "b64_json"}
    [image] = _images(client, body)
    assert "url" not in image
    assert _size(base64.b64decode(image["b64_json"])) == (512, 512)


def test_open_webui_s_shape_with_gpt_image(client: httpx2.Client) -> None:
    """No format is asked for; the version stands in the query where an administrator gave one."""
    body = {"model": "gpt-image-1", "prompt": "a digit", "n": 2, "size": "auto"}
    images = _images(client, body, **{"api-version": "2025-04-01-preview"})
    assert len(images) == 2
    assert all(_size(base64.b64decode(image["b64_json"])) == (32, 32) for image in images)


def test_librechat_s_image_tool_s_shape(client: httpx2.Client) -> None:
    fixed = {"background": "auto", "output_format": "png", "quality": "auto", "size": "auto"}
    [image] = _images(client, {"model": "gpt-image-1", "prompt": "a digit", "n": 1, **fixed})
    assert _size(base64.b64decode(image["b64_json"])) == (32, 32)
    webp = fixed | {"output_format": "webp", "output_compression": 100}
    [image] = _images(client, {"model": "gpt-image-1", "prompt": "a digit", "n": 1, **webp})
    assert base64.b64decode(image["b64_json"])[8:12] == b"WEBP"


def test_librechat_s_dall_e_tool_s_shape(client: httpx2.Client) -> None:
    """It fetches the address, and names its own file by what the address ends in."""
    fixed = {"quality": "standard", "style": "vivid", "size": "1024x1024", "n": 1}
    [image] = _images(client, {"model": "dall-e-3", "prompt": "a digit", **fixed})
    assert PurePosixPath(urlsplit(image["url"]).path).suffix == ".png"
    answer = httpx2.get(image["url"], trust_env=False)
    assert answer.headers["content-type"] == "image/png"
    assert _size(answer.content) == (1024, 1024)


def test_librechat_s_edit_is_told_that_there_are_none(client: httpx2.Client) -> None:
    form = {"model": "gpt-image-1", "prompt": "a digit", "quality": "auto", "size": "auto"}
    answer = client.post("images/edits", data=form, files={"image[]": ("a.png", b"x", "image/png")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unsupported")
