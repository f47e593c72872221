"""Empty environments, into which uv installs packages from PyPI as a user would."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

INSTALL_S = 900.0
_NO_INDEX = re.compile(r"error sending request|the network was disabled|dns error|Could not connect")

SLOW = pytest.mark.slow(reason="makes an environment and installs hundreds of megabytes into it")


def run(*line: str | Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    # Without the last, what is compiled of an environment that goes away would stay.
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONPYCACHEPREFIX")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, timeout=INSTALL_S, check=False
    )


def build_wheel(folder: Path) -> Path:
    """This project's wheel."""
    root = Path(__file__).parents[1]
    done = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, root, folder=folder)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("ddm_rt-*.whl"))


def environment(folder: Path, *packages: str | Path) -> Path:
    """The folder of programs of an empty environment into which the packages are installed from PyPI."""
    made = run(_uv(), "venv", "--quiet", "--python", sys.executable, "env", folder=folder)
    assert made.returncode == 0, made.stderr
    install(folder, *packages)
    return folder / "env" / "bin"


def install(folder: Path, *packages: str | Path) -> None:
    """Into the environment in `folder`. Without a package index the test is skipped."""
    done = run(_uv(), "pip", "install", "--quiet", "--python", "env/bin/python", *packages, folder=folder)
    if done.returncode != 0 and _NO_INDEX.search(done.stderr):
        pytest.skip(f"not installed: {', '.join(map(str, packages))}, for no package index answers")
    assert done.returncode == 0, done.stderr


def uninstall(folder: Path, *packages: str) -> None:
    done = run(_uv(), "pip", "uninstall", "--quiet", "--python", "env/bin/python", *packages, folder=folder)
    assert done.returncode == 0, done.stderr


def _uv() -> str:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert uv is not None, "uv is missing, which `make test` brings"
    return uv
