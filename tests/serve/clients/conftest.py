"""A server as a user starts it for clients that know OpenAI's models only, and clients that nobody here wrote."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_once import made_once
from served import serving

OPTIONS = ("--resize", "--model-alias", "gpt-image-1", "--model-alias", "dall-e-2", "--model-alias", "dall-e-3")
# litellm's proxy brings a hundred packages, fastapi and uvicorn among them: so these have an environment of their own.
PACKAGES = ("litellm[proxy]>=1.108,<2", "langchain-community>=0.4,<1")
INSTALL_S = 900.0
# What uv and npm say where no index answers. One that answers and has no such package is another matter.
_NO_INDEX = re.compile(
    r"error sending request|the network was disabled"
    r"|npm (?:error|ERR!) code (?:EAI_AGAIN|ECONN\w+|EHOSTUNREACH|ENETUNREACH|ENOTCACHED|ENOTFOUND|ETIMEDOUT)"
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """`ddm-rt serve digits` with those options. What clients take as their base URL."""
    with serving("digits", "--threads", "1", *OPTIONS) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """A folder with the packages of package.json, and the programs beside it."""
    here = Path(__file__).parent
    wanted = here / "package.json"

    def install(stamp: Path) -> None:
        shutil.copy(wanted, stamp.parent)
        line = ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock")
        _install("clients from npm", *line, folder=stamp.parent)
        stamp.touch()

    folder = made_once(_cached("node", wanted.read_text()) / "made", install).parent
    for program in here.glob("*.mjs"):  # they find their packages beside them
        shutil.copy(program, folder)
    return folder


@pytest.fixture(scope="session")
def other_python() -> Path:
    """The interpreter of an environment with `PACKAGES`."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert uv is not None, "uv is missing, which `make test-slow` brings"

    def install(stamp: Path) -> None:
        name, folder = "litellm and LangChain", stamp.parent
        _install(name, uv, "venv", "--clear", "--python", sys.executable, "env", folder=folder)
        _install(name, uv, "pip", "install", "--quiet", "--python", "env/bin/python", *PACKAGES, folder=folder)
        stamp.touch()

    return made_once(_cached("python", *PACKAGES) / "made", install).parent / "env" / "bin" / "python"


def _cached(kind: str, *wanted: str) -> Path:
    """A folder for what was installed, which stays with this environment; another one for other versions."""
    key = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    folder = Path(sys.prefix) / ".clients"
    folder.mkdir(exist_ok=True)
    return folder / f"{kind}-{key}"


def _install(clients: str, *line: str, folder: Path) -> None:
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S)
    if done.returncode != 0 and _NO_INDEX.search(done.stderr):
        pytest.skip(f"not installed: {clients}, for no package index answers")  # the run's last line names them
    assert done.returncode == 0, done.stderr
