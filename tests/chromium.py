"""Debian's Chromium without a screen, driven through Playwright, and what pages are asked in it."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from http_server import Running
from patience import PATIENCE_S

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Visit = Callable[..., "Page"]

needs_playwright = pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None, reason="needs ddm-rt[integration]"
)

# No traffic of Chromium's own, and no screen or sandbox, which containers lack.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# Each text that is seen, with its contrast to what is behind it, as WCAG 2 defines it.
CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour[3] !== 0) return colour;
    }
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const seen = [...document.body.querySelectorAll("*")].filter(
    (element) => element.checkVisibility() && !element.disabled && hasText(element));
  return seen.map((element) => {
    const colours = [channels(getComputedStyle(element).color), behind(element)];
    const [low, high] = colours.map(luminance).sort((one, other) => one - other);
    return [element.textContent.trim(), (high + 0.05) / (low + 0.05)];
  });
}"""
PIXELS = """(images) => images.map((image) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL();
})"""


@contextmanager
def chromium() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def visits(browser: "Browser") -> Iterator[Visit]:
    """Gives visit(server, **context), which opens the server's page with a context of its own.

    Fails at the end where a page reported an error, or asked for anything from elsewhere.
    """
    contexts, wrong = [], []

    def on_console(message: Any) -> None:
        # A refused request stands in the console too; the page tells it in its own words.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    def visit(server: Running, **options: Any) -> "Page":
        own = (f"{server.url}/", f"blob:{server.url}/")
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE_S)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", on_console)
        page.on("request", lambda request: wrong.extend([] if request.url.startswith(own) else [request.url]))
        page.goto(server.url)
        return page

    try:
        yield visit
    finally:
        for context in contexts:
            context.close()
    assert wrong == []
