"""Words that leave a prompt alone: what counts as one, where they come from, and what is no list of words."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.leave_alone import names_one, parse_words, words_for


@pytest.mark.parametrize(
    ("prompt", "words", "named"),
    [
        ("a photo of a woman", ["woman"], True),
        ("a photo of a WOMAN, smiling", ["Woman"], True),
        ("an old man.", ["man"], True),
        ("the man's hat", ["man"], True),
        ("man-made", ["man"], True),
        ("a woman", ["man"], False),
        ("mankind", ["man"], False),
        ("two men", ["man"], False),
        ("an old\n  lady", ["old lady"], True),
        ("an old, lady", ["old lady"], False),
        ("eine FRAU aus Straße", ["strasse"], True),
        ("ﬁreman", ["fireman"], True),  # a ligature is its letters
        ("cafe\u0301 owner", ["café"], True),  # composed or not
        ("a doctor (she/her)", ["she/her"], True),
        ("100% c++", ["c++"], True),
        ("a.b", ["a+b"], False),  # words are no patterns
        ("", ["man"], False),
        ("a man", [], False),
    ],
)
def test_a_whole_word_in_any_case(prompt: str, words: list[str], named: bool) -> None:
    assert names_one(prompt, words) is named


@settings(deadline=None)
@given(st.text(), st.lists(st.text().filter(str.strip)))
def test_any_text_will_do_and_one_word_is_enough(prompt: str, words: list[str]) -> None:
    assert names_one(prompt, words) is any(names_one(prompt, [word]) for word in words)
    assert names_one(f"{prompt} {' '.join(words)}", words) is bool(words)


@settings(deadline=None)
@given(st.text("abA -.'/\n"), st.text("ab", min_size=1, max_size=3))
def test_a_word_counts_where_it_is_one_of_the_texts_own(prompt: str, word: str) -> None:
    assert names_one(prompt, [word]) is (word in re.findall("[ab]+", prompt.lower()))


@given(
    st.text(min_size=1).filter(str.strip), st.sampled_from(["", "a ", "(", "one, "]), st.sampled_from(["", " b", ")"])
)
def test_a_word_on_its_own_is_found(word: str, before: str, after: str) -> None:
    assert names_one(f"{before}{word}{after}", [word])


def test_words_hold_for_their_scope() -> None:
    scopes = {"jobs": ["woman", "man"], "*": ["nobody"], "pets": ["cat"]}
    assert words_for(scopes, "jobs") == ("woman", "man", "nobody")
    assert words_for(scopes, "other") == words_for(scopes, None) == ("nobody",)
    assert words_for(["a", "b", "a"], None) == words_for(["a", "b"], "jobs") == ("a", "b")
    assert words_for(None, "jobs") == words_for({}, None) == ()


@pytest.mark.parametrize(
    ("given_words", "said"),
    [
        ("woman", "leave_alone is 'woman'; expected a list of words"),
        (["woman", ""], "expected a list of words"),
        (["woman", " "], "expected a list of words"),
        (["woman", 3], "expected a list of words"),
        (7, "expected a list of words"),
        ({"jobs": "woman"}, "leave_alone of scope 'jobs'"),
        ({"jobs": None}, "leave_alone of scope 'jobs'"),
        ({"*": [None]}, "leave_alone is"),
    ],
)
def test_what_is_no_list_of_words(given_words: Any, said: str) -> None:
    with pytest.raises(DdmError, match=said):
        words_for(given_words, None)


def test_words_from_the_command_line(tmp_path: Path) -> None:
    assert parse_words("woman, man") == ["woman", "man"]
    path = tmp_path / "words.json"
    for tree in (["woman"], {"jobs": ["woman"], "*": []}):
        path.write_text(json.dumps(tree))
        assert parse_words(str(path)) == tree


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ('["woman"', "not JSON"),
        ("7", r"expected a list of words, or \{"),
        ('{"jobs": "woman"}', "scope 'jobs'"),
        ('["woman", ""]', "expected a list of words"),
    ],
)
def test_a_file_without_words_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "words.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DdmError, match=rf"words\.json: .*{said}"):
        parse_words(str(path))
