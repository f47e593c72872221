"""From a folder of anybody's images to a record: what is read, what is refused, and what page, table and card say."""

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from photos import write_photos
from PIL import Image
from rich.console import Console

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.audit import images
from ddm_rt.evaluate.audit.about import About
from ddm_rt.evaluate.audit.judges import parse_source
from ddm_rt.evaluate.audit.record import Audit
from ddm_rt.evaluate.audit.run import Asked, audit
from ddm_rt.evaluate.report.audit_page import terminal_tables, write

LIGHT = "ldddldddld" * 4  # 12 light, 28 dark
NASTY = "<b>nasty</b> | `x` [y](z)"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", LIGHT)


@pytest.fixture
def measure(photos: Path, write_judge: Callable[..., Path]) -> Callable[..., tuple[Audit, np.ndarray]]:
    """measure(**asked) audits the photos with a judge of their tone, or with other judges."""
    tone = write_judge(name="tone.onnx")

    def measured(judges: tuple[str, ...] = (), about: About | None = None, folder: Path = photos, **asked: Any):
        sources = [parse_source(text) for text in judges or (f"tone={tone}",)]
        plan = Asked(judges=sources, **asked)
        return audit(images.find(folder), plan, about or About(), (), of_torch=lambda source: source)

    return measured


def label(folder: Path, name: str, **columns: Callable[[int], str]) -> Path:
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name" if name == "metadata.csv" else "image", *columns])
        writer.writerows([f"{i:03d}.jpg", *(of(i) for of in columns.values())] for i in range(len(LIGHT)))
    return path


def test_photos_of_all_kinds_are_read_as_people_see_them(measure, photos: Path) -> None:
    found, small = measure()
    (tone,) = found.attributes
    assert [share.count for share in tone.shares] == [28, 12]
    assert small.shape == (40, 96, 96, 3)
    facts = {fact.name: fact.value for fact in found.data}
    assert facts["images"] == "40"
    assert facts["formats"] == "14 JPEG, RGB; 13 JPEG, L; 13 JPEG, CMYK"
    assert facts["turned as EXIF says"] == "8"
    rows = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(photos.iterdir())]
    assert facts["sha256 of names and files"] == hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    turned = images.read_picture(photos / "000.jpg")
    with Image.open(photos / "000.jpg") as stored:
        assert turned.image.size == stored.size[::-1]
    assert turned.turned


def test_several_judges_intersections_and_outcomes(measure, photos: Path) -> None:
    label(photos, "metadata.csv", prompt=lambda i: "a nurse" if i % 2 else "a doctor", label=lambda i: "")
    people = label(photos.parent, "people.csv", label=lambda i: "left" if i % 4 else "right")
    judge = photos.parent / "tone.onnx"
    found, _ = measure((f"tone={judge}", f"side=people:{people}"), by=["prompt"], rules=["FD_L2[tone&side]<=.9"])
    assert [each.name for each in found.measured] == ["tone", "side", "tone&side"]
    assert [share.count for share in found.crossings[0].shares] == [24, 4, 6, 6]
    names = [each.name for each in found.parities]
    assert names == ["tone=dark|prompt", "tone=dark|side", "side=left|prompt", "side=left|tone"]
    nurses = {rate.value: (rate.n, rate.selected) for rate in found.parities[0].rates}
    assert nurses == {"a doctor": (20, 8), "a nurse": (20, 20)}
    assert found.outcome == "PASS"
    assert "No rule is about the shares of tone, side." in found.risks
    assert {each.attribute: each.kind for each in found.judges} == {"tone": "classifier: ONNX", "side": "people (1)"}


def test_targets_and_groups(measure) -> None:
    found, _ = measure(target="tone:dark=.7,light=.3")
    assert found.attributes[0].figures[0].name == "FD_L2", "FD_ddm is for an even target"
    assert found.attributes[0].figures[0].value == pytest.approx(0)
    assert [share.target for share in found.attributes[0].shares] == pytest.approx([0.7, 0.3])


