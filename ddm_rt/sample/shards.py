"""One request as shards: files of a fixed number of images each, which can be made in any order, apart and again.

Codes are drawn over all images of the request before any is made, so the shards are balanced together as one request
is. A shard made again has the same bytes, so a directory needs no more than the list of those that are whole.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from ddm_rt.config import Frozen, Positive, Sha256, parse_json
from ddm_rt.errors import DdmError
from ddm_rt.sample.generation import encoded
from ddm_rt.sample.manifest import Manifest, Recipe, image_records
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.provenance import told
from ddm_rt.sample.request import FILES, Request
from ddm_rt.sample.shard_formats import Record, ShardFormat, shard_writer
from ddm_rt.sample.shard_places import MANIFEST, Place, Where, place_of

# Images that are made, encoded and written at a time: bounds the memory, and is a row group of a Parquet file.
_PART = 64


class Shard(Frozen):
    """A shard that is whole."""

    file: str = Field(pattern=r"^shard-\d{6,}\.(tar|parquet)$")
    first: int = Field(ge=0)  # number of its first image in the request
    count: Positive
    bytes: Positive
    sha256: Sha256


class ShardManifest(Recipe):
    """manifest.json of a directory of shards. The run is done when `shards` hold all of `request.n` images."""

    shard_format: ShardFormat
    shard_size: Positive
    shards: tuple[Shard, ...] = ()  # those that are whole, in order

    @property
    def num_shards(self) -> int:
        return -(-self.request.n // self.shard_size)

    def file(self, number: int) -> str:
        return f"shard-{number:06d}{self.shard_format.suffix}"

    def images(self, number: int) -> range:
        """Numbers of the images of a shard."""
        first = number * self.shard_size
        return range(first, min(first + self.shard_size, self.request.n))


@dataclass(frozen=True)
class ShardPlan:
    """What is to be made: `manifest` without any shard, and a code for each image of the request."""

    manifest: ShardManifest
    codes: tuple[int, ...]

    def codes_of(self, number: int) -> tuple[int, ...]:
        images = self.manifest.images(number)
        return self.codes[images.start : images.stop]


def plan_shards(
    pipeline: Pipeline, size: int, shard_format: ShardFormat, request: Request, begun: ShardManifest | None = None
) -> ShardPlan:
    """Raises DdmError for a request that doesn't fit, and for a scope.

    A directory that was `begun` before the bundle was upgraded goes on under the bundle's former id.
    """
    if size < 1:
        raise DdmError(f"shard size is {size}; expected at least 1")
    if request.scope is not None:
        # Its counts would go on for each run of the command, also for those that are killed.
        raise DdmError("scope: shards are balanced as one request and can't go on with a scope; leave it out")
    with pipeline.prepare(request) as prepared:
        made = prepared.manifest
    recipe = _recipe(made)
    if begun is not None and pipeline.bundle.is_of(begun.bundle_id):
        recipe["bundle_id"] = begun.bundle_id
    manifest = ShardManifest(**recipe, shard_format=shard_format, shard_size=size)
    return ShardPlan(manifest, tuple(image.code for image in made.images))


def write_shard(
    pipeline: Pipeline, where: Where, manifest: ShardManifest, number: int, codes: Sequence[int]
) -> Iterator[int | Shard]:
    """Make shard `number` of `manifest`, whose images have these codes: all of it under its name, or nothing.

    Gives the number of images made so far, again and again, and at last the shard. Raises DdmError where the pipeline
    isn't what the manifest says that its images were made on.
    """
    for name, here in pipeline.made_by.items():
        if getattr(manifest, name) != here:
            raise DdmError(f"{name} is {here} in the process that makes a shard; expected {getattr(manifest, name)}")
    images = manifest.images(number)
    name = manifest.file(number)
    with place_of(where).file(name) as file:
        writer = shard_writer(manifest.shard_format, file, with_prompts=manifest.request.prompt is not None)
        for start in range(0, len(images), _PART):
            part = codes[start : start + _PART]
            writer.add(_records(pipeline, manifest, images.start + start, part))
            yield start + len(part)
        writer.close()
        size = file.tell()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    yield Shard(file=name, first=images.start, count=len(images), bytes=size, sha256=digest)


def _recipe(manifest: Recipe) -> dict[str, Any]:
    """Without what else a manifest holds. Not by `model_dump`: that would turn every image into a dict first."""
    return {name: getattr(manifest, name) for name in Recipe.model_fields if name != "schema_version"}


def _records(pipeline: Pipeline, manifest: ShardManifest, first: int, codes: Sequence[int]) -> list[Record]:
    """The images from number `first` of the request on, made with these codes."""
    images = image_records(manifest.request, pipeline.bundle.codes.top_of, codes, first)
    made = pipeline.replay(Manifest(**_recipe(manifest), images=images).tree())
    prompt, plain = manifest.request.prompt, {**made.manifest, "bundle_id": manifest.bundle_id}
    return [
        Record(
            png=encoded(image, xmp=told(plain, record)),
            index=first + i,
            seed=record["seed"],
            code=record["code"],
            top_code=record["top_code"],
            prompt=record["prompt"] if isinstance(prompt, tuple) else prompt,
        )
        for i, (image, record) in enumerate(zip(made.images, made.manifest["images"], strict=True))
    ]


@dataclass
class ShardDirectory:
    """The directory, or the prefix of a bucket, that a plan's shards go into. One process at a time has it open."""

    place: Place
    manifest: ShardManifest  # lists the shards that are whole; `open` finds them

    @classmethod
    @contextmanager
    def open(cls, where: Where, planned: ShardManifest) -> Iterator["ShardDirectory"]:
        """Make or resume `where`: its shards are checked against their sha256, and what a killed run left is removed.

        Raises DdmError naming the field in which the plan differs from that of the shards that are there, where
        something else is in `where`, and where another process has it open.
        """
        place = place_of(where)
        recorded_manifest(place)  # raises before anything is made
        with place.held():
            here = recorded_manifest(place)
            if here is not None:
                _check_same(f"{place}/{MANIFEST}", here, planned)
            found = () if here is None else here.shards
            whole = tuple(shard for shard in found if place.holds(shard.file, shard.bytes, shard.sha256))
            directory = cls(place, planned.model_copy(update={"shards": whole}))
            if here is None or whole != found:
                directory._write()
            yield directory

    @property
    def images_done(self) -> int:
        return sum(shard.count for shard in self.manifest.shards)

    def missing(self) -> list[int]:
        """Numbers of the shards to make."""
        there = {shard.file for shard in self.manifest.shards}
        return [number for number in range(self.manifest.num_shards) if self.manifest.file(number) not in there]

    def add(self, shard: Shard) -> None:
        """Record a shard as whole."""
        shards = sorted((*self.manifest.shards, shard), key=lambda each: each.first)
        self.manifest = self.manifest.model_copy(update={"shards": tuple(shards)})
        self._write()

    def _write(self) -> None:
        self.place.write(MANIFEST, self.manifest.tree())


