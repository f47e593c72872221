"""benchmarks/malformed.py runs, and the server breaks at none of its requests."""

from pathlib import Path

import malformed
import pytest
from store import load


# 300 is slow, as more of what 60 show.
@pytest.mark.parametrize("n", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_no_request_breaks_the_server(tmp_path: Path, n: int) -> None:
    malformed.main(["-n", str(n), "--seed", "1", "--results", str(tmp_path)])
    record = load("malformed", tmp_path)
    assert record is not None
    assert sum(record["answers"].values()) == n
    assert set(record["answers"]) <= {"200", "400", "404", "405", "408", "413", "415", "421", "closed"}
    assert record["server_errors"] == 0


def test_the_same_seed_is_the_same_requests() -> None:
    assert [malformed.request_of(i, 3) for i in range(20)] == [malformed.request_of(i, 3) for i in range(20)]
    assert malformed.request_of(0, 3) != malformed.request_of(0, 4)
