"""The embedding library under sanitizers, valgrind and a fuzzer. Each builds the library in another way."""

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bundle_formats import write_format
from checkpoints import tokenizer as clip
from embedding_build import Built, build
from toolchain import EMBEDDING, missing, needs, reason

from ddm_rt.bundle import Bundle
from ddm_rt.files import asset
from ddm_rt.sample.pipeline import Pipeline

pytestmark = [
    pytest.mark.slow,  # a minute each: mostly compiling
    needs(*EMBEDDING),
]

CORPORA = Path(__file__).parent / "corpora"
FUZZED_S = 20
FUZZED_BYTES = 32_768  # of an input: the digits' schedule.json has 21,456
ALLOCATED_MIB = 256  # at once, at most, for such an input
MIXES = "40"  # of requests that share calls: a sanitizer makes them slow
DIGITS = asset("digits")

REFUSED = (
    ("--target", "code:9=1"),
    ("--prompt", "a nurse"),
    ("--scope", "s", "--ledger", "damaged.ledger"),
    ("--backend", "tensorrt"),
)


@pytest.fixture
def prompts(latent_bundles: Mapping[str, Bundle], tmp_path: Path) -> str:
    """Path of a bundle that takes prompts."""
    return str(write_format(2, latent_bundles["sd15"].path, tmp_path / "sd"))


def checked(command: list[str | Path], folder: Path, **environment: str) -> str:
    """Output of a command that a sanitizer watches; fails the test where it ends otherwise than well."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def refused(command: list[str | Path], folder: Path, **environment: str) -> None:
    """The same of a command that a user's mistake ends: with one line, and without a sanitizer's report."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr[-4000:]


def sample(build: Path, out: Path, *more: str | Path) -> list[str | Path]:
    return [*replay(build, out), "-n", "3", "--steps", "2", *more]


def replay(build: Path, out: Path, *more: str | Path) -> list[str | Path]:
    return [build / "ddm_rt" / "csrc" / "ddm-cli", "sample", DIGITS, "--out", out, *more]


def test_no_bad_access_no_undefined_behaviour_no_leak(tmp_path: Path, prompts: str) -> None:
    made = build(tmp_path / "b", DDM_RT_SANITIZE="address,undefined")
    # ONNX Runtime is opened and closed with the process: what it keeps is its own.
    options = {"UBSAN_OPTIONS": "print_stacktrace=1", "ASAN_OPTIONS": "detect_leaks=1", "DDM_RT_TEST_MIXES": MIXES}
    options["DDM_RT_TEST_PROMPTS"] = prompts
    assert "PASSED" in checked([made / "tests" / "csrc" / "ddm_rt_tests"], tmp_path, **options)
    checked(sample(made, tmp_path / "out"), tmp_path, **options)
    manifest = tmp_path / "out" / "manifest.json"
    checked(replay(made, tmp_path / "again", "--from", manifest, "--index", "1"), tmp_path, **options)
    (tmp_path / "damaged.json").write_bytes(manifest.read_bytes()[:500])
    (tmp_path / "damaged.ledger").write_text("no ledger")
    for more in REFUSED:
        refused(sample(made, tmp_path / "no", *more), tmp_path, **options)
    refused(replay(made, tmp_path / "no", "--from", "damaged.json"), tmp_path, **options)


def test_no_data_race(tmp_path: Path, prompts: str) -> None:
    made = build(tmp_path / "b", "ddm_rt_tests", DDM_RT_SANITIZE="thread")
    # ONNX Runtime's own code isn't watched: its synchronisation would be taken for none.
    options = "halt_on_error=1 ignore_noninstrumented_modules=1 exitcode=66"
    settings = {"TSAN_OPTIONS": options, "DDM_RT_TEST_MIXES": MIXES, "DDM_RT_TEST_PROMPTS": prompts}
    assert "PASSED" in checked([made / "tests" / "csrc" / "ddm_rt_tests"], tmp_path, **settings)


