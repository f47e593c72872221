"""Makes ddm_rt/csrc/unicode_tables.cpp by asking the `tokenizers` library about every character: its Unicode is three
versions at once (one for normal forms, one for capitals, one for classes), so no other library agrees with it.

    python tests/unicode_tables.py > ddm_rt/csrc/unicode_tables.cpp
"""

import itertools
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Regex, normalizers, pre_tokenizers

CHARACTERS = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]  # without halves of pairs

_composed = normalizers.NFC().normalize_str
_decomposed = normalizers.NFD().normalize_str
_lowercase = normalizers.Lowercase().normalize_str


def text() -> str:
    """The whole file."""
    tables = {
        "letters": ("\\p{L}: gap to the next range, its length", flat(_ranges(_matching(r"\p{L}")))),
        "numbers": ("\\p{N}: the same", flat(_ranges(_matching(r"\p{N}")))),
        "lowercase": ("capitals: gap, length, stride within it, distance to the small letter", flat(_capitals())),
        "combining": ("canonical combining classes: gap, length, class", flat(_classes())),
        "decompositions": ("gap to the character, its two parts (0: there is one)", flat(_decompositions())),
        "not_composed": ("of those, with two parts and yet never composed: gaps", list(_gaps(_excluded()))),
    }
    body = "\n".join(table(name, about, numbers) for name, (about, numbers) in tables.items())
    return (
        "// Characters as the tokenizers library has them. Made by tests/unicode_tables.py; don't edit.\n"
        '#include "unicode_tables.h"\n\nnamespace ddm::unicode {\n\n'
        f"{body}\n}}  // namespace ddm::unicode\n"
    )


def table(name: str, about: str, numbers: Sequence[int]) -> str:
    lines = textwrap.fill(",".join(map(str, numbers)).replace(",", ", "), 136, break_long_words=False)
    lines = textwrap.indent(lines.replace(", ", ","), "    ")
    return (
        f"// {about}\nconst std::int32_t {name}[] = {{\n{lines}}};\nconst std::size_t {name}_size = {len(numbers)};\n"
    )


def _matching(pattern: str) -> list[int]:
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return [ord(c) for c in CHARACTERS if split.pre_tokenize_str(c)]


def _ranges(points: Iterable[int], end: int = 0) -> Iterator[tuple[int, int]]:
    """(gap since the last range's end, length), ascending."""
    for _, group in itertools.groupby(enumerate(points), lambda pair: pair[1] - pair[0]):
        members = [point for _, point in group]
        yield members[0] - end, len(members)
        end = members[-1] + 1


def _capitals() -> Iterator[tuple[int, int, int, int]]:
    """All but U+0130, which becomes two characters."""
    small = ((c, _lowercase(c)) for c in CHARACTERS)
    return runs([(ord(c), ord(to) - ord(c)) for c, to in small if len(to) == 1 and to != c])


def runs(pairs: list[tuple[int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """Of (character, distance), ascending: those of one distance, side by side or each second one, as
    (gap since the last run's end, length, stride within it, distance)."""
    end = 0
    while pairs:
        (first, distance), stride = pairs[0], 1
        if len(pairs) > 1 and pairs[1] == (first + 2, distance):
            stride = 2
        count = 1
        while count < len(pairs) and pairs[count] == (first + count * stride, distance):
            count += 1
        last = first + (count - 1) * stride
        yield first - end, last - first + 1, stride, distance
        end, pairs = last + 1, pairs[count:]


def _classes() -> Iterator[tuple[int, int, int]]:
    """Python's classes, of the characters that the library knows to be combining: it moves them past others."""
    low, high = "\u0334", "\u0345"  # classes 1 and 240
    known = {}
    for c in CHARACTERS:
        if (cls := unicodedata.combining(c)) and _decomposed(c) == c:
            moves = _decomposed(f"a{c}{low}") == f"a{low}{c}" or _decomposed(f"a{high}{c}") == f"a{c}{high}"
            if moves or cls in (1, 240):
                known[ord(c)] = cls
    end = 0
    for cls, group in itertools.groupby(known, lambda point: known[point]):
        members = list(group)
        for gap, length in _ranges(members, end):
            yield gap, length, cls
        end = members[-1] + 1


def _decompositions() -> Iterator[tuple[int, int, int]]:
    end = 0
    for c, parts in _parts().items():
        yield ord(c) - end, parts[0], parts[1] if len(parts) > 1 else 0
        end = ord(c) + 1


def _excluded() -> list[int]:
    return [ord(c) for c, parts in _parts().items() if len(parts) > 1 and _composed("".join(map(chr, parts))) != c]


def _parts() -> dict[str, list[int]]:
    """The first step of each canonical decomposition; Hangul syllables, which are computed, have none here."""
    found = {}
    for c in CHARACTERS:
        parts = unicodedata.decomposition(c)
        if parts and not parts.startswith("<") and _decomposed(c) != c:
            found[c] = [int(part, 16) for part in parts.split()]
    return found


def _gaps(points: Iterable[int]) -> Iterator[int]:
    end = 0
    for point in points:
        yield point - end
        end = point + 1


def flat(rows: Iterable[tuple[int, ...]]) -> list[int]:
    return [number for row in rows for number in row]


if __name__ == "__main__":
    print(text(), end="")
