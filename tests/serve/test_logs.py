"""Log lines are JSON, whatever is in them."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from ddm_rt.serve.http.server import log_to


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where everything is logged to, until the end of the test."""
    root, names = logging.getLogger(), ("ddm_rt", "uvicorn")
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("", *names)}
    root.handlers.clear()  # so that they are not closed
    yield io.StringIO()
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_a_record_is_one_line(stream: io.StringIO) -> None:
    log_to(stream, "info")
    logger = logging.getLogger("ddm_rt.serve")
    logger.info("two\n%s", "lines", extra={"fields": {"status": 200, "key": "alice"}})
    logger.debug("not asked for")
    logging.getLogger("elsewhere").info("nor this")
    try:
        raise ValueError("half \ud800")
    except ValueError:
        logger.exception("it failed")
    one, other = map(json.loads, stream.getvalue().splitlines())
    assert (one["message"], one["status"], one["key"], one["level"]) == ("two\nlines", 200, "alice", "info")
    assert one["time"].endswith("+00:00")
    assert "ValueError: half" in other["exception"]
