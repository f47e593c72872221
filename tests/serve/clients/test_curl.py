"""curl, as one types it."""

import json
import subprocess

import pytest
from patience import PATIENCE_S
from toolchain import needs

pytestmark = [pytest.mark.slow(reason="starts a server, which nothing shorter shows"), needs("curl")]

BODY = {"model": "gpt-image-1", "prompt": "a digit", "size": "1024x1024"}


def _curl(url: str, *more: str, body: object = BODY) -> str:
    line = [
        "curl",
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        f"{url}/images/generations",
        "--data",
        json.dumps(body),
    ]
    done = subprocess.run([*line, *more], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
def test_it_gets_an_image(url: str, kind: str) -> None:
    answer = json.loads(_curl(url, "--header", f"Content-Type: {kind}", "--header", "Authorization: Bearer none"))
    assert answer["size"] == "1024x1024"
    assert answer["data"][0]["b64_json"]


def test_it_reads_the_stream(url: str) -> None:
    body = BODY | {"n": 2, "stream": True}
    said = _curl(url, "--no-buffer", "--header", "Content-Type: application/json", body=body)
    lines = [line for line in said.splitlines() if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [event["type"] for event in events] == ["image_generation.completed"] * 2


def test_it_is_told_of_the_header_that_it_forgot(url: str) -> None:
    """Without one, curl says that it sends a form."""
    error = json.loads(_curl(url))["error"]
    assert "Content-Type" in error["message"]
    assert "application/json" in error["message"]
