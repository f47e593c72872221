"""The page on the C library: its public header, function by function, with the comments that stand there."""

import re
from dataclasses import dataclass, field
from textwrap import dedent

_SECTION = re.compile(r"/\* -{4} (?P<title>[^:]+?)(?:: (?P<text>.+?))? -{4} \*/")
_FUNCTION = re.compile(r"DDM_RT_API [^;]*?\b(ddm_rt_\w+)\(")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_EXPORTED = "DDM_RT_API "
_GENERAL = "What holds for all of it"


@dataclass
class Part:
    """A comment, and the declarations that it is about."""

    text: str
    code: list[str] = field(default_factory=list)

    @property
    def functions(self) -> list[str]:
        return _FUNCTION.findall("\n".join(self.code))


def page(header: str) -> str:
    """Markdown. Raises ValueError naming functions without a comment."""
    head, _, rest = header.partition("#ifndef DDM_RT_H")
    sections = _sections(rest)
    parts = [part for _, _, parts in sections for part in parts]
    if silent := [
        name for part in parts if not part.text and "/*" not in "".join(part.code) for name in part.functions
    ]:
        raise ValueError(f"functions of ddm_rt.h without a comment: {', '.join(silent)}")
    lines = ["# C", _prose(head), "This page is made of the header `ddm_rt.h`."]
    for title, text, members in sections:
        lines += [f"## {title}", *([f"{_sentence(text[0].upper() + text[1:])}."] if text else [])]
        for part in members:
            lines += [f"### {', '.join(f'`{name}`' for name in part.functions)}"] if part.functions else []
            lines += [_prose(part.text)] if part.text else []
            lines += [f"```c\n{_code(part.code)}\n```"] if part.code else []
    return "\n\n".join(lines) + "\n"


def _sections(text: str) -> list[tuple[str, str, list[Part]]]:
    """Title, what is said under it, and parts."""
    text = text.partition('extern "C" {\n#endif')[2].partition("#ifdef __cplusplus")[0]
    found: list[tuple[str, str, list[Part]]] = [(_GENERAL, "", [])]
    for paragraph in re.split(r"\n{2,}", text.strip()):
        if section := _SECTION.fullmatch(paragraph.strip()):
            found.append((section["title"], section["text"] or "", []))
        else:
            found[-1][2].extend(_parts(paragraph))
    return found


def _parts(paragraph: str) -> list[Part]:
    """A comment at the beginning of a line opens a part; what follows it, up to the next one, is about it."""
    parts: list[Part] = []
    while paragraph := paragraph.strip("\n"):
        if comment := _COMMENT.match(paragraph):
            parts.append(Part(comment[0]))
            paragraph = paragraph[comment.end() :]
            continue
        code = re.split(r"^(?=/\*)", paragraph, maxsplit=1, flags=re.MULTILINE)[0]
        parts = parts or [Part("")]
        parts[-1].code += code.rstrip().splitlines()
        paragraph = paragraph[len(code) :]
    return parts


def _code(lines: list[str]) -> str:
    """Declarations without the macro that exports them."""
    found, shift = [], 0
    for line in lines:
        if not line.startswith(" "):
            shift = len(_EXPORTED) if line.startswith(_EXPORTED) else 0
            found.append(line.removeprefix(_EXPORTED))
        else:
            found.append(line[min(shift, len(line) - len(line.lstrip())) :])
    return "\n".join(found)


def _prose(comment: str) -> str:
    """A comment's text as Markdown: indented lines are code, and names of functions and macros too."""
    inner = comment.strip().removeprefix("/*").removesuffix("*/")
    inner = "\n".join(re.sub(r"^ \*( |$)", "", line) for line in inner.splitlines())
    found = []
    for paragraph in re.split(r"\n\s*\n", inner.strip()):
        if paragraph.startswith("    "):
            found.append(f"```c\n{dedent(paragraph).rstrip()}\n```")
        else:
            found.append(_sentence(" ".join(paragraph.split())))
    return "\n\n".join(found)


def _sentence(text: str) -> str:
    text = re.sub(r'(?<![`\w])((?:ddm_rt|DDM_RT)_\w+(?:\(\))?|\{"[^}]*\})', r"`\1`", text)
    return text.replace("*", r"\*").replace("<", r"\<")
