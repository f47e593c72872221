"""Make the pictures of README and the documentation from results, from the shipped bundle and from a demo's models.

python docs/tools/pictures.py                                    every picture but the hero and the page
python docs/tools/pictures.py balance speed                      these
python docs/tools/pictures.py hero --demo demo-out               after `make demo`: both sides are its models' images
python docs/tools/pictures.py page splits                        need ddm-rt[integration] and Chromium

The same inputs give the same bytes; no image is chosen by hand, and every seed is 0.
"""

import argparse
import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import picture_charts
import picture_drawings
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ddm_rt import data
from ddm_rt.bundle import Bundle
from ddm_rt.evaluate.judge import Judge
from ddm_rt.evaluate.run import code_cards
from ddm_rt.files import write_atomic
from ddm_rt.sample.generation import contact_sheet, encoded
from ddm_rt.sample.pipeline import Pipeline

OUT = Path(__file__).parents[1] / "pages" / "pictures"
SEED = 0
INK, QUIET, BLUE, ORANGE = picture_charts.INK, picture_charts.QUIET, picture_charts.BLUE, picture_charts.ORANGE
Pixels = NDArray[np.uint8]


def hero(demo: Path) -> bytes:
    """The first 64 images of the demo's vanilla model and of its model with codes, counted by the judge."""
    ours = Bundle.load(demo / "ours" / "bundle")
    source = ours.training.run.data
    labels = data.load(source).labels or ()
    groups = sorted(set(labels), key=lambda group: (-labels.count(group), group))
    card = _card(1200, 884)
    draw = ImageDraw.Draw(card)
    counted = [f"{labels.count(group):,} images of {group}" for group in groups]
    _told(draw, 600, 30, f"Trained on {counted[0]} and {counted[1]}, without labels", 34, INK, "ma")
    for left, (name, title) in zip(
        (38, 622), (("vanilla", "Plain diffusion"), ("ours", "ddm_rt: codes and a quota")), strict=True
    ):
        images = Pipeline.load(demo / name / "bundle", threads=1).generate(n=64, seed=SEED).images
        verdicts = Judge.load("digits").predict(images).labels.tolist()
        _told(draw, left + 270, 94, title, 30, INK, "ma")
        for i, (image, verdict) in enumerate(zip(images, verdicts, strict=True)):
            x, y = left + i % 8 * 68, 142 + i // 8 * 68
            if verdict == groups[1]:
                draw.rectangle((x - 3, y - 3, x + 66, y + 66), fill=ORANGE)
            card.paste(Image.fromarray(_larger(image, 2)), (x, y))
        shares = [verdicts.count(group) for group in groups]
        rest = len(verdicts) - sum(shares)
        words = f"{shares[0]} of {groups[0]}, {shares[1]} of {groups[1]} (framed)"
        words += f", {rest} of neither" if rest else ""
        end = left
        for count, colour in zip((*shares, rest), (INK, ORANGE, "#afb8c1"), strict=True):
            start, end = end, end + 540 * count / len(verdicts)
            if count:
                draw.rectangle((start, 704, end - 1, 724), fill=colour)
        _told(draw, left, 738, words, 32, INK)
    about = (
        f"The first 64 images of seed {SEED}, none chosen, counted by a classifier of digits.",
        f"Both models are those of ddm-rt demo: {ours.training.run.train.steps} training steps each.",
    )
    for i, line in enumerate(about):
        _told(draw, 600, 796 + 34 * i, line, 26, QUIET, "ma")
    return _webp(card)


def codes() -> bytes:
    """The shipped bundle's codes: the tree that Ward's method gave, its two top branches, typical training images."""
    bundle = Bundle.load("digits")
    cards, tree = code_cards(bundle), bundle.training.discovery.tree
    tops = len({card.top_code for card in cards})
    shown, scale, gap, width, left, root, floor = 6, 2, 6, 1440, 40, 130, 420
    order = _leaves(tree, len(cards) + len(tree) - 1, len(cards))
    step = (width - 2 * left) / len(order)
    size = 32 * scale
    card = _card(width, floor + 84 + shown * (size + gap) + 56)
    draw = ImageDraw.Draw(card)
    total = sum(one.size for one in cards)
    _told(
        draw,
        left,
        28,
        f"{len(cards)} codes in {tops} top codes, found in {total:,} images of 3 and 8 without labels",
        34,
        INK,
    )
    place = {code: (left + step * (i + 0.5), float(floor), {cards[code].top_code}) for i, code in enumerate(order)}
    highest = tree[-1][2]
    for i, (one, other, height) in enumerate(tree):
        (x1, y1, tops1), (x2, y2, tops2) = place[one], place[other]
        y = floor - (floor - root) * height / highest
        for x, below, of in ((x1, y1, tops1), (x2, y2, tops2)):
            draw.line([(x, below), (x, y)], fill=_of(of), width=4)
        draw.line([(x1, y), (x2, y)], fill=_of(tops1 | tops2), width=4)
        place[len(cards) + i] = ((x1 + x2) / 2, y, tops1 | tops2)
    for k in range(tops):
        columns = [i for i, code in enumerate(order) if cards[code].top_code == k]
        middle = left + step * (columns[0] + columns[-1] + 1) / 2
        images = sum(one.size for one in cards if one.top_code == k)
        _told(draw, middle, 84, f"top code {k}: {images:,} images", 30, _of({k}), "ma")
    for i, code in enumerate(order):
        x = left + step * (i + 0.5)
        _told(draw, x, floor + 8, str(code), 30, _of({cards[code].top_code}), "ma")
        _told(draw, x, floor + 44, str(cards[code].size), 26, QUIET, "ma")
        for row, image in enumerate(cards[code].exemplars[:shown]):
            card.paste(Image.fromarray(_larger(image, scale)), (round(x - size / 2), floor + 84 + row * (size + gap)))
    _told(
        draw,
        left,
        card.height - 48,
        "Below each code: its number of training images, and those most typical of it.",
        26,
        QUIET,
    )
    return _webp(card)


