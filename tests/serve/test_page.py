"""The page at / in a real browser: Debian's Chromium, driven through Playwright."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import brightness_judge
import numpy as np
import pytest
from chromium import PIXELS, Visit, chromium, needs_playwright, visits
from fake_engine import FakeEngine, factor_bundle
from fake_text import text_bundle
from gated_engine import GatedEngine
from http_server import Running, fake_pipeline, running, stopped_pipeline
from patience import PATIENCE_S
from PIL import Image
from toolchain import needs

from ddm_rt.evaluate.judge import Judge
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.http.balance import Measured
from ddm_rt.serve.http.keys import Keys
from ddm_rt.serve.settings import HttpSettings, ServeSettings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [needs("chromium"), needs_playwright, pytest.mark.slow(reason="needs ddm-rt[integration]")]

HAIR = ("dark", "fair", "grey")
KEY = "alice-0123456789abcdef"
INTERVAL = re.compile(r"^\d+\.\d – \d+\.\d%$")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: "Browser") -> Iterator[Visit]:
    """visit(server, **context) opens its page. Nothing may go wrong in it, and nothing may come from elsewhere."""
    with visits(browser) as visit:
        yield visit


@pytest.fixture
def engine() -> Iterator[GatedEngine]:
    engine = GatedEngine()
    yield engine
    engine.go.set()


@pytest.fixture
def gated(engine: GatedEngine) -> Iterator[Running]:
    """Two slots: the first two images, of four steps each, are ready; the engine waits before the step after that."""
    with running(stopped_pipeline(engine, 4), ServeSettings(slots=2)) as server:
        yield server
        engine.go.set()


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    with running(fake_pipeline()) as server:
        yield server


def generate(page: "Page", **fields: Any) -> None:
    page.get_by_role("button", name="Generate").wait_for()
    for label, value in fields.items():
        page.get_by_label(label.capitalize(), exact=True).fill(str(value))
    page.get_by_role("button", name="Generate").click()


def told(page: "Page", text: str | re.Pattern[str], role: str = "status") -> None:
    """Waits for what the page says in its live region of that role. What was said of an earlier request is gone once
    the next one is sent.
    """
    page.get_by_role(role).filter(has_text=text).wait_for()


def rows(page: "Page", caption: str) -> list[list[str]]:
    """Texts of a table of shares: label, share with its interval, images."""
    lines = page.get_by_role("table", name=caption).locator("tbody tr:not(.examples)")
    return [[cell for cell in line.locator("th, td").all_inner_texts() if cell] for line in lines.all()]


def test_images_and_shares_appear_as_they_come(visit: Visit, gated: Running, engine: GatedEngine) -> None:
    page = visit(gated)
    generate(page, number=4)
    page.locator("#images img").nth(1).wait_for()
    assert engine.reached.wait(PATIENCE_S)
    assert page.locator("#images li").count() == 4
    assert page.locator("#images .pending").count() == 2
    assert page.locator("#count").inner_text() == "2 of 4"
    assert page.locator("#images").get_attribute("aria-busy") == "true"
    page.get_by_role("cell", name="2", exact=True).nth(1).wait_for()  # assigned already, before the images are there
    assert rows(page, "Assigned") == [["Top code 0", "50.0%", "2"], ["Top code 1", "50.0%", "2"]]
    engine.go.set()
    told(page, re.compile(r"^4 images in [\d.]+ s\.$"))
    assert page.locator("#images img").count() == 4
    assert page.locator("#images").get_attribute("aria-busy") == "false"
    assert (
        page.get_by_role("img", name="Image 4: top code 1, code 3. Save it.").evaluate("image => image.naturalWidth")
        == 8
    )
    assert page.locator("#images img").first.evaluate("i => getComputedStyle(i).imageRendering") == "pixelated"
    assert page.locator("#mine").inner_text() == "This request: 2 × top code 0, 2 × top code 1."


@pytest.mark.parametrize("way", ["button", "key"])
def test_cancel_gives_back_what_was_not_made(visit: Visit, gated: Running, engine: GatedEngine, way: str) -> None:
    page = visit(gated)
    generate(page, number=4)
    page.locator("#images img").nth(1).wait_for()
    page.get_by_role("cell", name="2", exact=True).nth(1).wait_for()
    if way == "button":
        page.get_by_role("button", name="Cancel").click()
    else:
        page.keyboard.press("Escape")
    told(page, "Cancelled; 2 of 4 images were finished.")
    assert page.locator("#images li").count() == 2
    gated.wait_for(cancelled=1, requests=0)  # before the engine goes on: else it may have made the images by then
    engine.go.set()
    [stream] = json.loads(page.request.get(f"{gated.url}/v1/balance").text())["data"]
    assert (stream["assigned"]["done"], stream["assigned"]["in_progress"]) == (0, 0)
    page.get_by_role("cell", name="0", exact=True).nth(1).wait_for()
    assert rows(page, "Assigned") == [["Top code 0", "0.0%", "0"], ["Top code 1", "0.0%", "0"]]
    assert page.get_by_role("button", name="Generate").is_enabled()


def test_everything_is_reached_by_keyboard_and_seen_there(visit: Visit, gated: Running, engine: GatedEngine) -> None:
    page = visit(gated)
    page.get_by_role("button", name="Generate").wait_for()
    focused = "document.activeElement.id"
    for expected in ("n", "steps", "seed", "target", "scope", "generate"):
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == expected
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.locator("#images img").nth(1).wait_for()
    assert page.evaluate(focused) == "cancel"
    engine.go.set()
    told(page, "8 images in")
    assert page.evaluate(focused) == "generate"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "keep"
    page.keyboard.press("Enter")
    assert page.evaluate(focused) == "seed"
    page.keyboard.press("Enter")  # sends the form from any field
    told(page, "8 images in")
    page.locator("#images a").first.focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_target_shows_its_own_shares(visit: Visit, tmp_path: Path) -> None:
    """What was assigned and what the judge saw: of the target asked last, or of one that is chosen."""
    judge = Judge.load(brightness_judge.write(tmp_path / "judge.onnx"))
    seen = f"Measured by the judge “{judge.name}”"

    def measured(page: "Page") -> int:
        return sum(int(row[-1]) for row in rows(page, seen))

    with running(fake_pipeline(), measured=Measured(judge)) as server:
        page = visit(server)
        generate(page, number=4)
        told(page, "4 images in")
        page.get_by_text("in the scope default with the target uniform.").wait_for()
        page.get_by_role("table", name=seen).get_by_text(INTERVAL).first.wait_for()
        assert page.get_by_label("Target shown").is_hidden()
        generate(page, number=3, target="code:1=1")
        told(page, "3 images in")
        page.get_by_text("with the target code:1=1").wait_for()
        page.get_by_role("cell", name="100.0%", exact=True).first.wait_for()
        assert rows(page, "Assigned") == [["Top code 0", "0.0%", "0"], ["Top code 1", "100.0%", "3"]]
        assert measured(page) == 3
        marks = page.locator("#assigned .wanted").evaluate_all("lines => lines.map(line => line.getAttribute('x1'))")
        assert marks[1] == "100%"
        page.get_by_label("Target shown").select_option("uniform")
        page.get_by_text("with the target uniform.").wait_for()
        assert rows(page, "Assigned") == [["Top code 0", "50.0%", "2"], ["Top code 1", "50.0%", "2"]]
        assert measured(page) == 4


def test_factors_are_shown_by_their_names(visit: Visit) -> None:
    """Shares of each factor's values; where the target doesn't name a factor, those of the uniform target."""
    with running(Pipeline(factor_bundle(missing=True), FakeEngine())) as server:
        page = visit(server)
        assert "gender:female=.5,gender:male=.5" in page.locator("#target-hint").inner_text()
        assert "5 codes in gender × hair" in page.locator("#about").inner_text()
        generate(page, number=12, target="gender : male=.75, gender:female=.25")
        told(page, "12 images in")
        page.get_by_text("with the target gender:female=0.25,gender:male=0.75").wait_for()
        page.get_by_role("cell", name="75.0%", exact=True).first.wait_for()
        found = rows(page, "Assigned")
        assert [row[0] for row in found] == ["gender: female", "gender: male", *(f"hair: {v}" for v in HAIR)]
        assert [row[2] for row in found[:2]] == ["3", "9"]
        assert sum(int(row[2]) for row in found[2:]) == 12
        marks = page.locator("#assigned .wanted").evaluate_all("lines => lines.map(line => line.getAttribute('x1'))")
        assert [round(float(mark.removesuffix("%"))) for mark in marks] == [33, 100, 44, 44, 44]  # of the largest, 75 %
        assert "male, grey, code 3" in page.locator("#images").inner_text()
        assert re.search(r"This request: .*\d × male, grey", page.locator("#mine").inner_text())


def test_a_scope_is_chosen_or_none(visit: Visit, plain: Running) -> None:
    page = visit(plain)
    assert page.get_by_label("Scope").input_value() == "default"
    for field, sent, basis in (
        ("campaign", "campaign", "All requests in the scope campaign with the target uniform."),
        ("", None, "This request with the target uniform."),
    ):
        with page.expect_request("**/generations") as request:
            generate(page, number=2, scope=field)
        assert request.value.post_data_json["scope"] == sent
        told(page, "2 images in")
        page.get_by_text(basis).wait_for()
        assert [row[2] for row in rows(page, "Assigned")] == ["1", "1"]


def test_codes_are_explained_by_images_of_them(visit: Visit, plain: Running) -> None:
    page = visit(plain)
    page.get_by_text("Images made here will stand below each.").wait_for()
    for n, scope in ((4, "first"), (2, "second")):  # the second adds no code, and takes none away
        generate(page, number=n, scope=scope)
        told(page, f"{n} images in")
        for top, codes in ((0, (0, 2)), (1, (1, 3))):
            examples = page.get_by_role("list", name=f"Codes of top code {top}")
            examples.get_by_role("listitem").nth(1).wait_for()
            assert examples.get_by_role("listitem").all_text_contents() == [f"Code {code}" for code in codes]
            assert examples.locator("canvas").first.evaluate("canvas => canvas.width") == 8
    assert page.get_by_text("Images made here will stand below each.").is_hidden()


def test_what_is_saved_is_the_server_s_own(visit: Visit, plain: Running) -> None:
    """An image's bytes under its seed, and the manifest, whose seeds are larger than JavaScript's numbers."""
    page = visit(plain)
    generate(page, number=3, seed=7, scope="")
    told(page, "3 images in")
    asked = {"n": 3, "seed": 7, "scope": None}
    answer = plain.client().post("/v1/images/generations", json=asked).json()
    about = plain.client().get("/v1/models").json()["data"][0]
    start = f"{about['id']}-{about['bundle_id'][:12]}-seed-"
    for i, image in enumerate(answer["data"]):
        name, content = saved(page, page.locator("#images a").nth(i))
        assert name == f"{start}{image['seed']}.png"
        assert content == base64.b64decode(image["b64_json"])
    assert max(image["seed"] for image in answer["data"]) > 2**53
    name, content = saved(page, page.get_by_role("link", name="Save the manifest"))
    assert name == f"{start}7-manifest.json"
    assert json.loads(content) == answer["manifest"]
    for image, again in zip(answer["data"], fake_pipeline().replay(json.loads(content)).images, strict=True):
        assert np.array_equal(Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).convert("RGB"), again)


def saved(page: "Page", link: "Locator") -> tuple[str, bytes]:
    """Name and content of the file that a link saves."""
    with page.expect_download() as download:
        link.click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def test_fields_have_labels_and_news_is_announced(visit: Visit, plain: Running) -> None:
    page = visit(plain)
    page.get_by_role("button", name="Generate").wait_for()
    for field in page.locator("input, textarea").all():
        assert field.evaluate("field => field.labels.length") == 1
    assert page.get_by_role("status").count() == page.get_by_role("alert").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("heading", level=1).inner_text() == page.title().split(" ")[0] == "fake"


def test_prompts_are_asked_for_where_there_are_any(visit: Visit, plain: Running, tmp_path: Path) -> None:
    page = visit(plain)
    page.get_by_role("button", name="Generate").wait_for()
    assert page.get_by_label("Prompt").is_hidden()
    with running(Pipeline(text_bundle(tmp_path), FakeEngine())) as server:
        page = visit(server)
        with page.expect_request("**/generations") as sent:
            generate(page, prompt="a face", number=2)
        told(page, "2 images in")
        assert sent.value.post_data_json["prompt"] == "a face"


@pytest.mark.parametrize("scope", ["default", None])
def test_measured_shares_come_with_their_intervals(visit: Visit, tmp_path: Path, scope: str | None) -> None:
    judge = Judge.load(brightness_judge.write(tmp_path / "judge.onnx"))
    with running(fake_pipeline(), http=HttpSettings(scope=scope), measured=Measured(judge)) as server:
        page = visit(server)
        generate(page, number=6)
        told(page, "6 images in")
        caption = f"Measured by the judge “{judge.name}”"
        page.get_by_role("table", name=caption).get_by_text(INTERVAL).first.wait_for()
        measured = rows(page, caption)
        assert [row[0] for row in measured] == ["dark", "light"]
        assert sum(int(row[2]) for row in measured) == 6
        lines = page.get_by_role("table", name=caption).locator(".interval").all()
        assert {line.get_attribute("visibility") for line in lines} == {"visible"}
        seen = page.locator("#mine").inner_text()
        assert all(f"{row[2]} × {row[0]}" in seen for row in measured if row[2] != "0")


def test_without_a_scope_a_request_stands_alone(visit: Visit) -> None:
    """Its shares are shown, and its seed gives the same images again."""
    with running(fake_pipeline(), http=HttpSettings(scope=None)) as server:
        page = visit(server)
        first = []
        for n in (4, 2):
            generate(page, number=n)
            told(page, f"{n} images in")
            page.get_by_text("This request with the target uniform.").wait_for()
            assert [row[2] for row in rows(page, "Assigned")] == [str(n // 2)] * 2
            if not first:
                first = page.locator("#images img").evaluate_all(PIXELS)
                page.get_by_role("button", name="Keep seed").click()
        assert page.locator("#images img").evaluate_all(PIXELS) == first[:2]


def test_a_bundle_without_codes_has_nothing_to_balance(visit: Visit) -> None:
    with running(fake_pipeline(num_codes=0)) as server:
        page = visit(server)
        generate(page, number=1)
        told(page, "1 image in")
        assert page.get_by_label("Target", exact=True).is_hidden()
        assert page.get_by_role("heading", name="Balance").is_hidden()
        assert page.locator("#images p").inner_text() == "no code"


def test_errors_are_told_in_words(visit: Visit, gated: Running, engine: GatedEngine) -> None:
    page = visit(gated)
    generate(page, target="nobody=1")
    told(page, "Not accepted: target", role="alert")
    assert page.get_by_role("alert").locator("code").inner_text() == "ddm-rt calibrate"
    assert "`" not in page.get_by_role("alert").inner_text()
    assert page.evaluate("document.activeElement.id") == "target"
    assert page.get_by_label("Target", exact=True).get_attribute("aria-invalid") == "true"
    page.get_by_label("Number").fill("1000")
    page.get_by_role("button", name="Generate").click()  # the browser says what is wrong, and sends nothing
    assert page.evaluate("document.activeElement.matches(':invalid')")
    assert page.get_by_role("alert").inner_text() != ""  # to be read while it is mended
    generate(page, target="uniform", number=4)
    page.locator("#images img").nth(1).wait_for()
    assert page.get_by_role("alert").inner_text() == ""  # while the next request is under way
    assert page.locator("#target").get_attribute("aria-invalid") is None
    gated.stop()
    engine.go.set()
    told(page, "4 images in")


def test_a_busy_server_says_when_to_try_again(visit: Visit, engine: GatedEngine) -> None:
    with running(stopped_pipeline(engine, 0), ServeSettings(slots=1, queue=4)) as server:
        first, second = visit(server), visit(server)
        generate(first, number=4)
        told(first, "Making 4 images")
        generate(second, number=4)
        told(second, re.compile(r"Try again in (a second|\d+ seconds)\.$"), role="alert")
        assert second.get_by_role("button", name="Generate").is_enabled()
        engine.go.set()
        told(first, "4 images in")


def test_a_lost_server_is_told_and_found_again(visit: Visit, plain: Running) -> None:
    page = visit(plain)
    page.route("**/v1/**", lambda route: route.abort())
    generate(page)
    told(page, "The server does not answer.", role="alert")
    page.reload()
    page.get_by_text("The server does not answer. Trying again …").wait_for()
    page.unroute("**/v1/**")
    generate(page, number=1)
    told(page, "1 image in")


def test_a_server_with_keys_asks_for_one(visit: Visit, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alice {KEY}\n")
    with running(fake_pipeline(), keys=Keys.load(keys)) as server:
        page = visit(server)
        field = page.get_by_label("API key")
        field.fill("no-such-key-at-all")
        page.keyboard.press("Enter")
        told(page, "The server does not know this API key.", role="alert")
        field.fill(KEY)
        page.keyboard.press("Enter")
        generate(page, number=2)
        told(page, "2 images in")
        assert field.is_hidden()
        page.get_by_role("cell", name="1", exact=True).first.wait_for()
        assert KEY not in page.url
