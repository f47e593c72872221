"""Builds the embedding library as tests need it."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import toolchain

ROOT = Path(__file__).parents[1]
NEEDS = toolchain.reason(*toolchain.EMBEDDING)  # why a test is skipped that needs the library


def onnxruntime_library() -> Path:
    """The one inside Python's package: bits are compared, so both sides must have the same."""
    (found,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    return found


@dataclass(frozen=True)
class Built:
    build: Path
    prefix: Path  # where it is installed

    @property
    def cli(self) -> Path:
        return self.prefix / "bin" / "ddm-cli"

    @property
    def shared(self) -> Path:
        return next(self.prefix.glob("lib*/**/libddm_rt.so"))

    @property
    def tests(self) -> Path:
        return self.build / "tests" / "csrc"


def run(*command: str | Path, folder: Path) -> str:
    """The command's output; fails the test with it where the command failed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path, *targets: str, **options: str) -> Path:
    """Configure and build the library with CMake options, as quickly as the compiler can."""
    chosen = {
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_CXX_FLAGS": "-O1",
        "DDM_RT_WERROR": "ON",
        # All sources of a target are compiled at once, since most of the time goes into headers. Two files may each
        # have a private function of one name only if their arguments differ: else one could be taken for the other.
        "CMAKE_UNITY_BUILD": "ON",
        "CMAKE_UNITY_BUILD_BATCH_SIZE": "0",
        "DDM_RT_BUILD_TESTS": "ON",
        "DDM_RT_LINK_ONNXRUNTIME": "OFF",
        "DDM_RT_ONNXRUNTIME_LIBRARY": str(onnxruntime_library()),
        "CMAKE_INSTALL_PREFIX": str(folder / "installed"),
        **options,
    }
    run("cmake", "-S", ROOT, "-B", folder, *(f"-D{name}={value}" for name, value in chosen.items()), folder=ROOT)
    wanted = ("--target", *targets) if targets else ()
    run("cmake", "--build", folder, "--parallel", "2", *wanted, folder=ROOT)
    return folder
