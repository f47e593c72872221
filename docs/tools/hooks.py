"""MkDocs' hooks: pages that are made of the code join the others, and what was built is looked through for dead links.

A page that can't be made, because something public says nothing of itself, ends the build.
"""

import re
from pathlib import Path

import built_site
import c_reference
import command_line
import http_reference
import python_reference
import repository_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import Abort
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]

_MOST = 20  # problems that are told


def reference(root: Path) -> dict[str, str]:
    """Place in the site -> Markdown, made of the code. Raises ValueError naming what says nothing of itself."""
    package = python_reference.load(root)
    header = (root / "ddm_rt/csrc/include/ddm_rt.h").read_text(encoding="utf-8")
    return {
        "reference/python.md": python_reference.page(package),
        "reference/command-line.md": command_line.page(),
        "reference/http.md": http_reference.page(package),
        "reference/c.md": c_reference.page(header),
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    try:
        made = reference(ROOT) | repository_pages.pages(ROOT)
    except ValueError as error:
        raise Abort(str(error)) from error
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    for uri, path in repository_pages.pictures(ROOT).items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_content(html: str, **_: object) -> str:
    """A header of a table without a word is none."""
    return re.sub(r"<th( [^>]*)?></th>", r"<td\1></td>", html)


def on_post_build(config: MkDocsConfig) -> None:
    if problems := built_site.problems(Path(config.site_dir)):
        more = f"\nand {len(problems) - _MOST} more" if len(problems) > _MOST else ""
        raise Abort("\n".join(problems[:_MOST]) + more)
