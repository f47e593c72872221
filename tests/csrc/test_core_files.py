"""What the embedding library says of files that are wrong is what Python says of them, word by word."""

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from bundle_formats import reindex, write_format
from core_probe import CoreProbe, python
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_bundle import fill
from pydantic import TypeAdapter, ValidationError

from ddm_rt.bundle import INDEX, Bundle, write_bundle
from ddm_rt.config import SamplerName, parse_json
from ddm_rt.sample.manifest import ImageRecord, Manifest
from ddm_rt.sample.request import ResolvedRequest

FILES = (  # of a bundle, by its format
    *((1, name) for name in ("config.json", "codes.json", "schedule.json", INDEX)),
    *((2, name) for name in ("runtime.json", INDEX)),
)


def described(path: Path) -> dict[str, Any]:
    bundle = Bundle.load(path)
    return {"bundle_id": bundle.bundle_id, "num_codes": bundle.codes.num_codes}


def replace(bundle: Path, name: str, content: bytes) -> None:
    """Another file in its place, correctly hashed."""
    (bundle / name).write_bytes(content)
    if name != INDEX:
        reindex(bundle)


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "written", fill, {}).path


BROKEN = (
    b"{}",
    b"not json",
    b'{"unknown": NaN}',
    b"",
    b"[]",
    b"\xff",
    b"\xef\xbb\xbf{}",
    b'{"a": "\xc3("}',
    b"1e400",
    b"{",
)


@pytest.mark.parametrize(("number", "name"), FILES)
def test_malformed_but_correctly_hashed_files(core: CoreProbe, paper: Path, number: int, name: str) -> None:
    bundle = write_format(number, paper, paper.with_name("bundle"))
    for content in BROKEN:
        replace(bundle, name, content)
        there = core("bundle", path=str(bundle))
        assert there == python(lambda: described(bundle)), content
        assert name in there["error"]


