"""What image files say of themselves: IPTC's source type, bundle and seed; and that pixels don't depend on it."""

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_engine import FakeEngine, fake_bundle
from PIL import Image
from toolchain import needs

from ddm_rt.errors import DdmError
from ddm_rt.sample.generation import Generation, encoded
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.provenance import xmp
from ddm_rt.sample.request import Request
from ddm_rt.sample.shard_formats import ShardFormat
from ddm_rt.sample.shards import plan_shards, write_shard

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def generate(**request: Any) -> Generation:
    return Pipeline(fake_bundle(), FakeEngine()).generate(n=2, num_steps=2, seed=7, **request)


def told(file: bytes | Path) -> dict[str, str] | None:
    """The packet's properties by their names without a prefix; None where there is no packet."""
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        packet = image.info.get("xmp")
    if packet is None:
        return None
    (described,) = ElementTree.fromstring(packet).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    return {name.partition("}")[2]: value for name, value in described.items() if not name.endswith("}about")}


@pytest.mark.parametrize("file_format", ["png", "webp", "jpeg"])
def test_each_format_carries_it(file_format: str) -> None:
    options = {} if file_format == "png" else {"quality": 100}
    file = encoded(PIXELS, file_format, xmp("ab" * 32, 2**64 - 1, 3), **options)
    assert told(file) == {
        "DigitalSourceType": SOURCE,
        "AISystemUsed": "ddm-rt",
        "bundle": "ab" * 32,
        "seed": str(2**64 - 1),
        "code": "3",
    }
    bare = encoded(PIXELS, file_format, **options)
    assert told(bare) is None
    with Image.open(io.BytesIO(file)) as one, Image.open(io.BytesIO(bare)) as other:
        assert (np.asarray(one) == np.asarray(other)).all()


def test_files_say_bundle_and_seed_unless_it_is_unwanted_and_the_code_only_on_request(tmp_path: Path) -> None:
    said, unsaid, code = generate(), generate(provenance=False), generate(provenance_code=True)
    for name, generation in {"said": said, "unsaid": unsaid, "code": code}.items():
        assert (generation.images == said.images).all()
        generation.save(tmp_path / name)
    fixed = {"DigitalSourceType": SOURCE, "AISystemUsed": "ddm-rt", "bundle": said.manifest["bundle_id"]}
    for record in said.manifest["images"]:
        seed = fixed | {"seed": str(record["seed"])}
        assert told(tmp_path / "said" / record["file"]) == seed
        assert told(tmp_path / "code" / record["file"]) == seed | {"code": str(record["code"])}
        assert told(tmp_path / "unsaid" / record["file"]) is None
    assert told(tmp_path / "said" / "contact_sheet.png") == fixed
    assert told(tmp_path / "unsaid" / "contact_sheet.png") is None


def test_a_manifest_says_whether_files_do_and_replays_give_the_same_files(tmp_path: Path) -> None:
    pipeline = Pipeline(fake_bundle(), FakeEngine())
    for given in ({}, {"provenance": False}, {"provenance_code": True}):
        made = pipeline.generate(n=2, num_steps=2, **given)
        wanted = {"provenance": True} | given
        recorded = {name: made.manifest["request"].get(name) for name in ("provenance", "provenance_code")}
        assert recorded == {name: wanted.get(name) or None for name in recorded}
        out = tmp_path / "".join(given)
        again = pipeline.replay(made.save(out) / "manifest.json").save(out.with_suffix(".again"))
        for path in out.iterdir():
            assert (again / path.name).read_bytes() == path.read_bytes()


def test_a_manifest_without_the_field_replays_to_files_that_say_nothing(tmp_path: Path) -> None:
    pipeline = Pipeline(fake_bundle(), FakeEngine())
    made = pipeline.generate(n=1, num_steps=2)
    del made.manifest["request"]["provenance"]
    out = pipeline.replay(made.manifest).save(tmp_path / "old")
    assert (out / "00000.png").read_bytes() == encoded(made.images[0])


def test_the_code_alone_is_refused() -> None:
    with pytest.raises(DdmError, match="provenance_code is given, but provenance is off"):
        generate(provenance=False, provenance_code=True)


@pytest.mark.parametrize("wanted", [True, False])
def test_shards_have_the_files_of_a_request(wanted: bool, tmp_path: Path) -> None:
    pipeline = Pipeline(fake_bundle(), FakeEngine())
    made = pipeline.generate(n=3, num_steps=2, provenance=wanted).save(tmp_path / "out")
    plan = plan_shards(pipeline, 3, ShardFormat.WEBDATASET, Request(n=3, num_steps=2, provenance=wanted))
    *_, shard = write_shard(pipeline, tmp_path, plan.manifest, 0, plan.codes_of(0))
    shutil.unpack_archive(tmp_path / shard.file, tmp_path / "shard", "tar")
    for i in range(3):
        assert (tmp_path / "shard" / f"{i:09d}.png").read_bytes() == (made / f"{i:05d}.png").read_bytes()


@needs("libimage-exiftool-perl")
@pytest.mark.parametrize("file_format", ["png", "webp", "jpeg"])
def test_exiftool_reads_it(file_format: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{file_format}"
    path.write_bytes(encoded(PIXELS, file_format, xmp("ab" * 32, 5)))
    names = ["-XMP-iptcExt:DigitalSourceType", "-XMP-ddm_rt:Seed", "-XMP-ddm_rt:Bundle"]
    line = ["exiftool", "-s3", *names, path]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == sorted([SOURCE, "5", "ab" * 32])
