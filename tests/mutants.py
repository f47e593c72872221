"""Mutation testing: whether the tests notice when one place in the code is changed.

    python tests/mutants.py tests/mutants/survivors.jsonl
    python tests/mutants.py tests/mutants/survivors.jsonl --room sample --room schedule --jobs 2 --out found.jsonl

A list has one mutant in each line, as JSON:

    {"file": "ddm_rt/sample/balance/quota.py", "old": "scaled >= DENOMINATOR", "new": "scaled > DENOMINATOR"}

`old` stands once in the file. `tests` (optional) lists what pytest is given. Without it that is the mirror file of the
module's tests and every test file that names the module. `note` (optional) is for readers.

Nothing in the working tree is touched. Each job has a copy of the tree in a temporary folder with an environment of
its own, in which `ddm_rt` is the copy's. The tests run unmutated first, and must pass. Then one file of each top folder
is replaced by one that can't be imported, and the tests must fail, since otherwise they would not be those of the copy.
A mutant is killed where a test fails, and where the tests take longer than the limit (which is told apart).

The exit code is 0 where every mutant is killed, 1 where one survives, and 2 where the list or the tests are unfit.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KILLED, SURVIVED, TIMEOUT = "killed", "survived", "timeout"
# What a build, a run or an example leaves at the top; hidden files are left out too.
_NOT_COPIED = ("build", "dist", "runs", "out", "demo-out", "test-artefacts")
_PYTEST = ("-m", "pytest", "-x", "-q", "-rfE", "--tb=short", "-m", "not slow", "-p", "no:cacheprovider")
# Plugins that no test here relies on; importing them takes longer than most tests.
_WITHOUT = ("-p", "no:schemathesis", "-p", "no:xdist", "-p", "no:anyio")
_UNIMPORTABLE = 'raise ImportError("a mutant that must be noticed")\n'
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


class Unfit(Exception):
    """The list, or the tests that it names, can't be used."""


@dataclass(frozen=True)
class Mutant:
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.old.strip()!r} to {self.new.strip()!r}"

    @property
    def room(self) -> str:
        """ "sample" of ddm_rt/sample/shards.py, "schedule" of ddm_rt/schedule.py, "benchmarks" of benchmarks/run.py."""
        top, *rest = Path(self.file).with_suffix("").parts
        return rest[0] if top == "ddm_rt" and rest else top


@dataclass(frozen=True)
class Result:
    mutant: Mutant
    outcome: str
    by: str  # the test that failed first, where pytest named one
    seconds: float


def read_list(path: Path, root: Path, rooms: Sequence[str] = ()) -> list[Mutant]:
    """The mutants of a list, or of some rooms, each with its tests. Raises Unfit naming all that don't fit the tree."""
    mutants, problems = [], []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            mutant = Mutant(**fields | {"tests": tuple(fields.get("tests", ()))})
        except (ValueError, TypeError) as error:
            problems.append(f"{path}:{number}: not a mutant ({error})")
            continue
        if rooms and mutant.room not in rooms:
            continue
        if problem := _problem(mutant, root):
            problems.append(f"{path}:{number}: {mutant}: {problem}")
        mutants.append(replace(mutant, tests=mutant.tests or default_tests(mutant.file, root)))
        if not problems and not mutants[-1].tests:
            problems.append(f"{path}:{number}: {mutant}: no test file names the module; expected `tests`")
    if problems:
        raise Unfit("\n".join(problems))
    return mutants


def _problem(mutant: Mutant, root: Path) -> str | None:
    if not (root / mutant.file).is_file():
        return "no such file"
    if mutant.old == mutant.new:
        return "it changes nothing"
    if (count := (root / mutant.file).read_text().count(mutant.old)) != 1:
        return f"the text stands {count} times in the file; expected once"
    missing = [test for test in mutant.tests if not (root / test.partition("::")[0]).exists()]
    return f"no such tests: {', '.join(missing)}" if missing else None


def default_tests(file: str, root: Path) -> tuple[str, ...]:
    """The mirror file of a module's tests, and the test files that name the module."""
    path = Path(file).with_suffix("")
    parts = path.parts[1:] if path.parts[0] == "benchmarks" else path.parts
    module, package = ".".join(parts), ".".join(parts[:-1])
    names = re.escape(module)
    named = [rf"\b{names}\b" if package else rf"^\s*(?:import|from) {names}\b"]
    if package:
        named.append(rf"from {re.escape(package)} import (?:[^(\n]*|\([^)]*)\b{re.escape(parts[-1])}\b")
    pattern = re.compile("|".join(named), re.MULTILINE)
    folder = Path("tests", *(path.parts[1:-1] if path.parts[0] == "ddm_rt" else path.parts[:-1]))
    mirror = (folder / f"test_{path.name}.py").as_posix()
    found = sorted((root / "tests").rglob("test_*.py"))
    chosen = [test.relative_to(root).as_posix() for test in found if pattern.search(test.read_text())]
    return tuple(dict.fromkeys([mirror] * (root / mirror).is_file() + chosen))


