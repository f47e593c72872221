"""Pages that are made of the code: all of it stands there, and what says nothing of itself ends the build."""

from pathlib import Path
from typing import Annotated

import built_site
import c_reference
import command_line
import pytest
import repository_pages
from typer import Option, Typer
from typer.main import get_command

ROOT = Path(__file__).parents[2]
HEADER = (ROOT / "ddm_rt" / "csrc" / "include" / "ddm_rt.h").read_text(encoding="utf-8")


def test_every_command_has_a_section_with_its_options_and_examples() -> None:
    page = command_line.page()
    for name in command_line.program().commands:
        assert f"\n## `ddm-rt {name}` {{ #ddm-rt-{name} }}\n" in page
    sample = page.partition("## `ddm-rt sample`")[2].partition("\n## ")[0]
    assert "```sh\nddm-rt sample digits -n 64 --seed 0 --out out/\n" in sample
    assert "| `-n NUMBER` | Number of images. | `16` |" in sample
    assert "| `--balance on|off|auto` |" in sample
    assert "| `--fsync` |" in sample


def program(help_of_option: str | None, help_of_command: str | None = "Do it.") -> object:
    app = Typer()

    @app.callback()
    def main() -> None:
        pass

    @app.command(help=help_of_command)
    def work(size: Annotated[int, Option(help=help_of_option)] = 1) -> None:
        pass

    return get_command(app)


def test_a_command_or_an_option_without_help_is_named() -> None:
    assert "| `--size NUMBER` | Of it. | `1` |" in command_line.page(program("Of it."))
    with pytest.raises(ValueError, match=r"^no help: ddm-rt work --size$"):
        command_line.page(program(None))
    with pytest.raises(ValueError, match=r"^no help: ddm-rt work$"):
        command_line.page(program("Of it.", None))


def test_each_example_is_one_command_and_options_in_text_are_code() -> None:
    text = (
        "With --size it is `a --b`.\n\nExample:\n\n"
        "    ddm-rt work --size 2\n        --more\n    accelerate launch\n\n    ddm-rt work\n"
    )
    prose, example, block = command_line._prose(text)
    assert prose == "With `--size` it is `a --b`."
    assert example == "Example:"
    assert block == "```sh\nddm-rt work --size 2 --more\naccelerate launch\nddm-rt work\n```"


def test_every_function_of_the_c_header_is_there_with_its_comment() -> None:
    page = c_reference.page(HEADER)
    names = set(c_reference._FUNCTION.findall(HEADER))
    assert len(names) > 40
    for name in names:
        assert f"`{name}`" in page
    assert "DDM_RT_API" not in page
    assert "### `ddm_rt_replay`\n\nThe images of a manifest.json again" in page
    opening = "\nddm_rt_error *ddm_rt_model_open_abi(int32_t abi, const char *directory, int64_t size,\n"
    assert f"{opening}{' ' * 36}const ddm_rt_model_options *options, ddm_rt_model **model);\n" in page


def test_a_c_function_without_a_comment_is_named() -> None:
    comment = next(line for line in HEADER.splitlines() if line.startswith("/* Number of images, at least 1"))
    with pytest.raises(ValueError, match=r"^functions of ddm_rt\.h without a comment: ddm_rt_request_set_n$"):
        c_reference.page(HEADER.replace(comment + "\n", "\n"))


def test_contributing_and_the_results_become_pages_whose_links_lead_on() -> None:
    pages = repository_pages.pages(ROOT)
    assert pages["contributing.md"].startswith("# Contributing\n")
    assert "<!--" not in pages["contributing.md"]
    assert "results/README.md" not in pages
    assert "(development.md)" in pages["results/data.md"]
    assert "(codes.md)" in pages["results/development.md"]
    assert pages["results/step.md"].startswith("# Speed of a step\n")
    assert "results/fair_throughput.svg" in repository_pages.pictures(ROOT)


def test_links_of_a_built_site_are_followed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.svg").touch()
    (tmp_path / "sub" / "index.html").write_text('<h1 id="top">Sub</h1><a href="..">up</a><img src="../a.svg">')
    good = '<a href="sub/#top">a</a> <a href="sub/">b</a> <a href="https://there">c</a> <a href="#here" id="here">d</a>'
    (tmp_path / "index.html").write_text(good)
    assert built_site.problems(tmp_path) == []
    bad = '<a href="gone/">a</a> <a href="sub/#gone">b</a> <script src="https://there/x.js"></script> <img src="b.svg">'
    (tmp_path / "index.html").write_text(good + bad)
    assert built_site.problems(tmp_path) == [
        "index.html: gone/: leads nowhere",
        "index.html: sub/#gone: no such anchor",
        "index.html: https://there/x.js: loaded from elsewhere",
        "index.html: b.svg: leads nowhere",
    ]
