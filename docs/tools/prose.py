"""How long the sentences of README, CONTRIBUTING and the documentation are.

    python docs/tools/prose.py                             # a line for each page, and each sentence that is too long
    python docs/tools/prose.py docs/pages/guides/*.md

Of each page 95 % of the sentences have at most 30 words, and none has more than 40: the exit code is 1 where a page
has longer ones. Headings, tables, code blocks and comments are left out; a code span counts as one word, and so does a
link's address. A list item or a paragraph ends a sentence, whether or not it ends with a full stop.
"""

import argparse
import math
import re
import sys
from pathlib import Path

from blocks import ROOT, pages
from markdown_it import MarkdownIt
from markdown_it.token import Token

P95_WORDS, MOST_WORDS = 30, 40
# A sentence ends with a mark, perhaps a bracket or quote, and space; what follows does not go on in lower case.
# Code may begin a sentence.
_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)[)\"”*]*\s+(?=[^a-z\s])")


def sentences(page: Path) -> list[str]:
    """Of the page's paragraphs and list items."""
    found: list[str] = []
    heading = table = False
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        if token.type.startswith("heading"):
            heading = token.nesting == 1
        elif token.type.startswith("table"):
            table = token.nesting == 1
        elif token.type == "inline" and not heading and not table:
            found += [part for part in _END.split(_text(token)) if words(part)]
    return found


def _text(token: Token) -> str:
    """What a reader reads, on one line; code spans as one word each."""
    parts = []
    for child in token.children or []:
        if child.type == "text":
            parts.append(child.content)
        elif child.type == "code_inline":
            parts.append("Code")
        elif child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
    return "".join(parts)


def words(sentence: str) -> int:
    return sum(any(letter.isalnum() for letter in word) for word in sentence.split())


def faults(page: Path) -> list[str]:
    """What is wrong with a page's sentences, a line each."""
    found = sorted(sentences(page), key=words)
    if not found:
        return []
    p95 = words(found[math.ceil(0.95 * len(found)) - 1])
    wrong = [f"95 % of the sentences have at most {p95} words; expected {P95_WORDS}"] if p95 > P95_WORDS else []
    return wrong + [f"{words(one)} words: {one}" for one in found if words(one) > MOST_WORDS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "pages", nargs="*", type=Path, help="pages to read; by default README, CONTRIBUTING and all of docs/pages"
    )
    bad = False
    for page in [path.resolve() for path in parser.parse_args().pages] or [*pages(), ROOT / "CONTRIBUTING.md"]:
        lengths = sorted(map(words, sentences(page)))
        if not lengths:
            continue
        name = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
        p95 = lengths[math.ceil(0.95 * len(lengths)) - 1]
        median = lengths[len(lengths) // 2]
        print(f"{name}: {len(lengths)} sentences; words: median {median}, 95 % {p95}, most {lengths[-1]}")
        for fault in faults(page):
            bad = True
            print(f"  {fault}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
