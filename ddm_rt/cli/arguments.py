"""Arguments that hold more than one value: FIELD=VALUE, NAME=PATH."""

import json
from pathlib import Path
from typing import Any

from ddm_rt.errors import DdmError


def assignment(text: str) -> tuple[str, Any]:
    """FIELD=VALUE, the value as JSON where it is some. Raises DdmError without a sign between them."""
    name, sign, value = text.partition("=")
    if not sign:
        raise DdmError(f"--set {text!r}: expected FIELD=VALUE, for example train.batch_size=32")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def named(text: str) -> tuple[str, Path]:
    """NAME=PATH, or a path that gives its own last part as the name."""
    name, sign, path = text.partition("=")
    return (name, Path(path)) if sign else (Path(text).name, Path(text))
