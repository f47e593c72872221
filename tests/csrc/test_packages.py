"""The library as others take it in: as a part of their build, static, and in Debian's packages.

ONNX Runtime is Debian's here, and linked."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from embedding_build import ROOT, Built, onnxruntime_library, run
from PIL import Image
from tolerances import IMAGE_GREY_LEVELS
from toolchain import EMBEDDING, missing, needs, reason

from ddm_rt.files import asset
from ddm_rt.sample.pipeline import Pipeline

pytestmark = needs(*EMBEDDING)

DIGITS = asset("digits")
EXAMPLE = ROOT / "ddm_rt" / "csrc" / "example" / "main.c"
QUICK = ("-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0", "-DCMAKE_BUILD_TYPE=None")
OPENS = "project(example LANGUAGES C CXX)\n"
FINDS = "find_package(ddm_rt 0.1 REQUIRED)\n"
LINKS = "add_executable(example main.c)\ntarget_link_libraries(example PRIVATE ddm_rt::ddm_rt)\n"


def project(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    shutil.copy(EXAMPLE, folder)
    (folder / "CMakeLists.txt").write_text(f"cmake_minimum_required(VERSION 3.21)\n{text}")
    return folder


def configure(source: Path, build: Path, *options: str) -> str:
    """What CMake says; of a refusal, its message as one line."""
    command = ["cmake", "-S", source, "-B", build, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else " ".join(done.stderr.split())


def runs(program: Path, folder: Path) -> None:
    """The example on the ONNX Runtime that it is linked to: Python's images, but for what another version rounds."""
    folder.mkdir()
    run("env", "--unset=DDM_RT_ONNXRUNTIME", program, DIGITS, folder=folder)
    made = Pipeline.load(DIGITS, backend="onnxruntime").generate(n=8)
    found = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.ppm"))])
    assert np.abs(found.astype(int) - made.images).max() <= IMAGE_GREY_LEVELS


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another project with this one in it: built, and not installed. The library is static, as CMake's default is."""
    folder = tmp_path_factory.mktemp("part")
    text = f"add_subdirectory({ROOT} ddm_rt)\n{LINKS}install(TARGETS example)\n"
    prefix = f"-DCMAKE_INSTALL_PREFIX={folder / 'installed'}"
    configure(project(folder / "source", OPENS + text), folder / "build", *QUICK, prefix)
    run("cmake", "--build", folder / "build", "--parallel", "2", folder=folder)
    return folder


def test_a_part_of_another_project_is_a_library_and_nothing_else(part: Path, tmp_path: Path) -> None:
    assert "libonnxruntime" in run("readelf", "--dynamic", part / "build" / "example", folder=part)
    runs(part / "build" / "example", tmp_path / "images")
    assert not list((part / "build").rglob("ddm-cli"))
    assert "Total Tests: 0" in run("ctest", "-N", folder=part / "build")
    installed = tmp_path / "installed"
    run("cmake", "--install", part / "build", "--prefix", installed, folder=part)
    assert [path.name for path in installed.rglob("*") if path.is_file()] == ["example"]


