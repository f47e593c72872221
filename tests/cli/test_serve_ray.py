"""`ddm-rt serve --replicas`: a process that starts them, answers, and leaves none behind; and what it refuses."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_processes
from http_server import GENERATIONS
from patience import PATIENCE_S

Command = Callable[..., Any]


@contextlib.contextmanager
def process(log: Path, *arguments: object) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    line = [sys.executable, "-P", "-m", "ddm_rt.cli", "serve", "digits", "--port", "0", *map(str, arguments)]
    with log.open("w") as told:
        started = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=told, text=True)
    assert started.stdout is not None
    try:
        assert started.stdout.readline() == "digits is served\n", log.read_text()
        yield started, started.stdout.readline().removeprefix("look at: ").strip().rstrip("/")
    finally:
        started.kill()
        started.wait()


@pytest.mark.slow  # Ray takes most of a minute to start where other tests share the cores
def test_replicas_are_served_until_sigterm(tmp_path: Path) -> None:
    import httpx2

    log, ledger = tmp_path / "log", tmp_path / "counts.ledger"
    options = ("--replicas", 1, "--cpus", 0.5, "--threads", 1, "--backend", "onnxruntime", "--ledger", ledger)
    with process(log, *options) as (server, url):
        reply = httpx2.post(url + GENERATIONS, json={"n": 2, "steps": 4}, timeout=300, trust_env=False).json()
        assert [image["position"] for image in reply["manifest"]["images"]] == [0, 1]
        assert ray_processes.pids("ray::ServeReplica:")
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0
        assert not ray_processes.pids("ray::")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["status"] for line in lines if line["message"] == "request"] == [200]


def test_what_is_refused(ddm_rt: Command) -> None:
    for arguments, reason in (
        (("--max-replicas", 2), "this option needs --replicas"),
        (("--ray-address", "auto"), "this option needs --replicas or --gpus"),
        (("--ray-dashboard",), "this option needs --replicas or --gpus"),
        (("--replicas", 3, "--max-replicas", 2), "expected at least replicas, 3"),
        (("--replicas", 2, "--target-ongoing", 0), "field target_ongoing"),
        (("--replicas", 2, "--cpus", -1), "field cpus"),
        (("--gpus", "some"), "--gpus is 'some'; expected all, or a number of GPUs"),
        (("--gpus", "9" * 5000), "expected all, or a number of GPUs"),
        (("--gpus", 0), "--gpus is '0'; expected all, or a number of GPUs"),
        (("--gpus", "all", "--replicas", 2), "this option can't go with --gpus"),
        (("--gpus", 2, "--gpus-per-replica", 1), "this option can't go with --gpus"),
        (("--gpus-per-replica", 1), "this option needs --replicas"),
        (("--gpus", "all", "--backend", "openvino"), "backend openvino takes no GPU"),
        (("--replicas", 2, "--backend", "tensorrt"), "backend tensorrt takes a GPU, and the replicas reserve none"),
    ):
        assert reason in ddm_rt("serve", "digits", *arguments).refusal()


@pytest.mark.slow(reason="starts Ray")
def test_gpus_that_this_machine_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = [sys.executable, "-m", "ddm_rt.cli", "serve", "digits", "--port", "0", "--gpus", "all"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 2
    assert [line for line in ended.stderr.splitlines() if "error" in line] == [
        "error: gpus is all; Ray finds no free GPU; nvidia-smi and CUDA_VISIBLE_DEVICES say what it sees"
    ]