def test_targets_of_attributes_taken_together(measure, photos: Path) -> None:
    people = label(photos.parent, "people.csv", label=lambda i: "left" if i % 4 else "right")
    two = (f"tone={photos.parent / 'tone.onnx'}", f"side=people:{people}")
    own, cells = "tone:dark=.7,light=.3", "tone&side:dark&left=.4,dark&right=.3,light&left=.2,light&right=.1"
    for asked, wanted in (
        ({"target": own}, [0.35, 0.35, 0.15, 0.15]),
        ({"target": cells, "crossings": ["side & tone"]}, [0.4, 0.3, 0.2, 0.1]),
    ):
        found, _ = measure(two, rules=["FD_L2[side&tone]<=.9"], **asked)
        assert [share.target for share in found.crossings[0].shares] == pytest.approx(wanted)
        assert found.crossings[0].not_corrected == "cells of several judges are not corrected"
        assert any(risk.startswith("FD_L2[tone&side]<=0.9 passed as judged") for risk in found.risks)
    with pytest.raises(DdmError, match="--target: 'tone&side' isn't measured; measured: tone, side"):
        measure(two, target=cells, crossings=["none"])


def test_groups_of_people_that_nobody_named_or_nobody_saw(measure, photos: Path) -> None:
    people = f"said=people:{label(photos.parent, 'people.csv', label=lambda i: LIGHT[i])}"
    told = "said: groups are the labels that occur in people.csv, because --groups doesn't name them."
    assert told in measure((people,))[0].risks
    named, _ = measure((people,), groups="said:l,d,x")
    assert told not in named.risks
    assert "said: no label says x." in named.risks


def test_a_file_that_calls_itself_people(measure, write_judge) -> None:
    told = {"classes": '["dark", "light"]', "training": '{"kind": "people (3)"}'}
    found, _ = measure((f"tone={write_judge(name='p.onnx', metadata=told)}",))
    assert found.judges[0].kind == "classifier: people (3)"
    assert any("How often the judge of tone is right is not known" in risk for risk in found.risks)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"rules": ["FD_ddm[race]<=1"]}, "'race' isn't measured; measured: tone"),
        ({"rules": ["nonsense"]}, "expected METRIC"),
        ({"groups": "tone:dark,green"}, "groups: green unknown to the judge; its classes: dark, light"),
        ({"groups": "race:dark,light"}, "--groups: attribute 'race' has no judge; judged are: tone"),
        ({"classes": "race:a,b"}, "--classes: attribute 'race' has no judge"),
        ({"classes": "a,b"}, "were given"),
        ({"target": "race:uniform"}, "attribute 'race' is unknown"),
        ({"by": ["tone"]}, "--by 'tone': a judge has this name"),
        ({"by": ["prompt"]}, "--by 'prompt': no such column"),
        ({"outcomes": ["tone=green"]}, "--outcome 'tone=green': expected ATTRIBUTE=GROUP of tone: dark, light"),
        ({"crossings": ["tone&race"]}, "--cross 'tone&race': expected two or more of tone"),
        ({"reference": Path("nowhere")}, "nowhere: no such folder of images"),
        ({"preprocessing": {"tone": Path("no.json")}}, "no.json: cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused_before_an_image_is_read(
    measure, photos: Path, asked: dict[str, Any], said: str
) -> None:
    (photos / "000.jpg").write_bytes(b"no picture")
    with pytest.raises(DdmError) as error:
        measure(**asked)
    assert said in str(error.value)


