"""Clients that run on node, with their defaults."""

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest
from patience import PATIENCE_S
from toolchain import needs

pytestmark = [pytest.mark.slow(reason="installs clients from npm"), needs("nodejs", "npm")]


def _said(folder: Path, program: str, url: str) -> Any:
    """What a program prints, once it ends well."""
    line = ["node", program, url]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_openai_s_client(node_modules: Path, url: str) -> None:
    found = _said(node_modules, "openai_client.mjs", url)
    for model, got in found["models"].items():
        assert got["url"] == model.startswith("dall-e")
        assert got["b64"] != got["url"]
        assert (got["tokens"], got["size"]) == (0, "32x32")
    assert [event["type"] for event in found["streamed"]] == ["image_generation.completed"] * 2
    assert all(event["bytes"] > 1000 for event in found["streamed"])
    for status, code, message in found["refused"]:
        assert (status, code) == (404, "unsupported")
        assert "neither edits nor varies" in message


def test_vercel_s_ai_sdk(node_modules: Path, url: str) -> None:
    images = _said(node_modules, "vercel_ai.mjs", url)
    assert [(image["provider"], image["name"]) for image in images[::2]] == [
        (provider, name)
        for provider in ("openai", "compatible")
        for name in ("digits", "gpt-image-1", "dall-e-2", "dall-e-3")
    ]
    for one, two in zip(images[::2], images[1::2], strict=True):
        assert one["types"] == ["image/png"]
        assert two["types"] == ["image/png"] * 2
        assert one["warnings"] == two["warnings"] == []
    # One provider passes the scope on. The other drops what OpenAI doesn't have.
    for scope, expected in (("compatible", 1), ("openai", 0)):
        found = httpx2.get(f"{url}/balance", params={"scope": scope}, trust_env=False).json()["data"]
        assert sum(stream["assigned"]["done"] for stream in found) == expected
