"""Makes ddm_rt/csrc/text_tables.h: what Python's `str` calls printable, and the digits of pydantic's patterns, whose
Unicode is newer.

    python tests/text_tables.py > ddm_rt/csrc/text_tables.h
"""

import itertools
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

CHARACTERS = [chr(c) for c in range(0x110000)]


def text() -> str:
    """The whole file."""
    hidden = ", ".join(f"{{{first:#x}, {last:#x}}}" for first, last in _ranges(not_printable()))
    zeros = ", ".join(f"{zero:#x}" for zero in _zeros())
    return (
        f"// Characters as Python's str (Unicode {unicodedata.unidata_version}) and pydantic's patterns have them. "
        "Made by tests/text_tables.py; don't edit.\n"
        "#ifndef DDM_RT_TEXT_TABLES_H\n#define DDM_RT_TEXT_TABLES_H\n\nnamespace ddm {\n\n"
        "struct CharacterRange {\n    char32_t first, last;\n};\n\n"
        "// Not printable; what Unicode hasn't assigned isn't either.\n"
        f"inline constexpr CharacterRange NOT_PRINTABLE[] = {{\n{_filled(hidden)}}};\n\n"
        "// The first of ten digits each.\n"
        f"inline constexpr char32_t ZEROS[] = {{\n{_filled(zeros)}}};\n\n"
        "}  // namespace ddm\n\n#endif\n"
    )


def not_printable() -> list[int]:
    return [ord(c) for c in CHARACTERS if not c.isprintable()]


def digits() -> list[int]:
    """What pydantic's `\\d` takes."""
    without = TypeAdapter(Annotated[str, Field(pattern=r"^\D*$")])

    def within(characters: str) -> Iterator[str]:
        try:
            without.validate_python(characters)
        except ValidationError:
            if len(characters) == 1:
                yield characters
                return
            half = len(characters) // 2
            yield from within(characters[:half])
            yield from within(characters[half:])

    every = "".join(c for c in CHARACTERS if not "\ud800" <= c <= "\udfff")
    return [ord(c) for i in range(0, len(every), 256) for c in within(every[i : i + 256])]


def _zeros() -> Iterator[int]:
    for first, last in _ranges(digits()):
        yield from range(first, last, 10)


def _ranges(points: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of each run, ascending."""
    for _, group in itertools.groupby(enumerate(points), lambda pair: pair[1] - pair[0]):
        members = [point for _, point in group]
        yield members[0], members[-1]


def _filled(items: str) -> str:
    return textwrap.indent(textwrap.fill(items, 116, break_long_words=False), "    ")


if __name__ == "__main__":
    print(text(), end="")
