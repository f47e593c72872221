"""What a terminal of 80 columns shows: help whose words and options are whole, and tables whose words are."""

import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text
from tables import check_words
from typer.main import get_command

import ddm_rt as package
from ddm_rt.cli import display
from ddm_rt.cli.app import app, console, tell

PROGRAM: Any = get_command(app)
COMMANDS = sorted(PROGRAM.commands)
DIGITS = "digits@backend=onnxruntime,threads=1,steps=2"


def help_of(ddm_rt: Callable, monkeypatch: pytest.MonkeyPatch, columns: int, *command: str) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    said = ddm_rt(*command, "--help")
    assert said.code == 0, said.err
    return str(said.out)


def examples(text: str) -> Iterator[list[str]]:
    """The commands among indented lines, as a shell takes them."""
    joined = re.sub(r"\n {8,}(?=--)", " ", re.sub(r" \\\n +", " ", text))
    for line in joined.splitlines():
        if re.match(r"( {4}| {6})(ddm-rt|accelerate|curl) ", line):
            yield shlex.split(line)


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_cuts_no_name_choice_or_word(
    ddm_rt: Callable, monkeypatch: pytest.MonkeyPatch, name: str, columns: int
) -> None:
    text = help_of(ddm_rt, monkeypatch, columns, name)
    command = PROGRAM.commands[name]
    words = set(text.split())
    for each in command.get_params(command.make_context(name, [], resilient_parsing=True)):
        if each.hidden:
            continue
        head, said = each.get_help_record(command.make_context(name, [], resilient_parsing=True))
        assert set(each.opts) - {each.name} <= set(re.findall(r"-[\w-]+", text)), head
        for choice in re.findall(r"[\w-]+", head.partition("<")[2]) if "|" in head else ():
            assert choice in re.findall(r"[\w-]+", text), head
        assert set(said.split()) <= words, head
    assert "…" not in text
    lines = [line.removesuffix(" \\") for line in text.splitlines()]
    assert all(len(line) <= columns or " " not in line.strip() for line in lines)


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("name", COMMANDS)
def test_examples_can_be_copied(ddm_rt: Callable, monkeypatch: pytest.MonkeyPatch, name: str, columns: int) -> None:
    shown = list(examples(help_of(ddm_rt, monkeypatch, columns, name)))
    assert shown == list(examples(inspect.cleandoc(PROGRAM.commands[name].help)))


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_said_in_sentences(name: str) -> None:
    for each in PROGRAM.commands[name].params:
        assert each.help, each.name
        assert each.help.endswith("."), each.help
        assert not re.match(r"(Of|As|That|From) ", each.help), each.help


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("train", ["Options", "Codes", "Checkpoints", "Backend and device", "Progress", "Other options"]),
        ("sample", ["Arguments", "Options", "Prompts and sampling", "Balance", "Files", "Backend and device"]),
        ("serve", ["Arguments", "Options", "Limits", "Balance", "Access", "Judge", "Files", "Backend and device"]),
    ],
)
def test_options_stand_in_groups_the_common_ones_first(
    ddm_rt: Callable, monkeypatch: pytest.MonkeyPatch, name: str, groups: list[str]
) -> None:
    found = re.findall(r"^(\w[\w ]+):$", help_of(ddm_rt, monkeypatch, 80, name), re.MULTILINE)
    assert found[: len(groups)] == groups


def test_alone_it_says_what_to_do_first(ddm_rt: Callable) -> None:
    said = ddm_rt()
    assert (said.code, said.err) == (0, "")
    assert [line[:2] for line in examples(said.out)] == [["ddm-rt", name] for name in ("sample", "demo", "train")]
    for group in ("Make a model", "Make images", "Measure", "Serve", "This machine"):
        assert f"\n{group}:\n" in said.out
    assert all(re.search(rf"^  {name} ", said.out, re.MULTILINE) for name in COMMANDS)


def test_version_is_an_option_too(ddm_rt: Callable) -> None:
    assert ddm_rt("--version").out == f"{package.__version__}\n"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is given to the terminal, in place of showing it."""
    shown: list[Any] = []
    monkeypatch.setattr(console, "print", lambda one, **_: shown.append(one))
    return shown


@pytest.mark.parametrize(
    ("line", "tables"),
    [
        (("bench", DIGITS, "--against", "digits", "--batch", "1,2", "--rounds", 1, "--processes", 0), 2),
        (("compare", DIGITS, f"{DIGITS},sampler=euler", "-n", 12, "--rounds", 1, "--reference", "digits:3,8"), 2),
        (("calibrate", "digits", "--judge", "digits", "--groups", "3,8", "-n", 16, "--steps", 2), 2),
        (("evaluate", "plain=digits", "ours=digits", "--judge", "digits", "-n", 24, "--min-per-group", 9), 1),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_tables_cut_no_word(
    ddm_rt: Callable, printed: list[Any], line: tuple[Any, ...], tables: int, tmp_path: Path
) -> None:
    line += () if line[0] == "bench" else ("--out", tmp_path / "out")
    said = ddm_rt(*line)
    assert said.code in (0, 1, 3), said.err
    found = [each for each in printed if not isinstance(each, str | Text)]
    assert len(found) == tables
    for each in found:
        check_words(each)


def test_the_table_of_codes_cuts_no_word(trained: tuple[Path, Any], printed: list[Any]) -> None:
    display.show_codes(trained[0])
    check_words(printed[0], blank=True)


@pytest.mark.parametrize("columns", [80, 120])
def test_doctor_and_sentences_break_between_words(
    ddm_rt: Callable, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "_width", columns)
    said = ddm_rt("doctor", "digits")
    assert "\nyes  backend onnxruntime on cpu: ready\n" in said.out
    assert all(len(line) <= columns or " " not in line.strip() for line in said.out.splitlines())


def test_a_path_is_never_broken(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "_width", 40)
    path = "/somewhere/with-hyphens/" + 60 * "x"
    tell(f"some words, then {path} and more")
    assert path in capsys.readouterr().out.splitlines()


def test_a_cut_word_is_noticed() -> None:
    table = Table("name", *map(str, range(9)))
    table.add_row("something-" * 3, *9 * ["0.123 [0.012, 0.345]"])
    with pytest.raises(AssertionError):
        check_words(table)
