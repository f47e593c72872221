"""The command line as a user meets it: arguments in, exit code, stdout and stderr out."""

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pictures import write_folder

from ddm_rt.bundle import Bundle
from ddm_rt.cli import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def refusal(self) -> str:
        """The message of a user's mistake, which must be one line and nothing else."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert self.code == 2, (self.code, self.out, self.err)
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        assert "Traceback" not in self.out + self.err
        return lines[0].removeprefix("error: ")


Command = Callable[..., Result]


def command(*arguments: object) -> Result:
    """`ddm-rt ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["ddm-rt", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        return Result(int(stop.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = argv
    return Result(0, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def ddm_rt() -> Command:
    return command


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 labelled drawings of 16x16, 3:1. Read-only."""
    return write_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """What `ddm-rt train` left and said. Read-only."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, command("train", "--preset", "tiny", "--data", folder, "--out", out)


@pytest.fixture(scope="session")
def exported(trained: tuple[Path, Result], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """What `ddm-rt export` left and said. Read-only."""
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    return out, command("export", trained[0], "--out", out)


@pytest.fixture(scope="session")
def bundle(exported: tuple[Path, Result]) -> Bundle:
    """The exported bundle, opened. Read-only."""
    return Bundle.load(exported[0])


@pytest.fixture(scope="session")
def sampled(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """What `ddm-rt sample -n 12 --seed 5` left and said. Read-only."""
    out = tmp_path_factory.mktemp("samples") / "images"
    return out, command("sample", bundle.path, "-n", 12, "--seed", 5, "--out", out)


@pytest.fixture(scope="session")
def judge(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """What `ddm-rt train-judge` left and said. Read-only."""
    directory = tmp_path_factory.mktemp("judge")
    held_out = write_folder(directory / "held_out", 40, seed=1)
    line = ("train-judge", "--data", folder, "--held-out", held_out, "--image-size", 16, "--steps", 40)
    return directory / "judge.onnx", command(*line, "--out", directory / "judge.onnx")
