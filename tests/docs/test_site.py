"""The documentation site is built strictly, and each of its pages is good to read in a browser."""

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chromium import chromium, needs_playwright
from patience import PATIENCE_S
from toolchain import needs

pytest.importorskip("mkdocs", reason="needs ddm-rt[docs]")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
PARTS = ("ddm_rt", "docs", "benchmarks/results", "CONTRIBUTING.md")  # what the site is made of

pytestmark = pytest.mark.slow(reason="needs ddm-rt[docs]; building takes ten seconds, axe-core minutes")


def build(tree: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "-f", "docs/mkdocs.yml", "-d", out]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the site is made of."""
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "assets"))
        else:
            shutil.copy(ROOT / part, tmp_path / part)
    return tmp_path


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with chromium() as browser:
        yield browser


def pages(site: Path) -> list[str]:
    return sorted(path.relative_to(site).as_posix().removesuffix("index.html") for path in site.rglob("index.html"))


def test_each_part_of_the_documentation_is_there(site: Path) -> None:
    there = pages(site)
    for page in ("", "start/", "limits/", "contributing/", "reference/python/", "reference/c/", "results/faces/"):
        assert page in there
    python = (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    for anchor in ("ddm_rt.Pipeline.generate", "ddm_rt.Bundle.load", "ddm_rt.Request.resolve"):
        assert f'id="{anchor}"' in python
    assert "Images, as many as" in (site / "reference" / "http" / "index.html").read_text(encoding="utf-8")


def test_dead_links_dead_anchors_and_a_page_that_no_menu_has_end_the_build(tree: Path) -> None:
    pages = tree / "docs" / "pages"
    (pages / "guides" / "forgotten.md").write_text("# Forgotten\n", encoding="utf-8")
    with (pages / "limits.md").open("a", encoding="utf-8") as page:
        page.write("\n[One](gone.md), [two](start.md#not-there), [three](reference/c.md#not-there-either).\n")
    done = build(tree, tree / "site")
    assert done.returncode != 0
    for told in ("guides/forgotten.md", "'gone.md'", "'#not-there'", "'#not-there-either'"):
        assert told in done.stdout + done.stderr


def test_a_public_name_that_says_nothing_of_itself_ends_the_build(tree: Path) -> None:
    source = tree / "ddm_rt" / "sample" / "pipeline.py"
    whole = source.read_text(encoding="utf-8")
    silent, count = re.subn(
        r'(def replay\(.*?\n    \) -> Generation:\n)        """.*?"""\n', r"\1", whole, flags=re.DOTALL
    )
    assert count == 1
    source.write_text(silent, encoding="utf-8")
    done = build(tree, tree / "site")
    assert done.returncode != 0
    assert "without a docstring or a comment: ddm_rt.sample.pipeline.Pipeline.replay" in done.stdout + done.stderr


def test_a_field_is_documented_by_its_comment() -> None:
    import python_reference

    package = python_reference.load(ROOT)
    generation = package.modules_collection["ddm_rt.sample.generation.Generation"]
    assert "\n    images: [n, H, W, 3], RGB\n" in generation.docstring.value
    request = package.modules_collection["ddm_rt.sample.request.Request"]
    assert "\n    n: Number of images (at least 1).\n" in request.docstring.value
    assert re.search(r"\n    sampler: .*ddpm, ddim, euler", request.docstring.value)
    images = generation.members["images"]
    images.docstring = None
    assert python_reference.undocumented([generation]) == ["ddm_rt.sample.generation.Generation.images"]


def test_a_route_a_field_or_an_error_that_nothing_tells_of_is_named(tmp_path: Path) -> None:
    import http_reference
    import python_reference

    package, schema = python_reference.load(ROOT), http_reference.openapi()
    del schema["paths"]["/metrics"]["get"]["description"]
    del schema["components"]["schemas"]["ImageRequest"]["properties"]["n"]["description"]
    with pytest.raises(ValueError, match=r"^nothing says what these are: ImageRequest\.n, GET /metrics$"):
        http_reference.page(package, schema)
    (tmp_path / "a.py").write_text('invalid("", None, "one")\nFailure(500, "", "server_error", code="two")\n')
    assert http_reference._codes(tmp_path) == {"one", "two"}


@needs_playwright
@needs("chromium")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])  # each of both once: axe takes minutes
def test_pages_fit_the_window_load_nothing_from_elsewhere_and_pass_axe(
    browser: "Browser", site: Path, url: str, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs ddm-rt[integration]").Axe()
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = opened(context.new_page(), wrong := [], url)
    for name in pages(site):
        page.goto(url + name)
        assert page.evaluate("document.body.dataset.mdColorScheme") == {"light": "default", "dark": "slate"}[scheme]
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wrong.append(f"{name}: wider than the window")
        for found in axe.run(page).response["violations"]:
            wrong += [f"{name}: {found['id']}: {node['html'][:200]}" for node in found["nodes"]]
    context.close()
    assert wrong == []


def opened(page: "Page", wrong: list[str], url: str) -> "Page":
    """A page that writes down its errors, and what it asks for from elsewhere."""
    page.set_default_timeout(1000 * PATIENCE_S)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.extend([said.text] if said.type in ("error", "warning") else []))
    page.on("request", lambda asked: wrong.extend([] if asked.url.startswith((url, "data:", "blob:")) else [asked.url]))
    return page


@needs_playwright
@needs("chromium")
def test_search_finds_a_page(browser: "Browser", url: str) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = opened(context.new_page(), wrong := [], url)
    page.goto(url)
    page.get_by_placeholder("Search").fill("ddm_rt_replay")
    page.locator(".md-search-result__link").first.click()
    page.wait_for_url("**/reference/c/**")
    context.close()
    assert wrong == []


@needs_playwright
@needs("chromium")
def test_what_is_wider_than_the_page_is_scrolled_by_the_keyboard(browser: "Browser", url: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 900})
    page = opened(context.new_page(), wrong := [], url)
    page.goto(f"{url}results/faces/")
    table = page.locator(".md-typeset__scrollwrap[tabindex='0']").first
    table.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "[...document.querySelectorAll('.md-typeset__scrollwrap')].some((wrap) => wrap.scrollLeft > 0)"
    )
    context.close()
    assert wrong == []