@needs("valgrind")
def test_valgrind_finds_nothing(built: Built, tmp_path: Path) -> None:
    made = built.build
    watch: list[str | Path] = ["valgrind", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=definite"]
    watch += ["--errors-for-leak-kinds=definite", "--quiet"]
    checked([*watch, *sample(made, tmp_path / "out")], tmp_path)
    refused([*watch, *sample(made, tmp_path / "no", "--target", "code:9=1")], tmp_path)


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if missing("clang"):
        pytest.skip(reason("clang"))
    return build(
        tmp_path_factory.mktemp("fuzz") / "b",
        "fuzz_bundle",
        "fuzz_manifest",
        CMAKE_CXX_COMPILER="clang++",
        DDM_RT_SANITIZE="fuzzer-no-link,address,undefined",
        DDM_RT_FUZZ="ON",
    )


def small_tokenizer(folder: Path) -> bytes:
    """CLIP's, but of its bytes and its first words alone."""
    tree = json.loads(clip(folder).backend_tokenizer.to_str())
    model = tree["model"]
    model["merges"] = model["merges"][:64]
    known = 512 + len(model["merges"])  # bytes, and bytes that end a word
    ends = {token["content"] for token in tree["added_tokens"]}
    model["vocab"] = {word: number for word, number in model["vocab"].items() if number < known or word in ends}
    return json.dumps(tree).encode()


CALIBRATION: dict[str, Any] = {
    "bundle_id": "0" * 64,
    "attributes": [{"name": "gender", "groups": ["female", "male"]}],
    "counts": [[8, 0], [7, 1], [0, 8], [1, 7]],
    "unsure": [0, 0, 0, 0],
    "settings": {
        "sampler": "ddim",
        "num_steps": 4,
        "indicator_guidance_scale": 1.5,
        "indicator_scale": 1.0,
        "eta": 0.0,
        "clip": [-1.0, 1.0],
        "height": 32,
        "width": 32,
        "precision": "fp32",
    },
    "targets": [{"target": "female=0.5,male=0.5", "code_weights": [0.25, 0.25, 0.25, 0.25]}],
}

CACHE = {
    "bundle_id": "0" * 64,
    "settings": {
        name: CALIBRATION["settings"][name]
        for name in ("sampler", "num_steps", "height", "width", "indicator_guidance_scale", "indicator_scale", "clip")
    },
    "reuse": {"steps": [0, 3], "rows": [[0.5, 0.5, 0.0, 0.1], [0.0, 1.0, 0.0, 0.0]]},
    "fit": {"n": 2, "seed": 1, "error": 0.1, "spread": 1.0},
    "judged": {
        "judge": "j",
        "groups": ["3", "8"],
        "reference": "none",
        "n": 4,
        "seed": 0,
        "margin": 0.03,
        "frechet_ratio": 1.05,
        "balance": "equivalent",
    },
}


def fuzz(fuzzers: Path, name: str, seeds: Path, folder: Path) -> None:
    # What ten minutes of each fuzzer once found. New inputs differ each time: what breaks becomes a test of its own.
    with tarfile.open(CORPORA / f"{name}.tar.xz") as corpus:
        corpus.extractall(seeds, filter="data")
    limits = [f"-max_total_time={FUZZED_S}", "-timeout=10", f"-max_len={FUZZED_BYTES}"]
    # The process's memory says more of the machine than of the input: with huge pages a sanitizer takes 2 GiB.
    limits += ["-rss_limit_mb=0", f"-malloc_limit_mb={ALLOCATED_MIB}"]
    said = checked([fuzzers / "tests" / "csrc" / name, *limits, seeds], folder)
    assert "Done " in said


def test_no_bytes_break_a_bundle(fuzzers: Path, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    first, second = (write_format(number, DIGITS, tmp_path / f"format {number}") for number in (1, 2))
    for part, name in enumerate(("bundle.json", "config.json", "codes.json", "schedule.json")):
        (seeds / name).write_bytes(bytes([part]) + (first / name).read_bytes())
    (seeds / "bundle.json of format 2").write_bytes(b"\x00" + (second / "bundle.json").read_bytes())
    (seeds / "runtime.json").write_bytes(b"\x07" + (second / "runtime.json").read_bytes())
    (seeds / "words").write_bytes(b'\x05{"*": ["woman"], "scope": ["man"]}')
    (seeds / "tokenizer").write_bytes(b"\x04" + small_tokenizer(tmp_path / "vocabulary"))
    (seeds / "graph").write_bytes(b"\x08" + (second / "decoder.onnx").read_bytes())
    (seeds / "calibration").write_bytes(b"\x06" + json.dumps(CALIBRATION).encode())
    (seeds / "cache").write_bytes(b"\x09" + json.dumps(CACHE).encode())
    assert max(seed.stat().st_size for seed in seeds.iterdir()) <= FUZZED_BYTES
    fuzz(fuzzers, "fuzz_bundle", seeds, tmp_path)


def test_no_bytes_break_a_manifest(fuzzers: Path, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    made = Pipeline.load(DIGITS, backend="onnxruntime", threads=1).generate(n=2, num_steps=1)
    made.save(tmp_path / "made")
    shutil.copy(tmp_path / "made" / "manifest.json", seeds)
    request = made.manifest["request"] | {"cache": CACHE["reuse"]}
    (seeds / "cached.json").write_text(json.dumps(made.manifest | {"request": request, "num_steps": 4}))
    fuzz(fuzzers, "fuzz_manifest", seeds, tmp_path)
