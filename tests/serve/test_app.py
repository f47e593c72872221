"""The HTTP interface without a network: what is answered to what."""

import base64
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from fastapi.testclient import TestClient
from http_server import GENERATIONS, SlowEngine, client_of, fake_pipeline
from PIL import Image

from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.http.keys import Keys
from ddm_rt.serve.settings import HttpSettings, ServeSettings

KEY = "alice-0123456789abcdef"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(fake_pipeline(), http=HttpSettings(sizes=("12x8",))) as client:
        yield client


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def test_images_are_those_of_the_pipeline_and_come_with_their_manifest(client: TestClient) -> None:
    response = client.post(GENERATIONS, json={"n": 3, "seed": 5, "scope": None})
    assert response.status_code == 200
    reply = response.json()
    generation = fake_pipeline().generate(n=3, seed=5)
    assert reply["manifest"] == generation.manifest
    assert [item["code"] for item in reply["data"]] == list(generation.codes)
    for item, image in zip(reply["data"], generation.images, strict=True):
        assert np.array_equal(pixels(base64.b64decode(item["b64_json"])), image)
        assert "url" not in item
    assert (reply["size"], reply["output_format"]) == ("8x8", "png")


def test_sizes_and_formats(client: TestClient) -> None:
    for kind in ("png", "webp", "jpeg"):
        reply = client.post(GENERATIONS, json={"size": "12x8", "output_format": kind}).json()
        assert reply["size"] == "12x8"
        content = base64.b64decode(reply["data"][0]["b64_json"])
        assert Image.open(io.BytesIO(content)).format == kind.upper()
        assert pixels(content).shape == (8, 12, 3)
    small = {"output_format": "jpeg", "seed": 1, "output_compression": 1}
    best, worst = (
        len(client.post(GENERATIONS, json=body).json()["data"][0]["b64_json"])
        for body in (small | {"output_compression": 100}, small)
    )
    assert worst < best


def test_urls_are_secrets_that_need_no_key() -> None:
    with client_of(fake_pipeline(), keys=_keys()) as client:
        headers = {"Authorization": f"Bearer {KEY}"}
        body = {"response_format": "url", "seed": 3, "scope": None}
        [item] = client.post(GENERATIONS, json=body, headers=headers).json()["data"]
        assert "b64_json" not in item
        assert len(item["url"].rsplit("/", 1)[1]) >= 43  # 256 bits
        picture = client.get(item["url"])
        assert picture.headers["content-type"] == "image/png"
        assert np.array_equal(pixels(picture.content), fake_pipeline().generate(seed=3).images[0])
        for name in ("00000.png", "..%2f..%2fbundle.json", item["url"][-42:]):
            error_of(client.get(f"/images/{name}"), 404)


def test_a_stream_tells_progress_images_and_the_manifest() -> None:
    with client_of(fake_pipeline(SlowEngine(0.06)), ServeSettings(slots=2)) as client:
        response = client.post(
            GENERATIONS, json={"n": 3, "seed": 5, "stream": True, "extra_events": True, "scope": None}
        )
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [dict(line.split(": ", 1) for line in block.split("\n")) for block in response.text.strip().split("\n\n")]
    told = [(event["event"], json.loads(event["data"])) for event in events]
    assert all(data["type"] == name for name, data in told)
    names = [name.removeprefix("image_generation.") for name, _ in told]
    assert names[0] == "started"
    assert names[-1] == "finished"
    assert names.count("completed") == 3
    assert "progress" in names
    generation = fake_pipeline().generate(n=3, seed=5)
    assert told[-1][1]["manifest"] == generation.manifest
    for name, data in told:
        if name == "image_generation.completed":
            index = data["index"]
            assert np.array_equal(pixels(base64.b64decode(data["b64_json"])), generation.images[index])
            assert told[0][1]["images"][index] == {key: data[key] for key in ("index", "seed", "code", "top_code")}


