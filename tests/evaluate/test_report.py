"""The page is whole, escaped and alone; what can't be compared is refused; nothing is half-written."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from chromium import chromium, needs_playwright
from rich.console import Console
from tables import check_words, rendered
from toolchain import needs

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.comparison.paired import ShareChange
from ddm_rt.evaluate.evaluation import Evaluation, LabelledImages, evaluate
from ddm_rt.evaluate.judge import Judge
from ddm_rt.evaluate.report import page
from ddm_rt.evaluate.report.columns import Columns
from ddm_rt.evaluate.report.evaluation_page import LIMITS, CodeCard, MethodResult, Report, terminal_table, write
from ddm_rt.evaluate.report.plots import difference_chart, share_chart

NASTY = "<script>alert('x')</script> & \"$x_1$\" [b]"


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    return (np.arange(n) % 2 * 120 + 40)[:, None, None, None].astype(np.uint8) + rng.integers(
        0, 60, (n, 8, 8, 3), dtype=np.uint8
    )


@pytest.fixture
def report(write_judge):
    judge = Judge.load(write_judge())
    reference = LabelledImages(pictures(20, 1), ["dark", "light"] * 10)
    plain = evaluate(pictures(41), None, judge, ["dark", "light"], reference, pictures(9, 2), min_per_group=21)
    coded = evaluate(
        pictures(44),
        np.arange(44) % 3,
        judge,
        ["dark", "light"],
        reference,
        pictures(9, 2),
        min_per_group=21,
        attributes=["slant"],
    )
    return Report(
        title=f"Sample {NASTY}",
        methods=[
            MethodResult("vanilla", "Vanilla", plain, pictures(41)),
            MethodResult("ours", f"Ours {NASTY}", coded, pictures(5), NASTY, from_other_run=f"seed 7 {NASTY}"),
        ],
        codes=[CodeCard(code, code // 2, 10 + code, pictures(code + 1)) for code in range(3)],
        stability=[0.9, 1.0],
        provenance={"command": NASTY, "versions": {"numpy": np.__version__}},
        limitations=[f"Tried {NASTY}"],
    )


class Page(HTMLParser):
    """Tags, attributes and text; checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br", "link", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"style", "script"}:
            self.text.append(data)


def parse(path):
    parser = Page()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


def test_page_is_well_formed_and_self_contained(report, tmp_path):
    path = write(report, tmp_path / "report")
    assert sorted(file.name for file in path.parent.iterdir()) == ["index.html", "report.json"]
    parsed = parse(path)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in parsed.tags}
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href"):
            if (target := attributes.get(name)) is not None:
                assert target.startswith(("data:image/png;base64,", "#")), (tag, target)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for tag, a in parsed.tags if tag == "a"]
    assert set(links) <= set(ids)
    assert "url(http" not in path.read_text(encoding="utf-8")


def test_accessible(report, tmp_path):
    parsed = parse(write(report, tmp_path / "report"))
    assert all(a["alt"] for tag, a in parsed.tags if tag == "img")
    assert next(a["aria-label"] for tag, a in parsed.tags if tag == "svg").startswith("Group shares")
    scrolling = [a for _, a in parsed.tags if a.get("class") == "scroll"]
    assert scrolling
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolling)
    assert all("scope" in a for tag, a in parsed.tags if tag == "th")


def test_says_when_labels_defined_the_codes(report, tmp_path):
    found = write(report, tmp_path / "found").read_text(encoding="utf-8")
    told = write(replace(report, code_labels=64), tmp_path / "told").read_text(encoding="utf-8")
    assert "3 codes were found, without labels, in the training images" in found
    assert "3 codes were defined by 64 labelled training images" in told
    assert "without labels" not in told


def test_says_what_it_must(report, tmp_path):
    whole = " ".join("".join(parse(write(report, tmp_path / "report")).text).split())
    for needed in (
        *LIMITS,
        "None was picked by hand",
        f"from another run: seed 7 {NASTY}",
        f"Tried {NASTY}",
        "equal n for all",
        "1 of 21 images of light missing; generate more",
        "Stability: adjusted Rand index",
        "Top code 1",
        "FD_ddm",
        "neither",
        "Wasserstein-1",
    ):
        assert needed in whole
    assert not re.search(r"\b(un)?fair(ness|ly)?\b|parity (is )?achieved|unbiased", whole, re.IGNORECASE)


def test_json_holds_the_same_figures(report, tmp_path):
    tree = json.loads((write(report, tmp_path / "report").parent / "report.json").read_text())
    assert tree["methods"][1]["from_other_run"] == f"seed 7 {NASTY}"
    for written, method in zip(tree["methods"], report.methods, strict=True):
        assert Evaluation.model_validate(written["evaluation"]) == method.evaluation
    assert tree["codes"][2] == {"code": 2, "top_code": 1, "size": 12}
    assert tree["stability"] == [0.9, 1.0]