def test_images_that_cannot_be_read(measure, photos: Path) -> None:
    (photos / "005.jpg").write_bytes((photos / "005.jpg").read_bytes()[:200])
    (photos / "006.jpg").write_bytes(b"")
    (photos / "007.jpg").write_bytes((photos / "008.jpg").read_bytes())
    with pytest.raises(DdmError, match=r"005\.jpg: not a readable image"):
        measure()
    found, _ = measure(skip_unreadable=True)
    facts = {fact.name: fact.value for fact in found.data}
    assert (found.n, facts["left out as unreadable"], facts["exact copies of another image"]) == (
        38,
        "005.jpg, 006.jpg",
        "1",
    )
    assert any("2 files could not be read" in risk for risk in found.risks)
    assert any("1 images are exact copies" in risk for risk in found.risks)


def test_an_image_too_long_to_be_resized(measure, write_judge, photos: Path) -> None:
    metadata = {"classes": '["dark", "light"]', "preprocessing": '{"shortest_edge": 224, "crop": [8, 8]}'}
    judge = f"tone={write_judge(name='edge.onnx', metadata=metadata, shape=('B', 3, 8, 8))}"
    Image.new("L", (60000, 1)).save(photos / "long.png")
    said = r"long\.png: the judge of tone can't take it: 60000x1 pixels would be resized to 13440000x224"
    with pytest.raises(DdmError, match=said):
        measure((judge,))
    found, small = measure((judge,), skip_unreadable=True)
    assert (found.n, found.attributes[0].n, len(small)) == (40, 40, 40)
    assert {fact.name: fact.value for fact in found.data}["left out as unreadable"] == "long.png"