def test_single_images_are_balanced_over_requests() -> None:
    with client_of(fake_pipeline()) as client:
        for _ in range(10):
            assert client.post(GENERATIONS, json={}).status_code == 200
        [stream] = client.get("/v1/balance").json()["data"]
        assert stream["scope"] == "default"
        assert stream["assigned"] == {"issued": 10, "done": 10, "in_progress": 0, "pooled": 0}
        assert [top["done"] for top in stream["top_codes"]] == [5, 5]
        assert stream["measured"] is None
        assert client.get("/v1/balance", params={"scope": "other"}).json()["data"] == []


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 65}, "n", "invalid_value"),
        ({"steps": 201}, "steps", "invalid_value"),
        ({"size": "10x10"}, "size", "invalid_value"),
        ({"negative_prompt": "a dog"}, "negative_prompt", "invalid_value"),
        ({"guidance_scale": 3.0}, "guidance_scale", "invalid_value"),
        ({"target": "left=.5,right=.5"}, "target", "invalid_value"),
        ({"target": "code:9=1"}, "target", "invalid_value"),
        ({"scope": ""}, "scope", "invalid_value"),
        ({"balance": "off", "target": "code:0=1"}, "target", "invalid_value"),
        ({"quality": "best"}, "quality", "invalid_value"),
        ({"qualities": "hd"}, "qualities", "unknown_parameter"),
        ({"\ud800": 1}, None, "invalid_value"),
    ],
)
def test_a_bad_request_is_told_its_field(
    client: TestClient, body: dict[str, Any], param: str | None, code: str
) -> None:
    content = json.dumps(body)
    response = client.post(GENERATIONS, content=content, headers={"Content-Type": "application/json"})
    error = error_of(response, 400)
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 5000, b'{"n": 1e999}', b'{"seed":' + b"9" * 5000 + b"}"]
)
def test_what_is_not_json_is_a_bad_request(client: TestClient, content: bytes) -> None:
    error_of(client.post(GENERATIONS, content=content, headers={"Content-Type": "application/json"}), 400)


def test_paths_methods_and_models_that_are_not_there(client: TestClient) -> None:
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "not_found"
    response = client.get(GENERATIONS)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    assert error_of(client.post(GENERATIONS, json={"model": "dall-e-3"}), 404)["code"] == "model_not_found"
    assert error_of(client.get("/v1/models/dall-e-3"), 404)["code"] == "model_not_found"
    error_of(client.get("/v1/models/", follow_redirects=False), 404)


def test_models_say_what_can_be_asked_for(client: TestClient) -> None:
    [model] = client.get("/v1/models").json()["data"]
    assert client.get("/v1/models/fake").json() == model
    assert (model["id"], model["prompt_free"], model["sizes"], model["num_steps"]) == ("fake", True, ["8x8", "12x8"], 4)
    assert model["judge"] is None


