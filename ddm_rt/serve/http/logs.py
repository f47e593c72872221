"""Logs as JSON, one object a line."""

import json
import logging
from datetime import UTC, datetime
from typing import Any, TextIO


class JsonLines(logging.Formatter):
    """A record's time, level, logger and message, its `fields` (`extra={"fields": {...}}`), and its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to(stream: TextIO, level: str) -> None:
    """Everything that this process logs, at `level` ("debug", "info", "warning" or "error") and above."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("ddm_rt", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
