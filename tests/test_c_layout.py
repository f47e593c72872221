"""C and C++ are laid out by clang-format, in the version that pyproject.toml names."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_sources_are_as_clang_format_lays_them_out() -> None:
    program = Path(sys.executable).with_name("clang-format")  # pip installs it beside Python
    sources = sorted(
        path
        for folder in ("ddm_rt/csrc", "tests/csrc")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".c", ".cpp", ".h")
    )
    done = subprocess.run(
        [program, "--dry-run", "-Werror", *sources], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
