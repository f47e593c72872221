"""The embedding library refuses the files that Python refuses, and names the same file and field."""

import json
import random
import re
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from bundle_formats import reindex, write_format
from core_probe import CoreProbe, agree, python
from embedding_build import Built
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_bundle import fill

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
        there, here = core("bundle", path=str(bundle)), python(lambda: described(bundle))
        assert "error" in here
        assert name in there["error"], content


# What both sides take or both refuse: Python also takes numbers in quotes, and truth for numbers.
STRANGE: tuple[Any, ...] = (
    *(
        None,
        -1,
        3,
        1.5,
        -0.5,
        1e300,
        2**63 - 1,
        -(2**63),
        [],
        {},
        [1],
        [[]],
        {"a": 1},
        "",
        "x",
        "epsilon",
        "a" * 64,
        "sd",
    ),
)
# What the C library doesn't read: how the model was trained, and what alphas_cumprod were made from.
UNREAD = (
    "beta_start",
    "beta_end",
    "model",
    "run",
    "provenance",
    "num_top_codes",
    "origin",
    "tree",
    "exemplars",
    "stability_ari",
    "rule",
)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each member of each object and list that is read: what holds it, and its name there."""
    if isinstance(tree, dict | list):
        for key, value in [*(tree.items() if isinstance(tree, dict) else enumerate(tree))][:30]:
            if key not in UNREAD:
                yield tree, key
                yield from places(value)


def altered(tree: Any, rng: random.Random) -> Any:
    tree = deepcopy(tree)
    holder, key = rng.choice(list(places(tree)))
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder["more"] = 1
        case 1:
            holder.append(holder[key])
        case _:
            holder[key] = rng.choice(STRANGE)
    return tree


@pytest.mark.parametrize(("number", "name"), FILES)
def test_files_with_a_strange_value_somewhere(core: CoreProbe, paper: Path, number: int, name: str) -> None:
    bundle = write_format(number, paper, paper.with_name("bundle"))
    rng = random.Random(name)
    tree = json.loads((bundle / name).read_bytes())
    for _ in range(120):
        content = json.dumps(altered(tree, rng)).encode()
        replace(bundle, name, content)
        there, here = core("bundle", path=str(bundle)), python(lambda: described(bundle))
        assert ("error" in there) == ("error" in here), (content, there, here)
        assert there.get("bundle_id") == here.get("bundle_id")
        assert str(bundle) in there.get("error", str(bundle)), (content, there, here)


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
    assert agree(core("manifest", content=text), python(lambda: written(text))), text


CACHE = {"steps": [0, 2], "rows": [[0.5, 1, -0.0, 1e6], [0.1, 0.2, 0.3, -1e6]]}


@pytest.mark.parametrize("options", [{}, {"cache": CACHE}], ids=("plain", "with a cache"))
def test_manifests_with_a_strange_value_somewhere(core: CoreProbe, options: dict[str, Any]) -> None:
    rng = random.Random(0)
    tree = MANIFEST.tree()
    tree["request"] |= options
    check_manifest(core, tree)
    for _ in range(300):
        check_manifest(core, altered(tree, rng))


WHOLE = (2**64, 2**64 - 1, 2**63, -1, -(2**70), 10**30, 1.5, None, [1], "x", 12, 0)
REAL = (-1, 0, -0.0, None, [], 2**63, 2**64 + 1, 1e16, 1e22, 5e-324, 0.1, "x")


def test_numbers_at_their_limits(core: CoreProbe) -> None:
    for field, values in {"seed": WHOLE, "guidance_scale": REAL, "eta": REAL}.items():
        for value in values:
            tree = MANIFEST.tree()
            tree["request"][field] = value
            check_manifest(core, tree)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": [1, 2]},
        {"steps": [0]},
        {"steps": []},
        {"steps": [0, 0, 2]},
        {"steps": [0, 2, 1]},
        {"steps": [0, -2]},
        {"rows": [[1, 0, 0], [1, 0, 0, 0]]},
        {"rows": [[1, 0, 0, 1e6 + 1]]},
        {"rows": [[1, 0, 0, None]]},
        {"rows": []},
        {"more": 1},
    ],
    ids=str,
)
def test_caches_of_a_manifest(core: CoreProbe, change: dict[str, Any]) -> None:
    tree = MANIFEST.tree()
    tree["request"]["cache"] = CACHE | change
    check_manifest(core, tree)


@pytest.mark.parametrize(
    "file", ["12345.png", "1234.png", "1" * 11 + ".png", "1" * 10 + ".png", "1234a.png", ".png", ""]
)
def test_names_of_images(core: CoreProbe, file: str) -> None:
    tree = MANIFEST.tree()
    for name in (file, file + "\n", "x" + file):
        tree["images"][0]["file"] = name
        check_manifest(core, tree)


LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner))


@settings(max_examples=100, deadline=None)
@given(st.lists(TREES, max_size=3))
def test_json_is_written_as_python_writes_it(core: CoreProbe, trees: list[Any]) -> None:
    texts = [text for text in map(json.dumps, trees) if "Infinity" not in text]
    assert core("json", texts=[text.encode().hex() for text in texts]) == texts


@pytest.mark.parametrize(
    "content",
    [
        "[" * 2**24,
        "[" + "{}," * 2**22,
        '{"name": "x", "schedule": {"alphas_cumprod": [' + "0.5," * 2**21 + "0.5]}}",
        '["' + '","' * 2**22 + '"]',
        '{"' + "a" * 2**24 + '": 1}',
        "[" + "1," * 2**23,
        '{"a":' * 2**21,
        "{" + ",".join(f'"{i:x}":1' for i in range(2**20)),
    ],
)
def test_a_large_malformed_file_takes_little_memory(built: Built, paper: Path, content: str) -> None:
    replace(paper, "runtime.json", content.encode())
    command = [built.tests / "ddm-core-probe"]
    question = json.dumps({"op": "bundle", "path": str(paper)})
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        print(question, file=process.stdin, flush=True)
        answer = json.loads(process.stdout.readline())
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        process.stdin.close()
    assert "runtime.json: " in answer["error"]
    assert peak is not None
    assert int(peak[1]) < 100 * 1024