class Copy:
    """A copy of the tree, with an environment whose packages are this one's and whose project is the copy's."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = folder
        self._running: subprocess.Popen[bytes] | None = None

        def left_out(place: str, names: list[str]) -> list[str]:
            top = Path(place) == root
            return [n for n in names if n == "__pycache__" or (top and (n.startswith(".") or n in _NOT_COPIED))]

        shutil.copytree(root, folder, ignore=left_out)
        venv.create(folder / ".venv", symlinks=True)
        self._python = folder / ".venv" / "bin" / "python"
        (site,) = (folder / ".venv" / "lib").glob("python*/site-packages")
        packages = [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
        lines = [str(package) for package in packages]
        # An editable install finds modules by a table of paths, before `sys.path` is asked.
        for finder in (found for package in packages for found in package.glob("_*editable*.py")):
            text = finder.read_text()
            if str(root) in text:
                (site / finder.name).write_text(text.replace(str(root), str(folder)))
                lines = [f"import {finder.stem}", str(folder), *lines]
        (site / "mutants.pth").write_text("\n".join(lines) + "\n")

    def run(self, tests: Iterable[str], limit_s: float) -> tuple[int | None, str]:
        """pytest's exit code, None after the limit, and what it said."""
        command = [str(self._python), *_PYTEST, *_WITHOUT, *tests]
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            self._running = process = subprocess.Popen(
                command, cwd=self.root, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True
            )
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                self.stop()
            said.seek(0)
            return code, said.read()

    def stop(self) -> None:
        """End the tests, and what they started."""
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)
            self._running.wait()

    def run_changed(self, file: str, change: Callable[[str], str], tests: Iterable[str], limit_s: float) -> Any:
        """As `run`, while the file's text is changed."""
        path = self.root / file
        text = path.read_text()
        # Examples that failed before are tried again, which would make a mutant's end depend on those before it.
        shutil.rmtree(self.root / ".hypothesis", ignore_errors=True)
        try:
            _write(path, change(text))
            return self.run(tests, limit_s)
        finally:
            _write(path, text)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    # Python takes what it compiled before for up to date where size and second of change are the same.
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def check_tests(copy: Copy, mutants: Sequence[Mutant], say: Callable[[str], None]) -> None:
    """Raises Unfit where tests fail without a mutant, or don't import the copy's files."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    say(f"without a mutant: {' '.join(tests)}")
    code, said = copy.run(tests, 3600)
    if code != 0:
        raise Unfit(f"the tests fail without a mutant:\n{said[-3000:]}")
    for mutant in {Path(mutant.file).parts[0]: mutant for mutant in mutants}.values():
        say(f"a file that can't be imported: {mutant.file}")
        code, said = copy.run_changed(mutant.file, lambda text: _UNIMPORTABLE, mutant.tests, 3600)
        if code == 0:
            raise Unfit(f"{mutant.file}: the tests pass although it can't be imported: they are those of another tree")


def run_all(
    root: Path, mutants: Sequence[Mutant], jobs: int, limit_s: float, say: Callable[[str], None]
) -> list[Result]:
    """In the order of the list. Raises Unfit as `check_tests` does."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Copy(root, Path(folder).resolve() / str(number)) for number in range(jobs)]
        check_tests(copies[0], mutants, say)
        free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for copy in copies:
            free.put(copy)

        def judge(mutant: Mutant) -> Result:
            copy, start = free.get(), time.monotonic()
            try:
                code, said = copy.run_changed(
                    mutant.file, lambda text: text.replace(mutant.old, mutant.new), mutant.tests, limit_s
                )
            finally:
                free.put(copy)
            failed = _FAILED.search(said)
            outcome = TIMEOUT if code is None else SURVIVED if code == 0 else KILLED
            by = failed[1] if failed and outcome == KILLED else ""
            return Result(mutant, outcome, by, round(time.monotonic() - start, 1))

        with ThreadPoolExecutor(jobs) as pool:
            under_way = {pool.submit(judge, mutant): number for number, mutant in enumerate(mutants)}
            found: dict[int, Result] = {}
            try:
                for done in as_completed(under_way):
                    found[under_way[done]] = result = done.result()
                    place = f"[{len(found)}/{len(mutants)}]"
                    say(f"{place} {result.outcome} ({result.seconds} s) {result.mutant} {result.by}".rstrip())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for copy in copies:
                    copy.stop()
                raise
    return [found[number] for number in range(len(mutants))]


def table(results: Sequence[Result]) -> str:
    """Markdown: how many were killed, survived and ran out of time, for each room."""
    columns = (KILLED, SURVIVED, TIMEOUT)
    counts = Counter((result.mutant.room, result.outcome) for result in results)
    lines = [f"| room | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for room in dict.fromkeys(result.mutant.room for result in results):
        lines.append(f"| {room} | {' | '.join(str(counts[room, outcome]) for outcome in columns)} |")
    total = Counter(result.outcome for result in results)
    return "\n".join([*lines, f"| all | {' | '.join(str(total[outcome]) for outcome in columns)} |"])


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, help="mutants in JSON Lines")
    parser.add_argument("--room", action="append", help="the mutants of this room alone (may be repeated)")
    parser.add_argument("--jobs", type=int, default=1, help="mutants side by side, each in a copy of the tree")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="of one mutant's tests")
    parser.add_argument("--out", type=Path, help="write the results here, in JSON Lines")
    given = parser.parse_args(arguments)
    try:
        mutants = read_list(given.list, root, given.room or ())
        if not mutants or given.jobs < 1:
            raise Unfit("no mutants are left" if given.jobs >= 1 else f"--jobs is {given.jobs}; expected at least 1")
        results = run_all(root, mutants, given.jobs, given.limit, lambda text: print(text, flush=True))
    except (Unfit, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.out is not None:
        given.out.write_text("".join(json.dumps(asdict(result), ensure_ascii=False) + "\n" for result in results))
    print(table(results))
    for result in results:
        if result.outcome == SURVIVED:
            print(f"survived: {result.mutant}")
    return int(any(result.outcome == SURVIVED for result in results))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no tests go on without it, and no copies stay
    sys.exit(main())
