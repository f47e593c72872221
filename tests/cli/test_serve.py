"""`ddm-rt serve`: a process that says where to look, answers, and ends well; and what it refuses."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from patience import PATIENCE_S

from ddm_rt.bundle import Bundle

GENERATIONS = "/v1/images/generations"
Command = Callable[..., Any]


@contextlib.contextmanager
def process(
    *arguments: object, log: IO[str] | None = None, bundle: object = "digits", name: str = "digits"
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`ddm-rt serve BUNDLE ...` on a free port, and its address; the model has this name."""
    line = [sys.executable, "-P", "-m", "ddm_rt.cli", "serve", str(bundle), "--port", "0", *map(str, arguments)]
    started = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log or subprocess.DEVNULL, text=True)
    assert started.stdout is not None
    try:
        assert started.stdout.readline() == f"{name} is served\n"
        yield started, started.stdout.readline().removeprefix("look at: ").strip().rstrip("/")
    finally:
        started.kill()
        started.wait()


def ask(url: str, body: dict[str, object], **headers: str) -> dict[str, Any]:
    request = urllib.request.Request(url + GENERATIONS, json.dumps(body).encode(), headers)
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        found: dict[str, Any] = json.load(response)
    return found


def test_a_model_has_the_name_of_its_directory_or_the_one_given(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(Bundle.load("digits").path, photos)
    for options, name in (((), "photos"), (("--name", "portraits"), "portraits")):
        with process("--threads", 1, *options, bundle=photos, name=name) as (_, url):
            with urllib.request.urlopen(f"{url}/v1/models", timeout=PATIENCE_S) as reply:
                assert [model["id"] for model in json.load(reply)["data"]] == [name, "digits"]
            for model in (name, "digits"):
                assert ask(url, {"model": model, "steps": 2})["data"]


def test_a_bundle_is_served_until_sigterm(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice alice-0123456789abcdef\n")
    ledger = tmp_path / "counts.ledger"
    with (tmp_path / "log").open("w") as log:
        options = ("--keys", tmp_path / "keys", "--origin", "*", "--ledger", ledger, "--threads", 1)
        with process(*options, log=log) as (server, url):
            body = {"n": 2, "steps": 4, "prompt": ""}
            reply = ask(url, body, Authorization="Bearer alice-0123456789abcdef")
            assert [image["top_code"] for image in reply["data"]] == [0, 1]
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE_S) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    [line] = [line for line in lines if line["message"] == "request"]
    assert (line["key"], line["status"], line["n"]) == ("alice", 200, 2)
    assert not any(line["level"] == "warning" for line in lines)  # a page has no key, so any page may be allowed
    # The next one goes on where this one stopped.
    options = ("--ledger", ledger, "--threads", 1, "--origin", "*")
    with (tmp_path / "log").open("w") as log, process(*options, log=log) as (_, url):
        reply = ask(url, {"steps": 4})
        assert reply["manifest"]["images"][0]["position"] == 2
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    [warning] = [line["message"] for line in lines if line["level"] == "warning"]
    assert "--origin *: any web page may use" in warning


def test_sigterm_lets_a_request_finish() -> None:
    with process("--threads", 1) as (server, url):
        body = json.dumps({"n": 4, "steps": 60, "stream": True, "extra_events": True}).encode()
        request = urllib.request.Request(url + GENERATIONS, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            assert response.readline() == b"event: image_generation.started\n"
            server.send_signal(signal.SIGTERM)
            events = [line for line in response if line.startswith(b"event: ")]
        assert events[-1] == b"event: image_generation.finished\n"
        assert events.count(b"event: image_generation.completed\n") == 4
        assert server.wait(PATIENCE_S) == 0


def test_what_is_refused(ddm_rt: Command, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice short\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, reason in (
            (("--keys", tmp_path / "keys"), "keys: line 1"),
            (("--keys", tmp_path / "none"), "cannot be read"),
            (("--size", "12by8"), "field sizes.0"),
            (("--deadline", "0"), "field deadline_s"),
            (("--groups", "3,8"), "--judge"),
            (("--judge", "digits", "--groups", "3,12"), "'12' is unknown"),
            (("--fsync",), "--ledger"),
            (("--port", taken.getsockname()[1]), "Address already in use"),
        ):
            assert reason in ddm_rt("serve", "digits", *arguments).refusal()


def test_a_bundle_that_is_not_there() -> None:
    line = [sys.executable, "-P", "-m", "ddm_rt.cli", "serve", "nothing", "--port", "0"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: bundle 'nothing'")


def test_help_shows_how(ddm_rt: Command) -> None:
    result = ddm_rt("serve", "--help")
    assert result.code == 0
    assert "ddm-rt serve digits" in result.out
    assert "curl" in result.out


def test_serving_needs_no_training_package_and_no_scipy() -> None:
    code = """
import sys, ddm_rt.cli, ddm_rt.serve.http.app, ddm_rt.serve.http.server
from ddm_rt.sample.pipeline import Pipeline
Pipeline.load("digits", backend="onnxruntime")
print(*{"torch", "diffusers", "transformers", "onnx", "scipy", "sklearn", "matplotlib"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
