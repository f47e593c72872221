"""The C blocks of the guides on embedding: those of a page are one program that compiles without a warning and runs."""

import re
import subprocess
from pathlib import Path

import pytest
from embedding_build import ROOT, Built, run

from ddm_rt.files import asset

GUIDES = ROOT / "docs" / "pages" / "guides"
PAGES = [page for page in sorted(GUIDES.glob("embed*.md")) if "```c\n" in page.read_text(encoding="utf-8")]
INCLUDES = "#include <ddm_rt.h>\n#include <stdio.h>\n#include <stdlib.h>\n"


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```c\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def program(page: Path) -> str:
    """Functions stand before `main`, those of the first page on every page."""
    first = [] if page.name == "embed.md" else [block for block in blocks(GUIDES / "embed.md") if is_function(block)]
    functions = [*first, *filter(is_function, blocks(page))]
    statements = [block for block in blocks(page) if not is_function(block)]
    return "\n".join([INCLUDES, *functions, "int main(void) {", *statements, "return 0;\n}\n"])


def is_function(block: str) -> bool:
    return block.startswith("static ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_pages_blocks_are_a_program_that_runs(built: Built, tmp_path: Path, page: Path) -> None:
    (tmp_path / "page.c").write_text(program(page))
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "digits").symlink_to(asset("digits"))
    folder = built.shared.parent
    flags = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", f"-I{built.prefix / 'include'}")
    run("cc", *flags, "page.c", f"-L{folder}", "-lddm_rt", f"-Wl,-rpath,{folder}", "-o", "page", folder=tmp_path)
    done = subprocess.run([tmp_path / "page"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
