"""Load on replicas behind HTTP, and what must be true of its replies, whatever was killed meanwhile."""

import base64
import io
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx2
import numpy as np
from http_server import GENERATIONS, Running
from patience import settled
from PIL import Image

from ddm_rt.sample.balance.ledger import Stream
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.serve.cluster.front import Front

CLIENTS = 4
STEPS = 60
PATIENCE_S = 900  # nothing takes that long, save on a machine that stands still meanwhile


def load(server: Running, scope: str, requests: int, event: Callable[[], None]) -> list[dict[str, Any]]:
    """Replies to `requests` requests of each client; `event` comes once some have been answered, and images of others
    are under way in both replicas.
    """
    front = server.scheduler
    assert isinstance(front, Front)

    def both_work() -> bool:
        return all(stats.occupied for _, stats in front._handle.broadcast("stats").results(timeout_s=PATIENCE_S))

    replies: list[dict[str, Any]] = []
    problems: list[object] = []
    lock = threading.Lock()

    def ask(client: int) -> None:
        with httpx2.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as connection:
            for number in range(requests):
                n = 1 + (client + number) % 3
                response = connection.post(GENERATIONS, json={"n": n, "steps": STEPS, "scope": scope})
                with lock:
                    if response.status_code != 200 or len(response.json()["data"]) != n:
                        problems.append((response.status_code, response.text[:300]))
                        continue
                    replies.append(response.json())

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    assert settled(lambda: problems or (len(replies) >= CLIENTS and both_work()), PATIENCE_S)
    event()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not problems
    assert len(replies) == CLIENTS * requests
    return replies


def check_balance(front: Front, scope: str, replies: list[dict[str, Any]]) -> None:
    """Every position was handed out once, with the code that the quota gives it: the bound of one scheduler holds."""
    images = [image for reply in replies for image in reply["manifest"]["images"]]
    drawn = Pipeline.load("digits", backend="onnxruntime", threads=1)
    with drawn.prepare(Request(n=len(images), scope="reference")) as reference:
        codes = [image.code for image in reference.manifest.images]
    assert {image["position"]: image["code"] for image in images} == dict(enumerate(codes))
    assert len(images) == len(codes)
    counts = front.pipeline.ledger.counts(Stream(front.pipeline.bundle.bundle_id, scope, "uniform"))
    assert (counts.leased.total(), counts.pooled.total()) == (0, 0)
    assert counts.done == Counter(codes)
    tops = Counter(image["top_code"] for image in images)
    assert all(abs(count - len(images) / len(tops)) < 1 for count in tops.values())


def check_bytes(alone: Pipeline, replies: list[dict[str, Any]]) -> None:
    for reply in replies:
        request, codes = reply["manifest"]["request"], [image["code"] for image in reply["manifest"]["images"]]
        expected = alone.generate(n=len(codes), seed=request["seed"], codes=codes, num_steps=STEPS).images
        for item, image in zip(reply["data"], expected, strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).convert("RGB"))
            assert np.array_equal(pixels, image)