STRANGE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 1.0, 1.5, -0.5, 1e300, 2**63 - 1, -(2**63), [], {}, [1], [[]], {"a": 1}, "", "x"),
    *("1", " 2 ", "1_0", "2.0", "0.5", "1" * 4301, "\u0661", "\x1c1", "nan", "true", "ON", "epsilon", "a" * 64, "sd"),
)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each member of each object and list: what holds it, and its name there."""
    if isinstance(tree, dict | list):
        for key, value in [*(tree.items() if isinstance(tree, dict) else enumerate(tree))][:30]:
            yield tree, key
            yield from places(value)


def altered(tree: Any, rng: random.Random) -> Any:
    tree = deepcopy(tree)
    for _ in range(rng.choice([1, 1, 2])):
        holder, key = rng.choice([*places(tree)])
        match rng.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder["more"] = 1
            case 1:
                holder.append(holder[key])
            case _:
                holder[key] = rng.choice(STRANGE)
        if not tree:
            break
    return tree


@pytest.mark.parametrize(("number", "name"), FILES)
def test_files_with_a_strange_value_somewhere(core: CoreProbe, paper: Path, number: int, name: str) -> None:
    bundle = write_format(number, paper, paper.with_name("bundle"))
    rng = random.Random(name)
    tree = json.loads((bundle / name).read_bytes())
    for _ in range(120):
        content = json.dumps(altered(tree, rng)).encode()
        replace(bundle, name, content)
        assert core("bundle", path=str(bundle)) == python(lambda: described(bundle)), content


MANIFEST = Manifest(
    bundle_id="0" * 64,
    request=ResolvedRequest(
        n=1,
        seed=2**64 - 1,
        balance="auto",
        height=16,
        width=16,
        indicator_guidance_scale=1.5,
        indicator_scale=1,
        eta=0,
        clip=(-1, 1),
    ),
    target=None,
    sampler=SamplerName.DDIM,
    num_steps=3,
    backend="onnxruntime",
    precision="fp32",
    threads=1,
    versions={"ddm_rt": "0"},
    images=(ImageRecord(file="00000.png", seed=7, code=-1, top_code=-1),),
)


def written(text: str) -> str:
    return json.dumps(parse_json(Manifest, text, "manifest").tree(), indent=1) + "\n"


def check_manifest(core: CoreProbe, tree: Any) -> None:
    text = json.dumps(tree)
    assert core("manifest", content=text) == python(lambda: written(text)), text


def test_manifests_with_a_strange_value_somewhere(core: CoreProbe) -> None:
    rng = random.Random(0)
    tree = MANIFEST.tree()
    check_manifest(core, tree)
    for _ in range(300):
        check_manifest(core, altered(tree, rng))


WHOLE = (
    *(
        "12",
        " 12 ",
        "\u00a012",
        "\x1c12",
        "\x8512",
        "\u200b12",
        "+12",
        "-12",
        "+-1",
        "- 1",
        "1_000",
        "1__0",
        "_1",
        "1_",
    ),
    *("+_1", "0012", "00_12", "-0", "2.0", "2.", "2.0_0", "2.01", ".0", "1e3", "\u0661", "", "+", "0x10", "1" * 4300),
    *(
        "1" * 4301,
        "0" * 4400 + "1",
        "1_" * 2200 + "1",
        "1" * 4301 + ".0",
        "-" + "1" * 4301,
        "9" * 19,
        "18446744073709551615",
    ),
    *("18446744073709551616", 2**64, 2**64 - 1, -1, -(2**70), 10**30, 1e3, 1e19, 1.5, -0.0, 9.3e18, True, None, [1]),
)
REAL = (
    *(
        " 1.5 ",
        "\u20281",
        "\x1d1",
        "1_0.5",
        "1._5",
        "1_.5",
        "1.5_",
        "1e1_0",
        "1_e10",
        "nan",
        "-INFINITY",
        "in_f",
        "1e400",
    ),
    *(
        ".5",
        "5.",
        ".",
        "-.5",
        "e5",
        "1e+",
        "0x1p3",
        "\u0661.5",
        "",
        "00.5",
        "\ufeff1",
        "1" * 400,
        10**400,
        1e400,
        -1,
        True,
    ),
    *("-0", 0, -0.0, None, [], 2**63, 2**64 + 1, 1e16, 1e22, 5e-324),
)


WHOLE_NUMBER = TypeAdapter(int)


def test_numbers_in_quotes_and_at_their_limits(core: CoreProbe) -> None:
    for field, values in {"seed": WHOLE, "guidance_scale": REAL, "eta": REAL, "shuffle": (*WHOLE, *REAL)}.items():
        for value in values:
            tree = MANIFEST.tree()
            tree["request"][field] = value
            check_manifest(core, tree)
    for value in WHOLE:
        tree = MANIFEST.tree()
        tree["images"][0]["position"] = value
        try:
            here_too = WHOLE_NUMBER.validate_json(json.dumps(value)).bit_length() < 64  # larger ones are refused
        except ValidationError:
            here_too = True
        if here_too:
            check_manifest(core, tree)


@pytest.mark.parametrize(
    "file", ["12345.png", "1234.png", "1" * 11 + ".png", "\u0661" * 5 + ".png", "\u0661234\U0001e4f0.png"]
)
def test_names_of_images(core: CoreProbe, file: str) -> None:
    tree = MANIFEST.tree()
    for name in (file, file + "\n", "x" + file):
        tree["images"][0]["file"] = name
        check_manifest(core, tree)


ANY: TypeAdapter[Any] = TypeAdapter(Any)


def canonical(value: Any) -> Any:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return {"error": "Out of range float values are not JSON compliant", "status": 1}


def by_pydantic(content: bytes) -> Any:
    try:
        return canonical(ANY.validate_json(content))
    except ValidationError as error:
        return {"error": error.errors()[0]["msg"].removeprefix("Invalid JSON: "), "status": 1}


def by_python(content: bytes) -> Any:
    try:
        return canonical(json.loads(content))
    except ValueError as error:
        return {"error": str(error), "status": 1}


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner))
PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\\",
    b"\\u",
    b"\\ud83d",
    b"\\ude42",
    b"1",
    b"-",
    b"0",
    b".",
    b"e",
    b"+",
]
PIECES += [
    b"NaN",
    b"-Infinity",
    b"tru",
    b"null",
    b" ",
    b"\n",
    b"\x00",
    b"\xc3",
    b"\xa9",
    b"\xed\xa0\x80",
    b"\xf4\x90",
    b"/",
]


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """JSON, or nearly so."""
    if draw(st.booleans()):
        return b"".join(draw(st.lists(st.sampled_from(PIECES), max_size=12)))
    content = json.dumps(draw(TREES), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.integers(0, 3))
        content = content[:start] + draw(st.sampled_from([b"", *PIECES])) + content[end:]
    return content


@settings(max_examples=10, deadline=None)
@given(st.lists(documents(), min_size=20, max_size=40))
def test_json_is_read_as_python_and_pydantic_do(core: CoreProbe, contents: list[bytes]) -> None:
    contents = [content for content in contents if json.detect_encoding(content).startswith("utf-8")]
    texts = [content.hex() for content in contents]
    for dialect, reference in {"python": by_python, "pydantic": by_pydantic}.items():
        for content, there in zip(contents, core("json", texts=texts, dialect=dialect), strict=True):
            assert there == reference(content), (dialect, content)
