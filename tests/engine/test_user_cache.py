"""The cache's secret: one for everybody who makes it at once, and never half of one."""

import threading
from pathlib import Path

import pytest

from ddm_rt.engine import user_cache


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(user_cache.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_signed_here_is_known(cache: Path) -> None:
    assert not user_cache.signed_here(b"content", b"")
    assert not cache.exists(), "asking makes no secret"
    signature = user_cache.sign(b"content")
    assert user_cache.signed_here(b"content", signature)
    assert not user_cache.signed_here(b"other", signature)
    assert (cache / user_cache.SECRET).stat().st_mode & 0o777 == 0o600


def test_processes_that_start_at_once_have_one_secret(cache: Path) -> None:
    signatures: list[bytes] = []
    together = threading.Barrier(8)

    def sign() -> None:
        together.wait()
        signatures.append(user_cache.sign(b"content"))

    threads = [threading.Thread(target=sign) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(signatures) == 8
    assert len(set(signatures)) == 1
    assert [path.name for path in cache.iterdir()] == [user_cache.SECRET]
