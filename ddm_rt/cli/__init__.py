"""The command line: `main` and, by import, its commands."""

import errno
import logging
import sys
from importlib import import_module

from rich.text import Text

from ddm_rt.cli.app import app, errors
from ddm_rt.errors import DdmError

# Files whose commands join the app when they are imported, in the order of `ddm-rt --help`.
_FILES = (
    *("train", "discover", "steer", "export", "demo", "sample", "calibrate", "cache"),
    *("evaluate", "audit", "compare", "serve", "build", "doctor"),
)
for _name in _FILES:
    import_module(f"{__name__}.{_name}")

_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
# What a serving environment does without -> the extra that brings it.
_EXTRAS = dict.fromkeys(
    ("torch", "diffusers", "transformers", "peft", "accelerate", "onnx", "onnxscript", "safetensors", "sklearn"),
    "train",
)
_EXTRAS |= dict.fromkeys(("scipy", "matplotlib", "jinja2"), "evaluate")
_EXTRAS |= dict.fromkeys(("fastapi", "starlette", "uvicorn", "prometheus_client"), "serve")
_EXTRAS |= dict.fromkeys(("ray", "pyarrow"), "ray")
_EXTRAS["s3fs"] = "s3"
_EXTRAS["opentelemetry"] = "otel"


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2, never a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("ddm_rt").setLevel(logging.INFO)  # our own words; onnxscript tells of every node it removes
    try:
        app()
    except DdmError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRAS:
            raise
        _fail(f"the package {package} is not installed; this command needs pip install 'ddm-rt[{_EXTRAS[package]}]'")
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _fail(f"{error.filename or 'writing'}: {error.strerror}; nothing was left half-written")


def _fail(message: str) -> None:
    # Text, not markup: the brackets of a shape are the message's own.
    errors.print(Text.assemble(("error:", "red"), " ", " ".join(message.split())), soft_wrap=True, highlight=False)
    raise SystemExit(2)
