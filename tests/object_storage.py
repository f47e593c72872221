"""Object storage on this machine: moto's server in a process of its own, and a bucket."""

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from patience import settled

BUCKET = "bucket"


@dataclass
class Storage:
    url: str

    @property
    def environment(self) -> dict[str, str]:
        """By which clients find it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "no_proxy": "*",
        }

    @cached_property
    def client(self) -> Any:
        import s3fs

        return s3fs.S3FileSystem(
            key="tests",
            secret="secret",
            endpoint_url=self.url,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"proxies": {}},
        )

    def contents(self, prefix: str) -> dict[str, bytes]:
        """Every object below a prefix of the bucket, by its name."""
        root = f"{BUCKET}/{prefix}"
        client = self.client
        return {key.removeprefix(f"{root}/"): client.cat_file(key) for key in client.find(root)}

    def recorded(self, prefix: str) -> int:
        """How many shards the manifest lists. 0 too where it is just being written: moto removes the old one first."""
        try:
            return len(json.loads(self.client.cat_file(f"{BUCKET}/{prefix}/manifest.json"))["shards"])
        except FileNotFoundError:
            return 0

    def refuse_strangers(self) -> None:
        """From here on only credentials that were made by IAM are good, and there are none."""
        request = urllib.request.Request(
            f"{self.url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}, method="POST"
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request):
            pass


@contextmanager
def storage() -> Iterator[Storage]:
    """A store that holds an empty bucket."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            server = subprocess.Popen(
                [sys.executable, "-c", "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"],
                stdout=file,
                stderr=file,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        try:
            found = Storage(_url(server, log))
            found.client.mkdir(BUCKET)
            yield found
        finally:
            server.kill()
            server.wait()


def _url(server: "subprocess.Popen[bytes]", log: Path) -> str:
    """It says on which port it listens."""

    def said() -> re.Match[str] | None:
        return re.search(r"Running on (http://127\.0\.0\.1:\d+)\s", log.read_text())

    settled(lambda: said() or server.poll() is not None)
    found = said()
    assert found is not None, log.read_text()
    return found[1]
