"""The embedding library under sanitizers, valgrind and a fuzzer. Each builds the library in another way."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from embedding_build import NEEDS, build, run
from toolchain import has_embedding_toolchain

from ddm_rt.bundle import asset
from ddm_rt.sample.pipeline import Pipeline

pytestmark = [
    pytest.mark.slow,  # a minute each: mostly compiling
    pytest.mark.skipif(not has_embedding_toolchain(), reason=NEEDS),
]

FUZZED_S = 20
DIGITS = asset("digits")

Checked = Callable[..., str]


def checked(command: list[str | Path], folder: Path, **environment: str) -> str:
    """Output of a command that a sanitizer watches; fails the test where it ends otherwise than well."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def sample(build: Path, out: Path) -> list[str | Path]:
    return [build / "ddm_rt" / "csrc" / "ddm-cli", "sample", DIGITS, "-n", "3", "--steps", "2", "--out", out]


def test_no_bad_access_no_undefined_behaviour_no_leak(tmp_path: Path) -> None:
    made = build(tmp_path / "b", DDM_RT_SANITIZE="ON")
    # ONNX Runtime is opened and closed with the process: what it keeps is its own.
    options = {"UBSAN_OPTIONS": "print_stacktrace=1", "ASAN_OPTIONS": "detect_leaks=1"}
    assert "PASSED" in checked([made / "tests" / "csrc" / "ddm_rt_tests"], tmp_path, **options)
    checked(sample(made, tmp_path / "out"), tmp_path, **options)
    refused = subprocess.run(
        [*sample(made, tmp_path / "out"), "--target", "code:9=1"],
        env=os.environ | options,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr


def test_no_data_race(tmp_path: Path) -> None:
    made = build(tmp_path / "b", "ddm_rt_tests", DDM_RT_SANITIZE="ON", DDM_RT_SANITIZERS="thread")
    # ONNX Runtime's own code isn't watched: its synchronisation would be taken for none.
    options = "halt_on_error=1 ignore_noninstrumented_modules=1 exitcode=66"
    assert "PASSED" in checked([made / "tests" / "csrc" / "ddm_rt_tests"], tmp_path, TSAN_OPTIONS=options)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
def test_valgrind_finds_nothing(tmp_path: Path) -> None:
    made = build(tmp_path / "b", "ddm-cli", CMAKE_CXX_FLAGS="-O1 -g")
    watch: list[str | Path] = ["valgrind", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=definite"]
    watch += ["--errors-for-leak-kinds=definite", "--quiet"]
    checked([*watch, *sample(made, tmp_path / "out")], tmp_path)


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("clang++") is None:
        pytest.skip("needs Clang")
    return build(
        tmp_path_factory.mktemp("fuzz") / "b",
        "fuzz_bundle",
        "fuzz_manifest",
        CMAKE_C_COMPILER="clang",
        CMAKE_CXX_COMPILER="clang++",
        DDM_RT_SANITIZE="ON",
        DDM_RT_SANITIZERS="fuzzer-no-link,address,undefined",
        DDM_RT_FUZZ="ON",
    )


def fuzz(fuzzers: Path, name: str, seeds: Path, folder: Path) -> None:
    # Inputs are new each time: what is found becomes a test of its own.
    limits = [f"-max_total_time={FUZZED_S}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=20000"]
    said = checked([fuzzers / "tests" / "csrc" / name, *limits, seeds], folder)
    assert "Done " in said


def test_no_bytes_break_a_bundle(fuzzers: Path, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    for part, name in enumerate(("bundle.json", "config.json", "codes.json", "schedule.json")):
        (seeds / name).write_bytes(bytes([part]) + (DIGITS / name).read_bytes()[:20_000])
    (seeds / "words").write_bytes(b'\x05{"*": ["woman"], "scope": ["man"]}')
    (seeds / "tokenizer").write_bytes(b'\x04{"normalizer": {}, "pre_tokenizer": {}, "model": {"type": "BPE"}}')
    fuzz(fuzzers, "fuzz_bundle", seeds, tmp_path)


def test_no_bytes_break_a_manifest(fuzzers: Path, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    made = Pipeline.load(DIGITS, backend="onnxruntime", threads=1).generate(n=2, num_steps=1)
    made.save(tmp_path / "made")
    shutil.copy(tmp_path / "made" / "manifest.json", seeds)
    fuzz(fuzzers, "fuzz_manifest", seeds, tmp_path)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """Without the headers AUTO goes on, and ON stops."""
    lacking = ("-DDDM_RT_ONNXRUNTIME_HEADERS=DDM_RT_ONNXRUNTIME_HEADERS-NOTFOUND", "-DCMAKE_FIND_ROOT_PATH=")
    hidden = (*lacking, "-DCMAKE_SYSTEM_PREFIX_PATH=", "-DCMAKE_SYSTEM_INCLUDE_PATH=")
    folder = Path(__file__).parents[2]
    said = run("cmake", "-S", folder, "-B", tmp_path / "auto", *hidden, folder=tmp_path)
    assert "the embedding library is left out; missing: " in said
    done = subprocess.run(
        ["cmake", "-S", folder, "-B", tmp_path / "on", "-DDDM_RT_BUILD_LIBRARY=ON", *hidden],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "missing: " in done.stderr
