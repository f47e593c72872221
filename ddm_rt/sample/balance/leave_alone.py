"""Prompts that name what would be balanced are left alone: words, given by the user, for each scope.

What is balanced are the bundle's codes: modes of the training images. A prompt that says which group it wants ("a
female doctor") is a choice of the user's, and a code drawn against it would work against the prompt. Which words say so
depends on what the bundle was trained on and on the language, so no list comes with the package. A word counts where it
stands alone, in capitals or not: "man" is in "an old Man," and "the man's hat" and "man-made", not in "woman". Other
forms ("men") are words of their own, so a script that writes no spaces between words needs whole phrases. Words of the
negative prompt don't count.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence

from ddm_rt.errors import DdmError
from ddm_rt.files import read

ANY = "*"  # in a mapping, in place of a scope: words for every request

Words = Sequence[str] | Mapping[str, Sequence[str]]


def words_for(given: Words | None, scope: str | None) -> tuple[str, ...]:
    """The words that hold for a request, from words or from a mapping scope -> words (`ANY`: of every scope).

    Raises DdmError where it is neither.
    """
    if given is None:
        return ()
    scopes = given if isinstance(given, Mapping) else {ANY: given}
    found: list[str] = []
    for name, words in scopes.items():
        if isinstance(words, str) or not isinstance(words, Sequence) or not all(map(_is_word, words)):
            place = "" if name == ANY else f" of scope {name!r}"
            raise DdmError(f"leave_alone{place} is {words!r}; expected a list of words")
        if name in (ANY, scope):
            found += words
    return tuple(dict.fromkeys(found))


def names_one(prompt: str, words: Sequence[str]) -> bool:
    """Whether the prompt has one of the words (or phrases), whole and in any case."""
    text = _folded(prompt)
    patterns = (r"\s+".join(map(re.escape, _folded(word).split())) for word in words)
    return any(re.search(rf"(?<!\w){pattern}(?!\w)", text) for pattern in patterns)


def parse_words(text: str) -> Words:
    """`leave_alone` from "woman,man", or from a JSON file (its name ends with .json) of words or scope -> words.

    Raises DdmError naming the file that can't be read.
    """
    if not text.endswith(".json"):
        return [word.strip() for word in text.split(",")]
    content = read(text, "expected words in JSON")
    try:
        found = json.loads(content)
    except ValueError as error:
        raise DdmError(f"{text}: not JSON ({error})") from error
    if not isinstance(found, list | dict):
        raise DdmError(f'{text}: expected a list of words, or {{"SCOPE": [words], "{ANY}": [words]}}')
    try:
        words_for(found, None)
    except DdmError as error:
        raise DdmError(f"{text}: {error}") from error
    return found


def _is_word(word: object) -> bool:
    return isinstance(word, str) and bool(word.strip())


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
