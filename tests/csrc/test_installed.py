"""The embedding library as it is installed: what it exports, how programs find it, and its command line."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import command_line
import numpy as np
import pytest
from embedding_build import ROOT, Built, run
from PIL import Image
from tolerances import IMAGE_GREY_LEVELS
from toolchain import needs

from ddm_rt.files import asset
from ddm_rt.sample.pipeline import Pipeline

DIGITS = asset("digits")
SHARDS = ("shards", "shard-format", "shard-size")
# Options of `ddm-rt sample`: devices and shards aren't the C library's, and provenance is turned off by its opposite.
ONLY_PYTHONS = {
    "--device",
    "--mode",
    "--precision",
    "--provenance",
    "--shard-format",
    "--shard-size",
    "--shards",
    "--workers",
}
EXAMPLE = ROOT / "ddm_rt" / "csrc" / "example" / "main.c"
RUST = EXAMPLE.with_suffix(".rs")


def cli(built: Built, *arguments: object, code: int = 0) -> str:
    """Output of `ddm-cli ARGUMENTS`; of a refusal, its message, which is one line."""
    done = subprocess.run([built.cli, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    if code:
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")
    return done.stdout


def images_of(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.p?[gm]"))])


def grey_levels(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


def test_the_headers_functions_are_exported_and_nothing_else(built: Built) -> None:
    """Each with the version node of the ABI, which the dynamic linker asks for."""
    lines = run("nm", "--dynamic", "--defined-only", built.shared, folder=ROOT).splitlines()
    exported = {line.split()[-1] for line in lines}
    header = (built.prefix / "include" / "ddm_rt.h").read_text()
    declared = set(re.findall(r"^DDM_RT_API [^;(]*?\b(ddm_rt_\w+)\(", header, re.MULTILINE))
    assert exported == {f"{name}@@DDM_RT_1" for name in declared} | {"DDM_RT_1"}
    assert len(declared) > 70


def test_the_version_is_pythons(built: Built) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert cli(built, "version") == f"{version}\n"


def test_its_own_tests_pass(built: Built) -> None:
    assert "100% tests passed" in run("ctest", "--output-on-failure", folder=built.build)


def test_the_wheel_has_nothing_of_it() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    assert settings["wheel"]["cmake"] is False
    assert "ddm_rt/csrc" in settings["wheel"]["exclude"]


def example_gives_pythons_images(program: Path, folder: Path) -> None:
    folder.mkdir()
    said = run(program, DIGITS, folder=folder)
    made = Pipeline.load(DIGITS, backend="onnxruntime").generate(n=8)
    assert grey_levels(images_of(folder), made.images) <= IMAGE_GREY_LEVELS
    tops = [int(line.rsplit(" ", 1)[1]) for line in said.splitlines()]
    assert tops == [image["top_code"] for image in made.manifest["images"]]


def test_the_example_finds_it_by_cmake(built: Built, tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 40
    shutil.copy(EXAMPLE, tmp_path)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\n"
        "project(example LANGUAGES C)\n"
        "find_package(ddm_rt 0.1 REQUIRED)\n"
        "add_executable(example main.c)\n"
        "target_link_libraries(example PRIVATE ddm_rt::ddm_rt)\n"
    )
    run("cmake", "-S", ".", "-B", "b", f"-DCMAKE_PREFIX_PATH={built.prefix}", folder=tmp_path)
    run("cmake", "--build", "b", folder=tmp_path)
    example_gives_pythons_images(tmp_path / "b" / "example", tmp_path / "images")


@pytest.mark.slow(reason="a build of its own; by CMake it is quick")
def test_the_example_finds_it_by_pkg_config(built: Built, tmp_path: Path) -> None:
    """Where it was moved to, too."""
    moved = tmp_path / "moved"
    shutil.copytree(built.prefix, moved, symlinks=True)
    folder = next(moved.glob("lib*/**/pkgconfig"))
    flags = run("pkg-config", f"--with-path={folder}", "--cflags", "--libs", "ddm_rt", folder=tmp_path).split()
    strict = ("-std=c11", "-pedantic-errors", "-Wall", "-Wextra", "-Werror")
    assert str(built.prefix) not in " ".join(flags)
    rpath = f"-Wl,-rpath,{Built(built.build, moved).shared.parent}"
    run("cc", *strict, EXAMPLE, *flags, rpath, "-o", "example", folder=tmp_path)
    example_gives_pythons_images(tmp_path / "example", tmp_path / "images")


@needs("rustc", "bindgen")
def test_the_example_in_rust(built: Built, tmp_path: Path) -> None:
    header, folder = built.prefix / "include" / "ddm_rt.h", built.shared.parent
    run("bindgen", header, "--allowlist-item", "(ddm_rt|DDM_RT)_.*", "-o", "bindings.rs", folder=tmp_path)
    bindings = f"DDM_RT_BINDINGS={tmp_path / 'bindings.rs'}"
    found = ("-L", folder, "-l", "ddm_rt", "-C", f"link-arg=-Wl,-rpath,{folder}")
    run("env", bindings, "rustc", "--edition", "2021", "-D", "warnings", RUST, *found, "-o", "example", folder=tmp_path)
    example_gives_pythons_images(tmp_path / "example", tmp_path / "images")
    done = subprocess.run([tmp_path / "example", "nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: bundle 'nowhere': no such directory\n")


def test_the_header_is_c_and_cpp(built: Built, tmp_path: Path) -> None:
    include = f"-I{built.prefix / 'include'}"
    for compiler, standard, name in (("cc", "c99", "a.c"), ("c++", "c++98", "a.cpp")):
        (tmp_path / name).write_text("#include <ddm_rt.h>\nint main(void) { return ddm_rt_abi() - DDM_RT_ABI; }\n")
        warnings = ("-Wall", "-Wextra", "-Werror", "-pedantic-errors", "-fsyntax-only")
        run(
            compiler,
            f"-std={standard}",
            *warnings,
            *(["-Wno-long-long"] * (name == "a.cpp")),
            include,
            name,
            folder=tmp_path,
        )


def test_the_command_samples_as_pythons(built: Built, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = cli(built, "sample", DIGITS, "-n", 5, "--seed", 7, "--steps", 4, "--threads", 1, "--out", f"{out}/")
    assert said == f"5 images: {out}\nlook at: {out / 'contact_sheet.png'}\n"
    made = Pipeline.load(DIGITS, backend="onnxruntime", threads=1).generate(n=5, seed=7, num_steps=4)
    python = made.save(tmp_path / "python")
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in python.iterdir())
    assert grey_levels(images_of(out), made.images) <= IMAGE_GREY_LEVELS
    for path in python.glob("*.png"):
        assert Image.open(out / path.name).info["xmp"] == Image.open(path).info["xmp"]
    sheets = [np.asarray(Image.open(folder / "contact_sheet.png")) for folder in (out, python)]
    assert grey_levels(*sheets) <= IMAGE_GREY_LEVELS
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest | {"versions": made.manifest["versions"]} == made.manifest

    again = tmp_path / "again"
    cli(built, "sample", DIGITS, "--from", out / "manifest.json", "--index", 3, "--threads", 1, "--out", again)
    assert (images_of(again)[0] == images_of(out)[3]).all()
    assert (again / "00003.png").read_bytes() == (out / "00003.png").read_bytes()
    cli(built, "sample", DIGITS, "-n", 1, "--steps", 1, "--no-provenance", "--out", tmp_path / "bare")
    assert "xmp" not in Image.open(tmp_path / "bare" / "00000.png").info


def test_the_command_keeps_a_scope(built: Built, tmp_path: Path) -> None:
    ledger = tmp_path / "counts.ledger"
    positions = []
    for i in range(3):
        out = tmp_path / f"out{i}"
        scope = ("--scope", "campaign", "--ledger", ledger, "--seed", i)
        cli(built, "sample", DIGITS, "-n", 2, "--steps", 1, *scope, "--out", out)
        images = json.loads((out / "manifest.json").read_bytes())["images"]
        positions += [image["position"] for image in images]
    assert positions == list(range(6))
    said = cli(built, "sample", DIGITS, "-n", 1, "--steps", 1, "--scope", "x", "--out", tmp_path / "last")
    assert said.startswith("scope: its counts end with this command; --ledger keeps them\n")


# What is wrong, and what the one line about it must name: an option, a field or a file.
MISTAKES: list[tuple[tuple[object, ...], str]] = [
    ((), "bundle"),
    (("BUNDLE",), "--out"),
    (("BUNDLE", "--index", 1, "--out", "OUT"), "--index requires --from"),
    (("BUNDLE", "--from", "m.json", "--scope", "s", "--out", "OUT"), "--from excludes --scope"),
    (("BUNDLE", "--from", "m.json", "--prompt", "a", "--out", "OUT"), "--from excludes --prompt"),
    (("BUNDLE", "--from", "m.json", "--apg", 15, "--out", "OUT"), "--from excludes --apg"),
    (("BUNDLE", "--from", "m.json", "--out", "OUT"), "m.json: "),
    (("BUNDLE", "--guidance-interval", ".2", "--out", "OUT"), "--guidance-interval"),
    (("BUNDLE", "--guidance-interval", ".8,.2", "--out", "OUT"), "guidance_interval"),
    (("BUNDLE", "--guidance-interval", ".1,.2", "--steps", 4, "--out", "OUT"), "guidance_interval"),
    (("BUNDLE", "--guidance-interval", "nan,1", "--out", "OUT"), "guidance_interval"),
    (("BUNDLE", "--apg", "15,1,2", "--out", "OUT"), "--apg"),
    (("BUNDLE", "--apg", "0", "--out", "OUT"), "apg"),
    (("BUNDLE", "--apg", "15,-1", "--out", "OUT"), "apg"),
    (("BUNDLE", "--cads", ".25,.6", "--out", "OUT"), "--cads"),
    (("BUNDLE", "--cads", "x", "--out", "OUT"), "--cads = x"),
    (("BUNDLE", "--cads", ".25", "--out", "OUT"), "cads"),
    (("BUNDLE", "--from", "m.json", "--cache", 4, "--out", "OUT"), "--from excludes --cache"),
    *((("BUNDLE", "--cache", cache, "--out", "OUT"), "--cache: ") for cache in ("0", "1", "-1", "4x", "many")),
    (("BUNDLE", "--cache", 4, "--out", "OUT"), "cache is 4"),
    (("BUNDLE", "-n", 1, "--prompt", "a", "--prompt", "b", "--out", "OUT"), "--prompt"),
    (("BUNDLE", "--ledger", "l", "--out", "OUT"), "--ledger requires --scope"),
    (("BUNDLE", "--fsync", "--out", "OUT"), "--fsync requires --ledger"),
    (("BUNDLE", "-n", 0, "--out", "OUT"), "-n: "),
    (("BUNDLE", "--seed", -1, "--out", "OUT"), "--seed = -1"),
    (("BUNDLE", "--seed", 2**64, "--out", "OUT"), "--seed = 18446744073709551616"),
    (("BUNDLE", "--prompt", "a", "--out", "OUT"), "prompt"),
    (("BUNDLE", "--target", "code:9=1", "--out", "OUT"), "target"),
    (("BUNDLE", "--leave-alone", "missing.json", "--out", "OUT"), "missing.json: "),
    (("BUNDLE", "--leave-alone", "missing.json", "--out", "FULL"), "missing.json: "),
    (("missing", "--leave-alone", "missing.json"), "--out"),
    (("missing", "--scope", "s", "--ledger", "FILE", "--out", "OUT"), "missing"),
    (("BUNDLE", "--sampler", "abacus", "--out", "OUT"), "sampler"),
    (("BUNDLE", "--out", "FULL"), "full"),
    (("BUNDLE", "--out", "FILE/below"), "file"),
    (("BUNDLE", "--scope", "s", "--ledger", "FILE", "--out", "OUT"), "file"),
    (("missing", "--out", "OUT"), "missing"),
]


@pytest.mark.parametrize(
    ("arguments", "named"), MISTAKES, ids=[" ".join(map(str, arguments)) or "nothing" for arguments, _ in MISTAKES]
)
def test_a_mistake_is_refused_as_by_pythons_command(
    built: Built,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    named: str,
) -> None:
    from ddm_rt.cli import main

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("here")
    (tmp_path / "file").write_text("here")
    monkeypatch.chdir(tmp_path)
    places = {"BUNDLE": str(DIGITS), "OUT": "out", "FULL": "full", "FILE": "file", "FILE/below": "file/below"}
    line = ["sample", *(places.get(str(argument), str(argument)) for argument in arguments)]
    before = sorted(tmp_path.rglob("*"))
    assert named in cli(built, *line, code=2)
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr("sys.argv", ["ddm-rt", *line])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("line", ["-h", "--help", "sample -h", "backends --help", "version -h"])
def test_help(built: Built, line: str) -> None:
    assert "Usage: ddm-cli " in cli(built, *line.split())


def test_help_has_every_option_and_examples(built: Built) -> None:
    said = cli(built, "sample", "--help")
    assert "\nExamples:\n  ddm-cli sample " in said
    options = set(re.findall(r"(?<=[ ,])--?[a-z][a-z-]*", said))
    python = {name for option in command_line.program().commands["sample"].params for name in option.opts}
    assert {name for name in python if name.startswith("-")} - options == ONLY_PYTHONS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-n", "many"), "-n: Value many not in range"),
        (("-nmany",), "-n: Value many not in range"),
        (("--guidance-scale", "x"), "Could not convert: --guidance-scale = x"),
        (("--threads", "0"), "--threads: Value 0 not in range [1 - 2147483647]"),
        (("--threads", "4294967297"), "--threads: Value 4294967297 not in range [1 - 2147483647]"),
        (("--seed", "1.5"), "Could not convert: --seed = 1.5"),
        (("--shards",), "The following argument was not expected: --shards"),
        (("more",), "The following argument was not expected: more"),
        (("--seed",), "--seed: 1 required UINT missing"),
    ],
)
def test_an_option_that_cannot_be(built: Built, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    assert cli(built, "sample", DIGITS, "--out", tmp_path / "out", *arguments, code=2).startswith(said)


def test_a_list_takes_one_argument(built: Built, tmp_path: Path) -> None:
    """So that the bundle may come after it."""
    assert cli(built, "sample", "--apg", "15", DIGITS, "-n", 1, "--steps", 1, "--out", tmp_path / "out")


def test_a_command_must_be_named(built: Built) -> None:
    assert cli(built, code=2).startswith("name a command: ")
    assert cli(built, "more", code=2) == "The following argument was not expected: more"
