"""How `--help` looks: plain text whose words are never cut, options in groups, examples that can be copied."""

import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from ddm_rt.sample.request import told_fields

_NAMES = 26  # characters at most that the names of options get; what is longer has a line of its own
# Words of a shell: quoted text isn't taken apart, and an option keeps its value.
_WORDS = re.compile(r"""(?:--?[\w-]+ (?!-))?(?:"[^"]*"|'[^']*'|\S)+""")
_TYPES = re.compile(r"<(?:list\[)?(\w+)(?:\]| range)>")


# What several commands have, besides the fields of `Request`. What a command doesn't name stands under "Options".
_SHARED = {
    "Balance": "ledger fsync",
    "Backend and device": "backend device precision mode threads",
    "Other options": "classes set_",
}


class Command(TyperCommand):
    """A command of `ddm-rt`, with the names of its options by the title of their group."""

    def __init__(self, groups: Mapping[str, str], **given: Any) -> None:
        super().__init__(**given)
        titles = {name: field.told.group for name, field in told_fields().items()}
        titles |= {name: title for each in (_SHARED, groups) for title, names in each.items() for name in names.split()}
        for each in self.params:
            each.rich_help_panel = titles.get(each.name, "Options")  # type: ignore[attr-defined]
            if each.default is not True:
                each.secondary_opts = []  # no --no-flag

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        _write_text(self.help or "", formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for each in self.get_params(ctx):
            if (record := each.get_help_record(ctx)) is not None:
                group = getattr(each, "rich_help_panel", None) or "Options"
                group = "Arguments" if each.param_type_name == "argument" else group
                groups.setdefault(group, []).append(
                    (_TYPES.sub(lambda kind: f"<{kind[1].lower()}>", record[0]), record[1])
                )
        for name, rows in groups.items():
            _write_rows(name, rows, formatter)


class Program(TyperGroup):
    """`ddm-rt` itself, whose commands stand in groups."""

    format_help_text = Command.format_help_text

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            sentence = re.split(r"(?<=\.)\s", " ".join((command.help or "").split()))[0]
            groups.setdefault(getattr(command, "rich_help_panel", ""), []).append((name, sentence))
        groups["Options"] = [record for each in self.get_params(ctx) if (record := each.get_help_record(ctx))]
        for name, rows in groups.items():
            _write_rows(name, rows, formatter)


def _write_text(text: str, formatter: Any) -> None:
    """Paragraphs. Lines that are indented are commands, one a line; those that are indented further belong to it."""
    for paragraph in re.split(r"\n{2,}", inspect.cleandoc(text)):
        formatter.write("\n")
        if paragraph.startswith(" "):
            for command in re.split(r"\n +", re.sub(r"\n {8,}", " ", paragraph)):
                formatter.write(_copyable(command, "      ", formatter.width))
        else:
            formatter.write(wrapped(paragraph, "  ", formatter.width))


def _write_rows(title: str, rows: Sequence[tuple[str, str]], formatter: Any) -> None:
    """What there is of a group: names, and what is said of each."""
    if not rows:
        return
    formatter.write(f"\n{title}:\n")
    column = 4 + max((len(name) for name, _ in rows if len(name) <= _NAMES), default=_NAMES)
    for name, text in rows:
        said = wrapped(text, " " * column, formatter.width)
        beside = len(name) + 4 <= column
        formatter.write(f"  {name}".ljust(column) + said[column:] if beside else f"  {name}\n{said}")


def wrapped(text: str, indent: str, width: int, first: str | None = None) -> str:
    """Lines that are broken between words alone; the `first` may begin with another indent."""
    head = indent if first is None else first
    lines = textwrap.TextWrapper(width, head, indent, break_long_words=False, break_on_hyphens=False)
    return lines.fill(" ".join(text.split())) + "\n"


def _copyable(command: str, indent: str, width: int) -> str:
    r"""A command; where it is longer than a line, with a `\` at the end of each but the last."""
    lines = [indent]
    for word in _WORDS.findall(command):
        if lines[-1].strip() and len(lines[-1]) + len(word) + 2 > width:
            lines.append(indent + "    ")
        lines[-1] += f"{word} "
    return "\\\n".join(lines).rstrip() + "\n"
