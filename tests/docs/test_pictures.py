"""The committed pictures are what `docs/tools/pictures.py` makes of today's results."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "pages" / "pictures"
COMMAND = ROOT / "docs" / "tools" / "pictures.py"
DRAWN = ("balance", "speed", "discrepancy", "architecture", "attention")
SVG = "{http://www.w3.org/2000/svg}"
# Of each picture of pixels: its width, and the most kilobytes that it may have.
PIXELS = {
    "hero": (1200, 120),
    "codes": (1440, 120),
    "contact-sheet": (552, 60),
    "page": (1280, 120),
    "splits": (1280, 120),
}
MAX_KB, MIN_FONT = 700, 11


def make(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, COMMAND, *arguments, "--out", out]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures")
    done = make(out, *DRAWN)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_is_what_the_command_makes_now(drawn: Path, name: str) -> None:
    committed = (FOLDER / f"{name}.svg").read_text("utf-8")
    assert (drawn / f"{name}.svg").read_text("utf-8") == committed, f"run: python docs/tools/pictures.py {name}"


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_can_be_read_out_and_loads_nothing(name: str) -> None:
    root = ElementTree.parse(FOLDER / f"{name}.svg").getroot()
    assert {SVG + "title", SVG + "desc"} <= {element.tag for element in root if (element.text or "").strip()}
    assert not [element.tag for element in root.iter() if any("href" in field for field in element.attrib)]
    sizes = [float(text.attrib["font-size"]) for text in root.iter(SVG + "text")]
    assert min(sizes) >= MIN_FONT
    assert root.attrib["viewBox"].split()[2] == "720"


@pytest.mark.parametrize("name", PIXELS)
def test_a_picture_of_pixels_is_there_and_small(name: str) -> None:
    path = FOLDER / f"{name}.webp"
    width, kilobytes = PIXELS[name]
    assert path.stat().st_size < 1000 * kilobytes
    with Image.open(path) as picture:
        assert picture.format == "WEBP"
        assert picture.width == width


def test_the_folder_holds_these_pictures_alone() -> None:
    found = {path.name for path in FOLDER.iterdir()}
    assert found == {f"{name}.svg" for name in DRAWN} | {f"{name}.webp" for name in PIXELS}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1000 * MAX_KB


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("balance", "balnce"), "no picture is named balnce; there are hero, balance"), (("hero",), "hero needs --demo")],
)
def test_what_is_asked_wrongly_is_told_before_anything_is_made(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = make(tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow(reason="samples 16 images, and finds the training images of the codes")
def test_the_pictures_of_the_shipped_bundle_are_of_this_bundle(tmp_path: Path) -> None:
    done = make(tmp_path, "codes", "contact-sheet")
    assert done.returncode == 0, done.stderr
    for name in ("codes", "contact-sheet"):
        with Image.open(tmp_path / f"{name}.webp") as now, Image.open(FOLDER / f"{name}.webp") as committed:
            # Another processor's images may differ by a grey level, and another libwebp may pack them otherwise.
            difference = np.abs(np.asarray(now, np.int16) - np.asarray(committed, np.int16))
        assert difference.mean() < 1, name