def test_a_body_that_is_too_long(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    long = b'{"prompt": "' + b"x" * 2**18 + b'"}'
    assert error_of(client.post(GENERATIONS, content=long, headers=headers), 413)["code"] == "body_too_large"
    in_parts = (long[i : i + 1000] for i in range(0, len(long), 1000))
    error_of(client.post(GENERATIONS, content=in_parts, headers=headers), 413)


def _keys() -> Keys:
    import hashlib

    from ddm_rt.serve.http.keys import Caller

    return Keys([(hashlib.sha256(KEY.encode()).digest(), Caller("alice", 1))])


def test_with_keys_everything_but_health_and_the_page_asks_for_one() -> None:
    with client_of(fake_pipeline(), keys=_keys()) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            for path in ("/v1/models", "/v1/models/fake", "/v1/balance", "/metrics"):
                response = client.get(path, headers=headers)
                assert error_of(response, 401)["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
            error_of(client.post(GENERATIONS, json={}, headers=headers), 401)
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_an_ignored_prompt_is_no_error() -> None:
    with client_of(fake_pipeline()) as client:
        answer = client.post(GENERATIONS, json={"prompt": "a dog"})
        assert answer.status_code == 200
        assert "ignored" in answer.headers["x-ddm-warning"]
        assert "x-ddm-warning" not in client.post(GENERATIONS, json={"prompt": ""}).headers
    with client_of(fake_pipeline(), http=HttpSettings(strict_prompt=True)) as client:
        assert error_of(client.post(GENERATIONS, json={"prompt": "a dog"}), 400)["param"] == "prompt"


def test_a_picture_is_scaled_to_the_size_that_was_asked_for() -> None:
    http = HttpSettings(resize=True, model_aliases=("dall-e-2",))
    with client_of(fake_pipeline(), http=http) as client:
        reply = client.post(GENERATIONS, json={"model": "dall-e-2", "size": "256x128", "seed": 1}).json()
        picture = Image.open(io.BytesIO(client.get(reply["data"][0]["url"]).content))
        assert (reply["size"], picture.size) == ("256x128", (256, 128))
        assert (reply["manifest"]["request"]["width"], reply["manifest"]["request"]["height"]) == (8, 8)
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["fake", "dall-e-2"]
        assert client.get("/v1/models/dall-e-2").json()["id"] == "dall-e-2"


def test_a_stream_has_openai_s_events_alone_where_no_others_are_asked_for() -> None:
    with client_of(fake_pipeline()) as client:
        told = client.post(GENERATIONS, json={"n": 2, "stream": True}).text
    assert {line for line in told.splitlines() if line.startswith("event: ")} == {"event: image_generation.completed"}
    assert told.count("event: ") == 2


def test_a_full_queue_and_a_deadline() -> None:
    with client_of(fake_pipeline(SlowEngine(0.05)), ServeSettings(queue=4)) as client:
        response = client.post(GENERATIONS, json={"n": 5})
        assert error_of(response, 400)["param"] == "n"
        error = error_of(client.post(GENERATIONS, json={"deadline_s": 0.06}), 504)
        assert error["code"] == "deadline_exceeded"


def test_the_engine_s_failure_is_the_server_s_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeEngine):
        works = True

        def decoder(self, x0: Any) -> Any:
            if not self.works:
                raise RuntimeError("secret: weights at /somewhere")
            return super().decoder(x0)

    engine = Broken()
    with client_of(fake_pipeline(engine)) as client:
        engine.works = False
        error = error_of(client.post(GENERATIONS, json={}), 500)
        streamed = client.post(GENERATIONS, json={"stream": True})
        assert client.get("/v1/balance").json()["data"][0]["assigned"]["done"] == 0
    assert error["type"] == "server_error"
    assert streamed.status_code == 200
    assert '"server_error"' in streamed.text.split("event: error")[1]
    assert "secret" not in error["message"] + streamed.text
    assert "secret" in caplog.text


def test_a_ledger_that_fails_is_no_mistake_of_the_client(tmp_path: Path) -> None:
    pipeline = fake_pipeline()
    pipeline.ledger.close()
    with client_of(pipeline) as client:
        error = error_of(client.post(GENERATIONS, json={}), 503)
        assert (error["type"], error["code"]) == ("server_error", "ledger_unavailable")
        assert client.post(GENERATIONS, json={"scope": None}).status_code == 200


def test_logs_name_routes_and_keys_and_no_prompts(caplog: pytest.LogCaptureFixture) -> None:
    prompts: list[dict[str, Any]] = []
    for log_prompts in (False, True):
        caplog.clear()
        http = HttpSettings(log_prompts=log_prompts)
        with caplog.at_level(logging.INFO), client_of(fake_pipeline(), http=http, keys=_keys()) as client:
            headers = {"Authorization": f"Bearer {KEY}"}
            client.post(GENERATIONS, json={"prompt": "my own dog", "n": 2}, headers=headers)
            client.get("/images/secret-name")
        lines = [record.fields for record in caplog.records if hasattr(record, "fields")]
        prompts.append(lines[0])
        assert "my own dog" not in caplog.text
        assert {key: lines[0][key] for key in ("method", "route", "status", "key", "n")} == {
            "method": "POST",
            "route": GENERATIONS,
            "status": 200,
            "key": "alice",
            "n": 2,
        }
        assert KEY not in str(lines)
        assert lines[1]["route"] == "/images/{name}"
    assert "prompt" not in prompts[0]
    assert prompts[1]["prompt"] == "my own dog"


def test_other_web_pages_may_call_only_where_it_is_allowed() -> None:
    asks = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    with client_of(fake_pipeline()) as client:
        assert "access-control-allow-origin" not in client.options(GENERATIONS, headers=asks).headers
    with client_of(fake_pipeline(), http=HttpSettings(origins=("https://example.org",))) as client:
        allowed = client.options(GENERATIONS, headers=asks).headers
        assert allowed["access-control-allow-origin"] == "https://example.org"


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"
    assert page.text == client.get("/index.html").text
    for path in ("/app.js", "/style.css"):
        assert client.get(path).status_code == 200
    for path in ("/docs", "/redoc", "/../app.py", "/web/index.html", "/%2e%2e/app.py"):
        assert client.get(path).status_code == 404


def test_what_a_judge_measures(digits_pipeline: Pipeline) -> None:
    from ddm_rt.evaluate.judge import Judge
    from ddm_rt.serve.http.balance import Measured

    measured = Measured(Judge.load("digits"), ("3", "8"))
    with client_of(digits_pipeline, measured=measured) as client:
        reply = client.post(GENERATIONS, json={"n": 4, "steps": 8, "seed": 1}).json()
        groups = [item["group"] for item in reply["data"]]
        streamed = client.post(
            GENERATIONS, json={"n": 2, "steps": 8, "seed": 2, "stream": True, "extra_events": True}
        ).text
        assert '"measured": {"images": 2, ' in streamed
        assert reply["measured"]["images"] == 4
        [stream] = client.get("/v1/balance").json()["data"]
        uneven = client.post(GENERATIONS, json={"n": 4, "steps": 8, "target": "code:0=.25, code:1=0.75"}).json()
        data = client.get("/v1/balance").json()["data"]
        assert {each["target"]: each["measured"]["images"] for each in data} == {
            "uniform": 6,
            "code:0=0.25,code:1=0.75": 4,
        }
        assert uneven["manifest"]["target"] == "code:0=.25, code:1=0.75", "as it was asked for"
        assert client.get("/v1/models").json()["data"][0]["judge"] == {"name": "digits", "groups": ["3", "8"]}
    shares = stream["measured"]
    assert shares["images"] == 6
    assert [share["group"] for share in shares["groups"]] == ["3", "8"]
    for share in shares["groups"]:
        assert share["images"] >= groups.count(share["group"])
        assert 0 <= share["low"] <= share["share"] <= share["high"] <= 1
