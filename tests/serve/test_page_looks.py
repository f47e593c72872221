"""How the page at / looks on a wide screen and a phone, in Debian's Chromium, driven through Playwright."""

import re
from pathlib import Path

import pytest
from chromium import CONTRASTS, chromium, needs_playwright, visits
from http_server import running
from toolchain import needs

from ddm_rt.evaluate.judge import Judge
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.http.balance import Measured

pytestmark = [needs("chromium"), needs_playwright, pytest.mark.slow(reason="needs ddm-rt[integration]")]

ARTEFACTS = Path(__file__).parents[2] / "test-artefacts"
LOOKS = {
    "light": ("light", 1280, 900),
    "dark": ("dark", 1280, 900),
    "phone": ("light", 390, 844),
    "phone-dark": ("dark", 390, 844),
}


def test_looks(digits_pipeline: Pipeline) -> None:
    """Dark and light, on a wide screen and a phone: readable, nothing cut off. Screenshots stay in test-artefacts."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs ddm-rt[integration]").Axe()
    measured = Measured(Judge.load("digits"), ["3", "8"])
    with running(digits_pipeline, measured=measured) as server, chromium() as browser, visits(browser) as visit:
        page = visit(server, reduced_motion="reduce")
        page.get_by_label("Number").fill("12")
        for target in ("uniform", "code:0=.3,code:1=.7"):
            page.get_by_label("Target", exact=True).fill(target)
            page.get_by_role("button", name="Generate").click()
            page.get_by_role("status").filter(has_text="12 images in").wait_for()
        page.get_by_label("Target shown").wait_for()
        page.get_by_text(re.compile(r"^\d+\.\d – \d+\.\d%$")).first.wait_for()
        for name, (scheme, width, height) in LOOKS.items():
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": height})
            page.screenshot(path=ARTEFACTS / f"page-{name}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") == width, name
            assert axe.run(page).response["violations"] == [], name
            contrasts = page.evaluate(CONTRASTS)
            assert len(contrasts) > 40
            assert [(text, contrast) for text, contrast in contrasts if contrast < 4.5] == [], name
            shown = page.locator("#images img").first.evaluate("image => image.getBoundingClientRect().width")
            assert shown == (96 if width == 390 else 128), "each pixel is a square of whole pixels"
            tops = {part: page.locator(part).bounding_box()["y"] for part in (".controls", ".balance", ".gallery")}
            if width == 390:
                assert sorted(tops, key=tops.__getitem__) == [".controls", ".balance", ".gallery"]
            else:
                assert tops[".gallery"] == tops[".controls"] < tops[".balance"]
