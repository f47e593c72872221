"""litellm, its proxy, and LangChain, with their defaults, in an environment of their own."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from patience import PATIENCE_S, settled

pytestmark = pytest.mark.slow(reason="installs litellm's proxy and LangChain")

HERE = Path(__file__).parent
KEY = "sk-a-key-of-this-test-0123456789abcdef"  # without one the proxy doesn't start
START_S = 600.0  # litellm imports for a minute on a busy machine
# It asks GitHub for prices otherwise.
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY}


def _said(python: Path, program: str, url: str) -> Any:
    """What a program prints last, once it ends well."""
    line = [str(python), str(HERE / program), url]
    done = subprocess.run(line, capture_output=True, text=True, timeout=START_S, env=os.environ | OFFLINE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_litellm_s_sdk(other_python: Path, url: str) -> None:
    asked = (1, 2, 1)
    expected = [
        [model, n, model.startswith("dall-e"), 0] for model in ("gpt-image-1", "dall-e-2", "dall-e-3") for n in asked
    ]
    assert _said(other_python, "litellm_sdk.py", url) == [*expected, ["digits", 1, False, 0]]


def test_langchain_s_wrapper_and_tool(other_python: Path, url: str) -> None:
    """It reads `url` alone, which only a model that is called dall-e-... gives without being asked."""
    places = _said(other_python, "langchain_dalle.py", url)
    assert len(set(places)) == 4
    for place in places:
        answer = httpx2.get(place, trust_env=False)
        assert answer.headers["content-type"] == "image/png"


@pytest.fixture(scope="module")
def proxy(other_python: Path, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """litellm's proxy before the server."""
    folder = tmp_path_factory.mktemp("proxy")
    names = ("digits", "gpt-image-1", "dall-e-2")
    models = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": url, "api_key": "none"}}
        for name in names
    ]
    (folder / "config.yaml").write_text(json.dumps({"model_list": models}))  # JSON is YAML
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    line = [
        str(other_python.with_name("litellm")),
        "--config",
        "config.yaml",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(line, cwd=folder, stdout=log, stderr=log, env=os.environ | OFFLINE) as started,
    ):
        client = httpx2.Client(
            base_url=f"http://127.0.0.1:{port}/v1",
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=PATIENCE_S,
            trust_env=False,
        )
        try:
            settled(lambda: _answers(client) or started.poll() is not None, START_S)
            assert _answers(client), (folder / "log").read_text()[-2000:]
            yield client
        finally:
            client.close()
            started.terminate()


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("models").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize("model", ["digits", "gpt-image-1", "dall-e-2"])
def test_litellm_s_proxy(proxy: httpx2.Client, model: str) -> None:
    answer = proxy.post("images/generations", json={"model": model, "prompt": "a digit"})
    assert answer.status_code == 200, answer.text
    [image] = answer.json()["data"]
    assert image["url" if model == "dall-e-2" else "b64_json"]


def test_litellm_s_proxy_takes_what_openai_has(proxy: httpx2.Client) -> None:
    body = {"model": "gpt-image-1", "prompt": "a digit", "n": 2, "size": "1024x1024", "quality": "auto"}
    answer = proxy.post("images/generations", json=body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2


def test_litellm_s_proxy_does_not_stream_images(proxy: httpx2.Client) -> None:
    """A limit of the proxy: once it streams, docs/pages/guides/clients.md is to say so."""
    answer = proxy.post("images/generations", json={"model": "digits", "prompt": "a digit", "stream": True})
    assert "image_generation.completed" not in answer.text
