"""README's and the documentation's code blocks run, their output is what they print, their sentences are short."""

from pathlib import Path

import pytest
from blocks import Block, BlockFailed, blocks, not_run, pages, refresh, run_page, shows, slow_reason
from prose import faults, sentences, words

ROOT = Path(__file__).parents[2]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def to_run(page: Path) -> object:
    reason = slow_reason(page)
    return pytest.param(page, id=name(page), marks=[pytest.mark.slow(reason=reason)] if reason else [])


@pytest.mark.parametrize("page", [to_run(page) for page in pages() if any(block.runs for block in blocks(page))])
def test_the_blocks_of_a_page_run_and_print_what_it_shows(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path)


@pytest.mark.parametrize(("block", "why"), [pytest.param(*found, id=found[0].where) for found in not_run()])
def test_a_block_that_no_test_can_run(block: Block, why: str) -> None:
    assert why, "a block that is not run says why"
    pytest.skip(f"not run: {block.where}: {why}")


@pytest.mark.parametrize("page", [*pages(), ROOT / "CONTRIBUTING.md"], ids=name)
def test_sentences_are_short(page: Path) -> None:
    assert faults(page) == []


def test_the_readme_is_one_screen() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1200


def written(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_python_sees_earlier_names_only_where_it_continues(tmp_path: Path) -> None:
    page = "```python\nx = 1\nprint(x)\n```\n\n{}```python\nprint(x + 1)\n```\n<!-- output -->\n```text\n2\n```\n"
    assert run_page(written(tmp_path, page.format("<!-- continues -->\n")), tmp_path)[0][1] == "2\n"
    with pytest.raises(BlockFailed, match=r"page.md:6: exit code 1\n(.|\n)*NameError"):
        run_page(written(tmp_path, page.format("")), tmp_path)


def test_another_output_than_the_page_shows_fails_and_can_be_refreshed(tmp_path: Path) -> None:
    text = "```bash\necho one; echo two\n```\n<!-- output -->\n```text\nthree\n```\nend\n"
    page = written(tmp_path, text)
    with pytest.raises(BlockFailed, match=r"page.md:5: the page shows\nthree"):
        run_page(page, tmp_path)
    assert refresh(page, run_page(page, tmp_path, compare=False)) == 1
    assert page.read_text(encoding="utf-8") == text.replace("three", "one\ntwo")
    assert refresh(page, run_page(page, tmp_path)) == 0


def test_what_varies_is_not_compared_and_a_stand_in_shows_nothing(tmp_path: Path) -> None:
    varies = "```bash\necho one\n```\n<!-- output, varies -->\n```text\ntwo\n```\n"
    run_page(written(tmp_path, varies), tmp_path)
    page = written(tmp_path, "<!-- run: echo short -->\n```bash\necho long\n```\n<!-- output -->\n```text\nlong\n```\n")
    assert run_page(page, tmp_path) == []
    assert run_page(page, tmp_path, full=True)[0][1] == "long\n"


def test_dots_stand_for_lines_that_are_left_out() -> None:
    assert shows("a\n...\nd", "a\nb\nc\nd\n")
    assert not shows("a\n...\nd", "a\nb\n")
    assert not shows("a.c", "abc")


def test_a_server_of_a_page_runs_until_the_next_one(tmp_path: Path) -> None:
    serve = "```bash\npython -m http.server --bind 127.0.0.1 8000\n```\n"
    # http.server takes its port as a word of its own; pages say it as an address.
    serve = serve.replace("8000", "$(echo 127.0.0.1:8000 | cut -d: -f2)")
    block = f"<!-- background: http://127.0.0.1:8000/ -->\n{serve}\n"
    ask = (
        "```python\nfrom urllib.request import urlopen\n\nprint(urlopen('http://127.0.0.1:8000/').status)\n```\n"
        "<!-- output -->\n```text\n200\n```\n\n"
    )
    assert [printed for _, printed in run_page(written(tmp_path, block + ask + block + ask), tmp_path)] == ["200\n"] * 2


def test_a_server_that_ends_fails_with_its_last_words(tmp_path: Path) -> None:
    page = written(tmp_path, "<!-- background: http://127.0.0.1:8000/ -->\n```bash\necho no; exit 3\n```\n")
    with pytest.raises(BlockFailed, match=r"doesn't answer\nno"):
        run_page(page, tmp_path)


def test_sentences_are_counted_as_read(tmp_path: Path) -> None:
    text = (
        "# Not\n\nOne two `three four`. Five\nsix.\n\n- seven\n- [eight](nine.md) ten.\n\n| not | this |\n| - | - |\n"
    )
    found = sentences(written(tmp_path, text))
    assert [words(one) for one in found] == [3, 2, 1, 2]


def test_a_long_sentence_is_named(tmp_path: Path) -> None:
    found = faults(written(tmp_path, " ".join(["word"] * 41) + ".\n"))
    assert found[0].startswith("95 %")
    assert found[1].startswith("41 words: word word")