def recorded_manifest(where: Where) -> ShardManifest | None:
    """The manifest of a directory of shards, or of a prefix of a bucket; None where there is none yet.

    Raises DdmError naming the file that is no such manifest, or a directory that holds something else.
    """
    place = place_of(where)
    file = f"{place}/{MANIFEST}"
    if (content := place.read(MANIFEST)) is not None:
        manifest = parse_json(ShardManifest, content, file)
        for i, shard in enumerate(manifest.shards):
            number = shard.first // manifest.shard_size
            images = manifest.images(number)
            if (shard.file, shard.first, shard.count) != (manifest.file(number), images.start, len(images)):
                raise DdmError(
                    f"{file}: field shards.{i}: {shard.file} with {shard.count} images from {shard.first} is no shard "
                    f"of {manifest.shard_size} of {manifest.request.n} images"
                )
        return manifest
    if place.occupied():
        raise DdmError(f"{place} isn't empty and has no {MANIFEST} of shards; choose another directory")
    return None


def _check_same(file: str, here: ShardManifest, planned: ShardManifest) -> None:
    recorded, wanted = (_flat(manifest.model_copy(update={"shards": ()}).tree()) for manifest in (here, planned))
    for field in dict.fromkeys((*recorded, *wanted)):
        if recorded.get(field) != wanted.get(field):
            # Shards of earlier versions have none of these fields.
            how = " with --no-provenance" if field.partition(".")[2] in FILES and recorded.get(field) is None else ""
            raise DdmError(
                f"{file}: field {field} is {recorded.get(field)!r}, and {wanted.get(field)!r} in this run; shards of "
                f"one directory have one setting: repeat it{how}, or choose another directory"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their fields' whole names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