def sheet() -> bytes:
    """What `ddm-rt sample digits -n 16 --seed 0` writes as contact_sheet.png, four times as large."""
    images = Pipeline.load("digits", threads=1).generate(n=16, seed=SEED).images
    return encoded(_larger(contact_sheet(images), 4), "webp", lossless=True, method=6)


def page() -> bytes:
    """The page of `ddm-rt serve digits` in Chromium, 1,280 pixels wide and light, after a request for 20 images."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "ddm_rt.cli", "serve", "digits", "--port", str(port)]
    command += ["--judge", "digits", "--groups", "3,8"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(url, server)
            with _screen(url, 900) as screen:
                screen.get_by_label("Number", exact=True).fill("20")
                screen.get_by_label("Seed", exact=True).fill(str(SEED))
                screen.get_by_role("button", name="Generate").click()
                screen.get_by_role("status").filter(has_text="20 images in").wait_for(timeout=300_000)
                screen.mouse.move(0, 0)
                screen.wait_for_timeout(2000)  # the shares are asked for once a second
                shot = screen.screenshot(full_page=True)
        finally:
            server.terminate()
    return _webp(Image.open(io.BytesIO(shot)).convert("RGB"))


def splits() -> bytes:
    """The top of the page that `ddm-rt discover --data digits:3,8@4:1` makes, in Chromium, 1,280 pixels wide."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ddm_rt.cli", "discover", "--data", "digits:3,8@4:1", "--out", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with _screen((Path(folder) / "index.html").as_uri(), 1000) as screen:
            shot = screen.screenshot()
    return _webp(Image.open(io.BytesIO(shot)).convert("RGB"))


@contextmanager
def _screen(url: str, height: int) -> Iterator[Any]:
    """The page at that address in Chromium, in a window of that height."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        screen = browser.new_page(viewport={"width": 1280, "height": height}, color_scheme="light")
        screen.goto(url)
        yield screen
        browser.close()


def svg(make: Callable[[], str]) -> Callable[[], bytes]:
    return lambda: make().encode()


CHEAP: dict[str, Callable[[], bytes]] = {
    "balance.svg": svg(picture_charts.balance),
    "speed.svg": svg(picture_charts.speed),
    "discrepancy.svg": svg(picture_charts.discrepancy),
    "architecture.svg": svg(picture_drawings.architecture),
    "attention.svg": svg(picture_drawings.attention),
    "codes.webp": codes,
    "contact-sheet.webp": sheet,
}
PICTURES = ("hero.webp", *CHEAP, "page.webp", "splits.webp")


def _card(width: int, height: int) -> Image.Image:
    """A white card; `_webp` rounds its corners."""
    return Image.new("RGB", (width, height), "#ffffff")


def _told(draw: ImageDraw.ImageDraw, x: float, y: float, words: str, size: int, fill: str, anchor: str = "la") -> None:
    """Words in the font that comes with Pillow, so that every machine draws the same."""
    draw.text((x, y), words, fill=fill, font=ImageFont.load_default(size), anchor=anchor)


def _larger(image: Pixels, scale: int) -> Pixels:
    """Each pixel as a square."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _leaves(tree: tuple[tuple[int, int, float], ...], node: int, leaves: int) -> list[int]:
    """The codes below a node, from left to right."""
    if node < leaves:
        return [node]
    one, other, _ = tree[node - leaves]
    return _leaves(tree, one, leaves) + _leaves(tree, other, leaves)


def _of(tops: set[int]) -> str:
    """The colour of a branch: its top code's, or grey where it holds several."""
    return (BLUE, ORANGE)[min(tops)] if len(tops) == 1 else QUIET


def _webp(card: Image.Image) -> bytes:
    """A card's file; its round corners are transparent."""
    mask = Image.new("L", card.size, 0)
    place = (0, 0, card.width - 1, card.height - 1)
    ImageDraw.Draw(mask).rounded_rectangle(place, 24, 255)
    ImageDraw.Draw(card).rounded_rectangle(place, 24, outline=picture_charts.EDGE, width=2)
    card.putalpha(mask)
    return encoded(np.array(card), "webp", quality=82, method=6)


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            if server.poll() is not None:
                sys.exit("page: the server ended before it answered; try `ddm-rt serve digits`")
            time.sleep(0.5)
    sys.exit("page: the server didn't answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(Path(p).stem for p in PICTURES)}")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="the folder that `ddm-rt demo` made; for the hero")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="default: docs/pages/pictures")
    given = parser.parse_args()
    by_name = {Path(picture).stem: picture for picture in PICTURES}
    unknown = sorted(set(given.names) - set(by_name))
    if unknown:
        parser.error(f"no picture is named {', '.join(unknown)}; there are {', '.join(by_name)}")
    wanted = given.names or [*(Path(p).stem for p in CHEAP), *(["hero"] if given.demo else [])]
    if "hero" in wanted and given.demo is None:
        parser.error("hero needs --demo DIR, the folder that `make demo` made")
    makers = CHEAP | {"page.webp": page, "splits.webp": splits, "hero.webp": lambda: hero(given.demo)}
    given.out.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(wanted, 1):
        picture = by_name[name]
        print(f"{i} of {len(wanted)}: {picture} ...", end=" ", flush=True)
        made, path = makers[picture](), given.out / picture
        same = path.is_file() and path.read_bytes() == made
        write_atomic(path, made)
        print(f"{len(made) / 1000:.0f} kB{', as before' if same else ''}", flush=True)


if __name__ == "__main__":
    main()
