"""The page on the command line: every command with its options, from the program's own help."""

import re
from typing import Any

_INTRODUCTION = """# Command line

Every command tells the same with `--help`. A mistake in what you give a command ends it with exit code 2 and one line
that says what was expected. Nothing is left half-written.

This page is made of the commands in the code.
"""
_OPTION = re.compile(r"(?<![\w`-])(--?[a-z][\w-]*)(?!`)")
_INDENT = "    "
_WORDS = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER", "path": "PATH", "file": "PATH", "directory": "PATH"}


def program() -> Any:
    """The program `ddm-rt`, as typer runs it."""
    from typer.main import get_command

    from ddm_rt.cli.app import app

    return get_command(app)


def page(group: Any = None) -> str:
    """Markdown. Raises ValueError naming commands and options without help."""
    group = program() if group is None else group
    commands = {name: command for name, command in group.commands.items() if not command.hidden}
    if silent := _silent(group, commands):
        raise ValueError(f"no help: {', '.join(silent)}")
    lines = [_INTRODUCTION.strip(), "| command | what it does |\n| --- | --- |"]
    rows = (f"| [`ddm-rt {name}`](#{_anchor(name)}) | {_cell(_first(each.help))} |" for name, each in commands.items())
    lines[-1] += "\n" + "\n".join(rows)
    lines += ["## Options before the command", *_tables(group)]
    for name, command in commands.items():
        lines += [f"## `ddm-rt {name}` {{ #{_anchor(name)} }}", *_prose(command.help), *_tables(command)]
    return "\n\n".join(lines) + "\n"


def _silent(group: Any, commands: dict[str, Any]) -> list[str]:
    silent = [f"ddm-rt {name}" for name, command in commands.items() if not command.help]
    for name, command in {"": group, **commands}.items():
        silent += [
            f"{f'ddm-rt {name}'.strip()} {_names(parameter)[0]}" for parameter in _seen(command) if not parameter.help
        ]
    return silent


def _seen(command: Any) -> list[Any]:
    """Parameters that its help shows, but for --help."""
    return [each for each in command.params if not getattr(each, "hidden", False) and each.name != "help"]


def _names(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [parameter.metavar or parameter.name.upper()]
    return [*parameter.opts, *parameter.secondary_opts]


def _tables(command: Any) -> list[str]:
    """A table for the arguments, and one for each panel of options, in the order of the help."""
    panels: dict[str, list[str]] = {}
    for each in _seen(command):
        argument = each.param_type_name == "argument"
        panel = getattr(each, "rich_help_panel", None) or ("Arguments" if argument else "Options")
        kind = "" if getattr(each, "is_flag", False) or argument else f" {_kind(each)}"
        name = ", ".join(f"`{name}{kind}`" for name in _names(each))
        panels.setdefault(panel, []).append(f"| {name} | {_cell(each.help)} | {_default(each)} |")
    head = "| {} | meaning | default |\n| --- | --- | --- |\n"
    return [
        f"**{panel}**\n\n" + head.format("argument" if panel == "Arguments" else "option") + "\n".join(rows)
        for panel, rows in panels.items()
    ]


def _kind(option: Any) -> str:
    """What stands behind an option: its own word, its choices, or the name of its type."""
    kind = option.metavar or option.display_type(None).strip("<>").removesuffix(" range")
    found = re.sub(r"^list\[(.*)\]$", r"\1", kind)
    return found if option.metavar else _WORDS.get(found, found)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    default = getattr(parameter.default, "value", parameter.default)
    if any(default is nothing for nothing in (None, False)) or default in ((), []) or callable(default):
        return "several" if getattr(parameter, "multiple", False) else ""
    return "on" if default is True else f"`{default}`"


def _first(text: str) -> str:
    return " ".join(text.strip().split("\n\n")[0].split())


def _prose(text: str) -> list[str]:
    """Paragraphs of the help. Indented ones are examples: commands, of which long ones go on on a second line."""
    found: list[str] = []
    text = re.sub(r"^Example: (?=ddm-rt )", f"Example:\n\n{_INDENT}", text.replace("\b", ""), flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph.startswith(_INDENT):
            # A line that is indented further belongs to the command before it.
            example = re.sub(r"\n +", "\n", re.sub(r"\n {8,}", " ", paragraph.strip()))
            if found and found[-1].startswith("```sh"):
                found[-1] = found[-1].removesuffix("\n```") + f"\n{example}\n```"
            else:
                found.append(f"```sh\n{example}\n```")
        else:
            found.append(_marked(" ".join(paragraph.split())))
    return found


def _cell(text: str) -> str:
    return _marked(" ".join(text.split())).replace("|", r"\|")


def _marked(text: str) -> str:
    """Options as code, and signs that Markdown would read as its own."""
    parts = re.split(r"(`[^`]*`)", text)  # code stays as it is
    return "".join(
        part if part.startswith("`") else _OPTION.sub(r"`\1`", part.replace("*", r"\*").replace("<", r"\<"))
        for part in parts
    )


def _anchor(name: str) -> str:
    return f"ddm-rt-{name}"
