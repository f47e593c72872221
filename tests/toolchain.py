"""Debian's packages that tests need, and which of them this machine lacks.

python3 tests/toolchain.py    # names those, for apt; it needs nothing that isn't Python's own
"""

import functools
import shutil
import subprocess
from collections.abc import Iterable
from typing import Any

# A package, and the program or header by which one sees that it is there.
PACKAGES = {
    "gcc": "cc",
    "libc6-dev": "stdio.h",
    "make": "make",
    "cmake": "cmake",
    "g++": "c++",
    "pkg-config": "pkg-config",
    "libonnxruntime-dev": "onnxruntime/onnxruntime_cxx_api.h",
    "libsqlite3-dev": "sqlite3.h",
    "libpng-dev": "png.h",
    "libssl-dev": "openssl/evp.h",
    "nlohmann-json3-dev": "nlohmann/json.hpp",
    "libutf8proc-dev": "utf8proc.h",
    "libcli11-dev": "CLI/CLI.hpp",
    "libgtest-dev": "gtest/gtest.h",
    "valgrind": "valgrind",
    "lintian": "lintian",
    "clang": "clang++",
    "rustc": "rustc",
    "bindgen": "bindgen",
    "chromium": "chromium",
    "prometheus": "prometheus",
    "libimage-exiftool-perl": "exiftool",
    "curl": "curl",
    "nodejs": "node",
    "npm": "npm",
}
EMBEDDING = (
    *("cmake", "make", "g++", "pkg-config", "libonnxruntime-dev", "libsqlite3-dev", "libssl-dev", "nlohmann-json3-dev"),
    *("libutf8proc-dev", "libcli11-dev", "libpng-dev", "libgtest-dev"),
)

_WANTING = "needs Debian's"


@functools.cache
def _is_here(package: str) -> bool:
    sign = PACKAGES[package]
    if not sign.endswith((".h", ".hpp")):
        return shutil.which(sign) is not None
    if (compiler := shutil.which("c++") or shutil.which("cc")) is None:
        return False
    command = [compiler, "-E", "-x", "c++" if compiler.endswith("++") else "c", "-"]
    return subprocess.run(command, input=f"#include <{sign}>\n", text=True, capture_output=True).returncode == 0


def missing(*packages: str) -> list[str]:
    return [package for package in packages if not _is_here(package)]


def reason(*packages: str) -> str:
    """Why a test is skipped that needs these; `summary` reads it again."""
    return f"{_WANTING} {' '.join(missing(*packages) or packages)}"


def needs(*packages: str) -> Any:
    """A mark that skips a test where one of the packages is missing."""
    import pytest

    return pytest.mark.skipif(bool(missing(*packages)), reason=reason(*packages))


def summary(reasons: Iterable[str]) -> str | None:
    """One line on the tests that were skipped for such a reason, with the command that brings what they need."""
    wanting = [found.partition(_WANTING)[2].split() for found in reasons if _WANTING in found]
    if not wanting:
        return None
    packages = " ".join(sorted({package for found in wanting for package in found}))
    return f"for want of Debian packages: {len(wanting)} tests skipped; apt install {packages}"


if __name__ == "__main__":
    print(*missing(*PACKAGES))