def test_a_link_to_nowhere_is_not_passed_over(measure, photos: Path) -> None:
    (photos / "040.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(DdmError, match=r"040\.jpg: cannot be read"):
        measure()


def test_links_and_pipes(measure, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (photos / "000.jpg").rename(tmp_path / "elsewhere" / "000.jpg")
    (photos / "000.jpg").symlink_to(tmp_path / "elsewhere" / "000.jpg")
    (photos / "inside.jpg").symlink_to("001.jpg")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(photos / "pipe.png")
    facts = {fact.name: fact.value for fact in measure()[0].data}
    assert facts["other files, by their endings"] == "1 links to folders, 1 neither file nor folder"
    assert (facts["images"], facts["links to files outside the folder"]) == ("41", "1")


def test_what_is_transparent_lies_on_white(measure, tmp_path: Path) -> None:
    folder = tmp_path / "clear"
    folder.mkdir()
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(folder / "0.png")
    Image.new("LA", (9, 9), (0, 255)).save(folder / "1.png")
    palette = Image.new("P", (9, 9), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(folder / "2.png", transparency=0)
    Image.new("RGB", (9, 9)).save(folder / "3.png")
    found, _ = measure(folder=folder)
    assert [share.count for share in found.attributes[0].shares] == [2, 2]
    assert {fact.name: fact.value for fact in found.data}["transparent, laid on white"] == "3"


def test_names_that_are_no_text_can_be_written(measure, photos: Path, tmp_path: Path) -> None:
    for name in (b"\xff.jpg", b"a.\xff"):
        (photos / f"{len(name) - 3:03d}.jpg").rename(photos / os.fsdecode(name))
    found, small = measure()
    write(found, small, tmp_path / "report")
    assert found.n == 39
    assert {fact.name: fact.value for fact in found.data}["other files, by their endings"] == "1 .\\udcff"


def test_files_that_are_no_images_are_counted(measure, photos: Path) -> None:
    label(photos, "metadata.csv", prompt=lambda i: "x")
    for name in ("a.heic", "b.heic", "readme", ".hidden.jpg"):
        (photos / name).write_bytes(b"")
    facts = {fact.name: fact.value for fact in measure()[0].data}
    assert (facts["images"], facts["other files, by their endings"]) == ("40", "2 .heic, 1 without an ending")


def test_more_groups_than_anybody_reads(measure, photos: Path) -> None:
    many = [f"many=people:{label(photos.parent, 'many.csv', label=lambda i: str(i))}"]
    many.append(f"more=people:{label(photos.parent, 'more.csv', label=lambda i: str(i // 2))}")
    with pytest.raises(DdmError, match="many&more: 800 groups are more than 200"):
        measure(tuple(many))
    assert measure(tuple(many), crossings=["none"])[0].crossings == ()


def test_a_target_of_nothing(measure) -> None:
    found, _ = measure(target="tone:dark=1,light=0", rules=["share:light<=.2"])
    assert found.attributes[0].shares[1].target == 0
    assert found.outcome == "UNDECIDED"


def test_labels_stay_with_their_images_where_some_cannot_be_read(measure, photos: Path) -> None:
    people = label(photos.parent, "people.csv", label=lambda i: LIGHT[i])
    for i in (0, 1, 7):
        (photos / f"{i:03d}.jpg").write_bytes(b"")
    found, _ = measure((f"said=people:{people}", f"tone={photos.parent / 'tone.onnx'}"), skip_unreadable=True)
    cells = {"d&dark": 26, "d&light": 0, "l&dark": 0, "l&light": 11}
    assert {share.group: share.count for share in found.crossings[0].shares} == cells


def test_one_image_is_enough(measure, tmp_path: Path) -> None:
    found, _ = measure(folder=write_photos(tmp_path / "one", "l"), rules=["FD_ddm<=.4"])
    assert found.n == 1
    assert found.attributes[0].shares[1].interval[0] < 0.3
    assert found.outcome == "UNDECIDED"


def test_folders_without_images(measure, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, said in ((tmp_path / "empty", "no images found"), (tmp_path / "none", "no such folder")):
        with pytest.raises(DdmError, match=said):
            measure(folder=folder)


def test_a_manifest_of_somebody_else_is_no_manifest(measure, photos: Path) -> None:
    (photos / "manifest.json").write_text('["theirs"]')
    assert measure()[0].n == 40


def test_quality_against_a_reference(measure, photos: Path, tmp_path: Path) -> None:
    real = write_photos(tmp_path / "real", "ld" * 20)
    label(real, "metadata.csv", tone=lambda i: "dark" if i % 2 else "light")
    found, _ = measure(reference=real, min_per_group=12)
    assert found.quality is not None
    assert (found.quality.found.n, found.quality.found.n_reference) == (40, 40)
    assert [each.group for each in found.quality.per_group] == ["dark", "light"]
    (real / "003.jpg").write_bytes(b"")
    with pytest.raises(DdmError, match=r"003\.jpg"):
        measure(reference=real, min_per_group=12)
    label(real, "metadata.csv", tone=lambda i: "dark")
    found, _ = measure(reference=real, min_per_group=12, skip_unreadable=True)
    facts = {fact.name: fact.value for fact in found.data}
    assert (found.quality.found.n_reference, facts["unreadable in the reference"]) == (39, "003.jpg")
    assert facts["quality per group"] == "not measured: no image of the reference has the label 'light'"
    people = label(photos.parent, "people.csv", label=lambda i: LIGHT[i])
    with pytest.raises(DdmError, match="people have none"):
        measure((f"said=people:{people}",), reference=real)


class _Cells(HTMLParser):
    """Texts of table rows, and what is said of charts."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.alts: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True
        elif tag == "small" and self._inside:
            self.rows[-1][-1] += " "
        elif tag == "svg":
            self.alts.append(told.get("aria-label") or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data.strip()


def test_chart_table_card_and_terminal_say_the_same(measure, photos: Path, tmp_path: Path) -> None:
    people = label(photos.parent, "people.csv", label=lambda i: "left" if i % 4 else "right")
    stated = About(model="Ours", licence="Apache-2.0", intended_use="tests", base_model="theirs")
    found, small = measure(about=stated)
    both, _ = measure((f"side=people:{people}",), about=stated)
    for k, one in enumerate((found, both)):
        out = tmp_path / f"report{k}"
        write(one, small, out)
        assert Audit.model_validate_json((out / "audit.json").read_bytes()) == one, "the record is the one source"
        page = _Cells()
        page.feed((out / "index.html").read_text(encoding="utf-8"))
        text = (out / "README.md").read_text(encoding="utf-8")
        ours = ModelCard(text).data.to_dict()
        told = Console(file=StringIO(), width=300)
        told.print(*terminal_tables(one))
        for each, alt in zip(one.measured, page.alts, strict=True):
            metrics = next(r for r in ours["model-index"][0]["results"] if each.name in r["dataset"]["name"])["metrics"]
            for share in each.shares:
                number, bounds = f"{share.share:.3f}", "[{:.3f}, {:.3f}]".format(*share.interval)
                assert f"{share.group} {number} {bounds}" in alt
                assert any(row[:3] == [share.group, str(share.count), f"{number} {bounds}"] for row in page.rows)
                line = rf"\| {share.group} \| {share.count} \| {number} {re.escape(bounds)} \|"
                assert re.search(line, text.replace("\\", ""))
                assert {"type": "selection_rate", "name": f"share of {share.group}", "value": float(number)} in metrics
            for figure in each.figures:
                number, bounds = f"{figure.value:.3f}", "[{:.3f}, {:.3f}]".format(*figure.interval)
                assert any(row[:3] == [figure.name, figure.library, f"{number} {bounds}"] for row in page.rows)
                assert f"| {figure.name} | {figure.library} | {number} {bounds} |" in text.replace("\\", "")
                assert {m["type"]: m["value"] for m in metrics}[figure.name] == float(number)
            fd = next(figure for figure in each.figures if figure.name == "FD_L2")
            assert "{:.3f} [{:.3f}, {:.3f}]".format(fd.value, *fd.interval) in told.file.getvalue()
        assert (ours["license"], ours["base_model"]) == ("apache-2.0", "theirs")
        assert ours["pipeline_tag"] == "unconditional-image-generation"


def test_the_points_of_a_chart_lie_where_the_record_says(measure, tmp_path: Path) -> None:
    found, small = measure()
    write(found, small, tmp_path / "report")
    html = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    svg = html[html.index("<svg") : html.index("</svg>")]
    ticks = {float(text): float(x) for x, text in re.findall(r'<text[^>]* x="([\d.]+)"[^>]*>([\d.]+)</text>', svg)}
    points = [float(x) for x in re.findall(r'<g clip-path="[^"]+">\s*<use xlink:href="#\w+" x="([\d.]+)"', svg)]
    scale = (ticks[1.0] - ticks[0.0]) / 1.0
    shares = [(x - ticks[0.0]) / scale for x in points]
    assert shares == pytest.approx([share.share for share in found.attributes[0].shares], abs=1e-3)


def test_what_others_wrote_is_text(measure, photos: Path, tmp_path: Path) -> None:
    label(photos, "metadata.csv", prompt=lambda i: NASTY if i % 2 else "plain")
    found, small = measure(about=About(model=NASTY, provider=NASTY, residual_risk=NASTY), by=["prompt"])
    write(found, small, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    card = (tmp_path / "report" / "README.md").read_text(encoding="utf-8")
    assert "<b>nasty" not in page
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["model-index"][0]["name"] == NASTY
    assert front["pipeline_tag"] == "text-to-image"
    body = card.split("---\n", 2)[2]
    assert "<b>nasty" not in body
    assert all(row.count("|") - row.count("\\|") in (0, 3, 5) for row in body.splitlines() if "nasty" in row)


def test_a_card_is_yaml_whatever_stands_in_it(measure, photos: Path, tmp_path: Path) -> None:
    label(photos, "metadata.csv", **{"a | b": lambda i: str(i % 2)})
    found, small = measure(about=About(model="x\x7f\x85\u2028\ufffey"), by=["a | b"])
    write(found, small, tmp_path / "report")
    card = (tmp_path / "report" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["name"] == "xy"
    assert "| a \\| b | n |" in card