def test_same_report_same_bytes(report, tmp_path):
    first, again = (write(report, tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == again


def test_without_codes_or_nearest(report, tmp_path):
    bare = report.methods[0].evaluation.model_copy(update={"nearest": None, "corrected": None})
    small = Report("Bare", [MethodResult("vanilla", "Vanilla", bare, pictures(3))])
    parsed = parse(write(small, tmp_path / "report"))
    headings = [a.get("id") for tag, a in parsed.tags if tag == "h2"]
    assert headings == ["pictures", "shares", "quality", "limits", "provenance"]


def test_refuses_without_a_trace(report, tmp_path):
    ours, vanilla = report.methods[1], report.methods[0]

    def changed(**update):
        return MethodResult("x", "X", ours.evaluation.model_copy(update=update), pictures(2))

    for methods, message in [
        ([], "methods"),
        ([vanilla, vanilla], "different names"),
        ([vanilla, changed(groups=("light", "dark"))], "differ in groups"),
        ([vanilla, changed(min_per_group=4)], "differ in min_per_group"),
        (
            [vanilla, changed(judge=ours.evaluation.judge.model_copy(update={"sha256": "0"}))],
            "differ in judge",
        ),
        ([MethodResult("x", "X", vanilla.evaluation, pictures(0))], "grid_images"),
    ]:
        with pytest.raises(DdmError, match=message):
            write(Report("t", methods), tmp_path / "report")
    with pytest.raises(DdmError, match="provenance is not JSON"):
        write(Report("t", [vanilla], provenance={"when": object()}), tmp_path / "report")
    assert [file for file in tmp_path.iterdir() if file.suffix != ".onnx"] == []


def test_refuses_to_overwrite(report, tmp_path):
    write(report, tmp_path / "report")
    with pytest.raises(DdmError, match="not an empty directory"):
        write(report, tmp_path / "report")


def test_chart_of_three_groups(report):
    evaluation = report.methods[0].evaluation
    raw = evaluation.raw.model_copy(update={"shares": (0.5, 0.3, 0.2), "intervals": ((0.4, 0.6),) * 3})
    floor = evaluation.noise_floor._replace(share_p95=(0.1,) * 3)
    three = evaluation.model_copy(
        update={"groups": ("a", "b", "c"), "target": (1 / 3,) * 3, "raw": raw, "noise_floor": floor}
    )
    svg = share_chart([("one", three), ("$two$", three)], "alt")
    assert svg.count("currentColor") > 3
    assert all(f">{label}<" in svg for label in ("one", "$two$", "a", "b", "c"))


@needs("chromium")
@needs_playwright
@pytest.mark.slow(reason="needs ddm-rt[integration]")
def test_texts_of_charts_lie_within_them_and_the_page_in_a_phone(report, tmp_path):
    evaluation = report.methods[0].evaluation
    groups = ("a group with a rather long name", "another group, whose name is longer")
    named = evaluation.model_copy(update={"groups": groups})
    labels = ("Ours, with 64 labels of the training images and three seeds", "bundles/a-long-name-without-spaces", "x")
    change = ShareChange(
        group=groups[1], share_a=0.5, share_b=0.4, lost=2, gained=1, difference=-0.1, interval=(-0.2, 0.05)
    )
    charts = [
        share_chart([(label, named) for label in labels], "alt"),
        share_chart([("x", named)], "alt"),
        difference_chart([change] * 3, 0.03, "alt"),
    ]
    inside = """() => [...document.querySelectorAll("svg")].flatMap((svg) => {
      const whole = svg.getBoundingClientRect();
      return [...svg.querySelectorAll("text")].map((text) => {
        const box = text.getBoundingClientRect();
        const fits = box.left >= whole.left && box.right <= whole.right
          && box.top >= whole.top && box.bottom <= whole.bottom;
        return [text.textContent, fits];
      });
    })"""
    with chromium() as browser:
        for font in ("sans-serif", "serif", "monospace"):
            tab = browser.new_page()
            tab.set_content(f"<body style='width: 600px; font-family: {font}'>{''.join(charts)}")
            texts = tab.evaluate(inside)
            assert any(groups[0].split()[-1] in text for text, _ in texts)
            assert [text for text, fits in texts if not fits] == [], font
        tab = browser.new_page(viewport={"width": 390, "height": 800})
        long = replace(report, title="long-" * 20, methods=[replace(report.methods[0], label="digits@steps=4," * 4)])
        tab.goto(write(long, tmp_path / "report").as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_terminal_table(report):
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(terminal_table(report.methods))
    shown = console.export_text()
    for needed in (
        "Vanilla",
        NASTY,
        "from another run: seed 7",
        "FD_ddm",
        "neither",
        "1 missing",
    ):
        assert needed in shown


def test_terminal_table_cuts_no_word(report):
    plain, coded = report.methods
    labels = (
        "Vanilla",
        "DDM as published",
        "Ours, 64 labels of the training images",
        "bundles/long-name-without-spaces",
    )
    four = [replace(plain, name=label, label=label) for label in labels]
    for methods in (report.methods, four, [replace(coded, label="x" * 40)]):
        check_words(terminal_table(methods))


def test_columns_that_fit_stand_in_one_table():
    columns = Columns({"figure": ["n"]}, [(f"method {k}", ["[0.000, 0.106]"]) for k in range(5)], "Notes.")
    heads = [line for line in rendered(columns, 80) if "figure" in line]
    assert [line.count("method") for line in heads] == [4, 1]
    assert sum("figure" in line for line in rendered(columns, 120)) == 1
    assert rendered(columns, 80)[-1] == "Notes."


@pytest.mark.parametrize(("count", "columns", "shape"), [(1, 8, (4, 55)), (8, 8, (4, 55)), (9, 4, (14, 27))])
def test_sheet(count, columns, shape):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros((count, 4, 6, 3), np.uint8)
    canvas = page.sheet(images, columns)
    assert canvas.shape == (*shape, 4)
    last = count - 1
    y, x = last // columns * 5, last % columns * 7
    assert (canvas[y : y + 4, x : x + 6] == (last, last, last, 255)).all()
    assert (canvas[..., 3] > 0).sum() == count * 4 * 6
