"""Requests that no client should send, by the thousand: the server answers every one, and never with 500.

    python benchmarks/malformed.py [-n 10000] [--seed 0] [--results DIR]

The shipped bundle is served on a loopback port. Half of the requests have bodies with wrong fields and values, the
other half are valid requests with bytes changed, cut out or put in, in the head as well as in the body. Counted is how
each one was answered: by status, or "closed" where the server closed the connection without an answer, which it may do
only to a head that never ends. Afterwards a valid request must still be answered.
"""

import argparse
import json
import platform
import random
import re
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import render
from measured_steps import commit
from serving_parts.servers import served
from store import RESULTS, save

from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.settings import HttpSettings, ServeSettings

PATH = "/v1/images/generations"
TIMEOUT_S = 20.0
VALID: dict[str, Any] = {
    "prompt": "",
    "model": "digits",
    "n": 1,
    "size": "32x32",
    "response_format": "b64_json",
    "output_format": "webp",
    "output_compression": 80,
    "stream": False,
    "user": "someone",
    "seed": 7,
    "steps": 1,
    "sampler": "ddim",
    "indicator_guidance_scale": 1.5,
    "target": "code:0=.3,code:1=.7",
    "balance": "auto",
    "scope": "malformed",
    "deadline_s": 30,
}
WRONG: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 3, 2**63, 2**64, 2**200, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "x" * 5000, "\0", "\ud800", "½", "9x9999", "32x32 ", "99999x99999", "NaN", "../../etc", "{}", "on"),
    *("code:0=nan", "code:0=1e999,code:1=1", "code:9=1", "a=b=c", "uniform,uniform", "ddpm", "url", "jpeg"),
    *([], [[]], ["woman"], [1], {}, {"a": 1}, {"prompt": {"prompt": {}}}),
)


def body(rng: random.Random) -> bytes:
    """A body of some fields, some of them wrong, unknown or twice."""
    fields = dict(rng.sample(sorted(VALID.items()), rng.randint(1, len(VALID)))) | {"steps": 1}
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(
            [*VALID, "guidance_scale", "negative_prompt", "leave_alone", "codes", "quality", "\ud800", ""]
        )
        fields[name] = rng.choice(WRONG)
    text = json.dumps(fields)
    if rng.random() < 0.1:
        text = text[:-1] + f", {json.dumps(rng.choice(sorted(VALID)))}: {json.dumps(rng.choice(WRONG))}}}"
    return text.encode()


def head(length: int, path: str = PATH) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}")
    return "\r\n".join((*lines, "Connection: close", "", "")).encode()


def damaged(rng: random.Random, request: bytes) -> bytes:
    """With bytes changed, cut out or put in."""
    content = bytearray(request)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(content))
        change = rng.choice(("flip", "cut", "insert", "double"))
        if change == "flip":
            content[at] ^= 1 << rng.randrange(8)
        elif change == "cut":
            del content[at : at + rng.randint(1, 8)]
        elif change == "insert":
            content[at:at] = rng.randbytes(rng.randint(1, 8))
        else:
            content[at:at] = content[at : at + rng.randint(1, 64)]
        if not content:
            return b"\r\n"
    return bytes(content)


def request_of(number: int, seed: int) -> bytes:
    """Number `number` of the requests of `seed`."""
    rng = random.Random(f"{seed} {number}")
    if number % 2 == 0:
        content = body(rng)
        return head(len(content)) + content
    content = json.dumps(dict(rng.sample(sorted(VALID.items()), 6)) | {"steps": 1}).encode()
    return damaged(rng, head(len(content)) + content)


def send(port: int, request: bytes) -> str:
    """The status of the answer, or "closed". Raises TimeoutError where neither comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        try:
            connection.sendall(request)
            answer = b""
            while part := connection.recv(2**16):
                answer += part
        except ConnectionError:
            return "closed"
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return found[1].decode() if found else "closed"


def measure(n: int, seed: int) -> Counter[str]:
    """How many requests were answered with what. Raises RuntimeError where the server is of no use afterwards."""
    http = HttpSettings(head_s=0.2, body_s=0.2)  # for requests that never end
    pipeline = Pipeline.load("digits", backend="onnxruntime", threads=1)
    with served(pipeline, ServeSettings(max_images=4, max_steps=4), http) as (port, _):
        counts = Counter(send(port, request_of(number, seed)) for number in range(n))
        valid = json.dumps(VALID).encode()
        if (last := send(port, head(len(valid)) + valid)) != "200":
            raise RuntimeError(f"a valid request after all others was answered with {last}")
    return counts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of serving.jsonl and serving.md")
    options = parser.parse_args(arguments)
    counts = measure(options.n, options.seed)
    record = {
        "requests": options.n,
        "seed": options.seed,
        "answers": dict(sorted(counts.items())),
        "server_errors": counts["500"],
        "commit": commit(),
        "python": platform.python_version(),
    }
    save("malformed", record, options.results)
    render.render("serving", options.results)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