def test_a_static_library_is_found_with_what_it_needs(part: Path, tmp_path: Path) -> None:
    configure(part / "source", part / "build", "-DDDM_RT_INSTALL=ON")
    run("cmake", "--install", part / "build", folder=part)
    prefix = part / "installed"
    assert list(prefix.rglob("libddm_rt.*")) == [prefix / "lib" / "libddm_rt.a"]

    by_cmake = project(tmp_path / "by cmake", OPENS + FINDS + LINKS)
    configure(by_cmake, by_cmake / "b", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", "b", folder=by_cmake)
    runs(by_cmake / "b" / "example", tmp_path / "images")

    found = f"--with-path={prefix / 'lib' / 'pkgconfig'}"
    flags = run("pkg-config", found, "--cflags", "--libs", "ddm_rt", folder=tmp_path).split()
    run("cc", EXAMPLE, *flags, "-o", "by-pkg-config", folder=tmp_path)
    runs(tmp_path / "by-pkg-config", tmp_path / "more images")

    only_c = project(tmp_path / "only c", OPENS.replace(" CXX", "") + FINDS + LINKS)
    said = configure(only_c, only_c / "b", f"-DCMAKE_PREFIX_PATH={prefix}")
    assert "the project's languages must include CXX" in said


@needs("lintian")
def test_debians_packages_hold_what_lintian_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = tmp_path / "build"
    deb = ("--preset", "deb", *QUICK)
    assert "set DEBFULLNAME and DEBEMAIL" in configure(ROOT, build, *deb)
    monkeypatch.setenv("DEBFULLNAME", "A Person")
    monkeypatch.setenv("DEBEMAIL", "person@debian.org")
    configure(ROOT, build, *deb)
    run("cmake", "--build", build, "--parallel", "2", folder=tmp_path)
    run("cpack", folder=build)
    packages = sorted(build.glob("*.deb"))
    assert [path.name.split("_")[0] for path in packages] == ["ddm-cli", "libddm-rt-dev", "libddm-rt1"]
    said = subprocess.run(["lintian", "--allow-root", *packages], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    # CPack writes these scripts beside the trigger that does the same.
    assert {line.split()[2] for line in said.stdout.splitlines()} <= {"maintscript-calls-ldconfig"}

    root = tmp_path / "root"
    for package in packages:
        run("dpkg-deb", "--extract", package, root, folder=tmp_path)
    library = next(root.rglob("libddm_rt.so.1"))
    assert f"libonnxruntime.so.{onnxruntime_of(root, library, tmp_path / 'linked').rpartition('.')[0]}" in run(
        "readelf", "--dynamic", library, folder=tmp_path
    )
    named = ("--onnxruntime", str(onnxruntime_library()))
    assert onnxruntime_of(root, library, tmp_path / "named", *named) == onnxruntime.__version__


def onnxruntime_of(root: Path, library: Path, out: Path, *options: str) -> str:
    """The version that ddm-cli samples with, as its manifest says."""
    command = ["env", f"LD_LIBRARY_PATH={library.parent}", root / "usr" / "bin" / "ddm-cli", "sample", DIGITS]
    run(*command, "-n", "2", "--steps", "1", "--out", out, *options, folder=root)
    version: str = json.loads((out / "manifest.json").read_bytes())["versions"]["onnxruntime"]
    return version


def test_the_version_of_the_abi_is_one_number(built: Built) -> None:
    names = run("nm", "--dynamic", "--defined-only", built.shared, folder=ROOT).split()
    (node,) = {name.partition("@@")[2] for name in names if "@@" in name}
    (soname,) = re.findall(r"soname: \[(.*)\]", run("readelf", "--dynamic", built.shared, folder=ROOT))
    assert soname == f"libddm_rt.so.{node.removeprefix('DDM_RT_')}"


def test_the_manual_has_every_option(built: Built) -> None:
    said = run(built.cli, "sample", "--help", folder=ROOT)
    page = run("gzip", "-dc", next(built.prefix.rglob("ddm-cli.1.gz")), folder=ROOT).replace("\\-", "-")
    for option in re.findall(r"^  (--?[a-z-]+)", said, re.MULTILINE):
        assert f" {option}" in page
    version = run(built.cli, "version", folder=ROOT)
    assert run(built.cli, "--version", folder=ROOT) == version


def test_what_is_missing_is_said_at_once(tmp_path: Path) -> None:
    hidden = [f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON" for name in ("PkgConfig", "PNG", "SQLite3", "CLI11")]
    said = configure(ROOT, tmp_path / "all", *hidden)
    assert (
        "lacks what these packages of Debian bring: pkg-config libsqlite3-dev libutf8proc-dev libcli11-dev libpng-dev. "
        in said
    )
    said = configure(ROOT, tmp_path / "library", *hidden, "-DDDM_RT_BUILD_CLI=OFF")
    assert "bring: pkg-config libsqlite3-dev libutf8proc-dev. " in said


def test_other_systems_are_refused(tmp_path: Path) -> None:
    said = configure(ROOT, tmp_path, "-DCMAKE_SYSTEM_NAME=FreeBSD", "-DCMAKE_CXX_COMPILER_WORKS=ON")
    assert "the C library is for Linux alone; this build is for FreeBSD" in said


@pytest.mark.parametrize("preset", ["release", "static", "debug", "asan", "tsan", "fuzz"])
def test_a_preset_configures(tmp_path: Path, preset: str) -> None:
    if preset == "fuzz" and missing("clang"):
        pytest.skip(reason("clang"))
    assert "Build files have been written" in configure(ROOT, tmp_path, "--preset", preset)
