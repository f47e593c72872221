"""Makes ddm_rt/csrc/folded_tables.cpp: what becomes of characters where words are compared (`leave_alone.py`), by
Python's Unicode. What normal form C makes of them anyway is left out.

    python tests/folded_tables.py > ddm_rt/csrc/folded_tables.cpp
"""

import unicodedata
from collections.abc import Iterator

from unicode_tables import CHARACTERS, flat, runs, table

from ddm_rt.sample.balance.leave_alone import _folded


def text() -> str:
    """The whole file."""
    folded = {ord(c): to for c in CHARACTERS if (to := _folded(c)) != unicodedata.normalize("NFC", c)}
    one = [(c, ord(to) - c) for c, to in folded.items() if len(to) == 1]
    tables = {
        "folded_to_one": ("gap, length, stride within it, distance to what it becomes", flat(runs(one))),
        "folded_to_more": ("gap, number of characters, these", list(_several(folded))),
    }
    body = "\n".join(table(name, about, numbers) for name, (about, numbers) in tables.items())
    return (
        f"// Characters as words are compared, by Unicode {unicodedata.unidata_version}. Made by "
        "tests/folded_tables.py; don't edit.\n"
        '#include "folded_tables.h"\n\nnamespace ddm::unicode {\n\n'
        f"{body}\n}}  // namespace ddm::unicode\n"
    )


def _several(folded: dict[int, str]) -> Iterator[int]:
    end = 0
    for c, to in folded.items():
        if len(to) != 1:
            yield from (c - end, len(to), *map(ord, to))
            end = c + 1


if __name__ == "__main__":
    print(text(), end="")
