"""What this machine can build."""

import functools
import shutil
import subprocess

_HEADERS = ("onnxruntime/onnxruntime_cxx_api.h", "sqlite3.h", "png.h", "gtest/gtest.h")


@functools.cache
def has_embedding_toolchain() -> bool:
    """Whether the embedding library and its tests can be built."""
    if not all(map(shutil.which, ("cmake", "c++", "pkg-config"))):
        return False
    source = "\n".join(f"#if !__has_include(<{header}>)\n#error {header}\n#endif" for header in _HEADERS)
    command = ["c++", "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    return subprocess.run(command, input=source, text=True, capture_output=True, check=False).returncode == 0
