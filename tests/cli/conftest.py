"""The command line as a user meets it: arguments in, exit code, stdout and stderr out."""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from known_graphs import trace_knowing
from made_once import made_once
from pictures import write_folder

from ddm_rt.bundle import Bundle
from ddm_rt.cli import main
from ddm_rt.export import graph


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


def command_once(place: Path, *line: object, into: str = "out") -> tuple[Path, Result]:
    """`ddm-rt LINE --out place/into`, by the first of the parallel workers that asks for it: where that is, and what
    was said.
    """

    def make(folder: Path) -> None:
        folder.mkdir()
        result = command(*line, "--out", folder / into)
        (folder / "result.json").write_text(json.dumps(asdict(result)))

    made_once(place, make)
    return place / into, Result(**json.loads((place / "result.json").read_text()))


@pytest.fixture(scope="session")
def ddm_rt() -> Command:
    return command


@pytest.fixture(scope="session")
def folder(shared_folder: Path) -> Path:
    """40 labelled drawings of 16x16, 3:1. Read-only."""
    return made_once(shared_folder / "cli-images", write_folder)


@pytest.fixture(scope="session")
def trained(folder: Path, shared_folder: Path) -> tuple[Path, Result]:
    """What `ddm-rt train` left and said. Read-only."""
    return command_once(shared_folder / "cli-trained", "train", "--preset", "tiny", "--data", folder)


@pytest.fixture(scope="session")
def exported(tiny_run: Path, tiny_bundle: Bundle, shared_folder: Path) -> tuple[Path, Result]:
    """What `ddm-rt export` left and said. Read-only. What `tiny_bundle` traced isn't traced again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", trace_knowing(tiny_bundle))
        return command_once(shared_folder / "cli-exported", "export", tiny_run)


@pytest.fixture(scope="session")
def bundle(exported: tuple[Path, Result]) -> Bundle:
    """The exported bundle, opened. Read-only."""
    return Bundle.load(exported[0])


@pytest.fixture(scope="session")
def sampled(bundle: Bundle, shared_folder: Path) -> tuple[Path, Result]:
    """What `ddm-rt sample -n 12 --seed 5` left and said. Read-only."""
    return command_once(shared_folder / "cli-sampled", "sample", bundle.path, "-n", 12, "--seed", 5)


@pytest.fixture(scope="session")
def judge(folder: Path, shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """What `ddm-rt train-judge` left and said. Read-only."""
    held_out = write_folder(tmp_path_factory.mktemp("judge") / "held_out", 40, seed=1)
    line = ("train-judge", "--data", folder, "--held-out", held_out, "--image-size", 16, "--steps", 40)
    return command_once(shared_folder / "cli-judge", *line, into="judge.onnx")
