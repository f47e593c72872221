"""The embedding library's core through ddm-core-probe: a line of JSON in, a line of JSON out."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from ddm_rt.errors import BundleError, DdmError, LedgerError


class CoreProbe:
    """probe(op, ...) is what the core gives, or {"error", "status"}. One process answers all, and keeps its ledgers."""

    def __init__(self, program: Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([program], stdin=pipe, stdout=pipe, encoding="utf-8")

    def __call__(self, op: str, **asked: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"op": op, **asked}), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return answer.get("result", answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def python(call: Callable[[], Any]) -> Any:
    """What a call gives on this side, or its error as the probe tells one."""
    try:
        return call()
    except DdmError as error:
        status = 3 if isinstance(error, LedgerError) else 2 if isinstance(error, BundleError) else 1
        return {"error": str(error), "status": status}


def place(message: str) -> str:
    """The file and the field that an error names, or the argument."""
    found = re.match(r"(\S+: field [^:\s(]+|/[^:]+|(?:target|bundle) |\w+ )", message)
    return re.sub(r"(\.str|\.tuple.*|[.\d]+)$", "", found[0]) if found else ""


def agree(there: Any, here: Any) -> bool:
    """Whether both sides give the same, or refuse the same place by the same status. Each has words of its own."""
    if isinstance(there, list) and isinstance(here, list):
        return len(there) == len(here) and all(map(agree, there, here))
    if not (isinstance(there, dict) and isinstance(here, dict) and {"error"} <= there.keys() & here.keys()):
        return bool(there == here)
    return there["status"] == here["status"] and place(there["error"]) == place(here["error"])
