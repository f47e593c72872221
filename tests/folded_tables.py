"""Makes ddm_rt/csrc/folded_tables.cpp: what becomes of characters where words are compared (`sample.leave_alone`), by
Python's Unicode. What normal form C makes of them anyway is left out.

    python tests/folded_tables.py > ddm_rt/csrc/folded_tables.cpp
"""

import textwrap
import unicodedata
from collections.abc import Iterator

from ddm_rt.sample.leave_alone import _folded


def text() -> str:
    """The whole file."""
    every = (chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF)
    folded = {ord(c): to for c in every if (to := _folded(c)) != unicodedata.normalize("NFC", c)}
    one = [(c, ord(to) - c) for c, to in folded.items() if len(to) == 1]
    tables = {
        "folded_to_one": ("gap, length, stride within it, distance to what it becomes", list(_runs(one))),
        "folded_to_more": ("gap, number of characters, these", list(_several(folded))),
    }
    body = "\n".join(_table(name, about, numbers) for name, (about, numbers) in tables.items())
    return (
        f"// Characters as words are compared, by Unicode {unicodedata.unidata_version}. Made by "
        "tests/folded_tables.py; don't edit.\n"
        '#include "folded_tables.h"\n\nnamespace ddm::unicode {\n\n'
        f"{body}\n}}  // namespace ddm::unicode\n"
    )


def _table(name: str, about: str, numbers: list[int]) -> str:
    lines = textwrap.fill(", ".join(map(str, numbers)), 150, break_long_words=False).replace(", ", ",")
    return (
        f"// {about}\nconst std::int32_t {name}[] = {{\n{textwrap.indent(lines, '    ')}}};\n"
        f"const std::size_t {name}_size = {len(numbers)};\n"
    )


def _runs(pairs: list[tuple[int, int]]) -> Iterator[int]:
    """Characters of one distance, side by side or each second one."""
    end = 0
    while pairs:
        (first, distance), stride = pairs[0], 1
        if len(pairs) > 1 and pairs[1] == (first + 2, distance):
            stride = 2
        count = 1
        while count < len(pairs) and pairs[count] == (first + count * stride, distance):
            count += 1
        last = first + (count - 1) * stride
        yield from (first - end, last - first + 1, stride, distance)
        end, pairs = last + 1, pairs[count:]


def _several(folded: dict[int, str]) -> Iterator[int]:
    end = 0
    for c, to in folded.items():
        if len(to) != 1:
            yield from (c - end, len(to), *map(ord, to))
            end = c + 1


if __name__ == "__main__":
    print(text(), end="")
