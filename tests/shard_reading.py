"""Shards as their users read them: as webdataset does, and with pyarrow by the features that `datasets` looks for."""

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from ddm_rt.sample.generation import Generation, encoded

Row = tuple[bytes, dict[str, Any]]  # the PNG, and the rest


def read_tars(paths: list[Path]) -> Iterator[Row]:
    """As `read_webdataset`, without it: files that follow each other and differ in their ends alone are one sample."""
    for path in paths:
        with tarfile.open(path) as archive:
            files = [(*member.name.split(".", 1), content(archive, member)) for member in archive]
        for key, group in itertools.groupby(files, lambda file: file[0]):
            sample = {end: content for _, end, content in group}
            fields = json.loads(sample["json"])
            assert key == f"{fields['index']:09d}"
            yield sample["png"], fields | {"seed": int(fields["seed"])}


def content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def read_webdataset(paths: list[Path]) -> Iterator[Row]:
    import webdataset

    for sample in webdataset.WebDataset([str(path) for path in paths], shardshuffle=False):
        fields = json.loads(sample["json"])
        assert sample["__key__"] == f"{fields['index']:09d}"
        yield sample["png"], fields | {"seed": int(fields["seed"])}


def read_parquet(paths: list[Path]) -> Iterator[Row]:
    for path in paths:
        table = pq.read_table(path)
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        assert list(features) == table.column_names
        assert features["image"] == {"_type": "Image"}
        for row in table.to_pylist():
            image = row.pop("image")
            assert image["path"] == f"{row['index']:09d}.png"
            yield image["bytes"], row


def read_shards(directory: Path) -> list[Row]:
    """Every image, in the order of the shards' names; there may be nothing else in the directory."""
    tars, tables = sorted(directory.glob("shard-*.tar")), sorted(directory.glob("shard-*.parquet"))
    assert {path.name for path in directory.iterdir()} == {path.name for path in (*tars, *tables)} | {"manifest.json"}
    return [*read_tars(tars)] if tars else [*read_parquet(tables)]


def check_same(rows: list[Row], generation: Generation) -> None:
    """Every image of the request once, in order, with its own bytes, seed, codes and prompt."""
    images = generation.manifest["images"]
    assert [fields["index"] for _, fields in rows] == list(range(len(images)))
    for (png, fields), image, pixels in zip(rows, images, generation.images, strict=True):
        assert {name: fields[name] for name in ("seed", "code", "top_code")} == {
            name: image[name] for name in ("seed", "code", "top_code")
        }
        assert fields.get("prompt") == image.get("prompt", generation.manifest["request"]["prompt"])
        assert png == encoded(pixels, xmp=generation.xmp(image))
        assert (decoded(png) == pixels).all()


def decoded(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)
