"""What a shard is on disk: a WebDataset tar, or a Parquet file whose images are those of the `datasets` library."""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, Any, Protocol

KEY_DIGITS = 9  # of a WebDataset key: shards in order are images in order, up to a thousand million


class ShardFormat(StrEnum):
    WEBDATASET = "webdataset"
    PARQUET = "parquet"

    @property
    def suffix(self) -> str:
        return {ShardFormat.WEBDATASET: ".tar", ShardFormat.PARQUET: ".parquet"}[self]


@dataclass(frozen=True)
class Record:
    """One image with what made it."""

    png: bytes
    index: int  # in the whole request
    seed: int  # the image's own
    code: int  # -1 is the null code
    top_code: int
    prompt: str | None  # None: a prompt-free bundle

    def fields(self) -> dict[str, Any]:
        """All but the image."""
        fields = {"index": self.index, "seed": self.seed, "code": self.code, "top_code": self.top_code}
        return fields if self.prompt is None else fields | {"prompt": self.prompt}


class ShardWriter(Protocol):
    """Equal records, added in equal groups, give equal bytes."""

    def add(self, records: Sequence[Record]) -> None: ...

    def close(self) -> None:
        """Write what ends the file, which stays open."""


def shard_writer(shard_format: ShardFormat, file: IO[bytes], with_prompts: bool) -> ShardWriter:
    """Writes into `file`, which is open, empty and binary."""
    if shard_format is ShardFormat.WEBDATASET:
        return _TarWriter(file)
    return _ParquetWriter(file, with_prompts)


class _TarWriter:
    """KEY.png and KEY.json of each image, next to each other, without times or owners."""

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - `close` does

    def add(self, records: Sequence[Record]) -> None:
        for record in records:
            key = f"{record.index:0{KEY_DIGITS}d}"
            # The seed as text: readers of JSON have no room for 64 bits without a sign, `datasets` among them.
            fields = record.fields() | {"seed": str(record.seed)}
            for extension, content in (("png", record.png), ("json", json.dumps(fields).encode())):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size, member.mode = len(content), 0o644
                self._tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        self._tar.close()


class _ParquetWriter:
    """Columns image {bytes, path}, index, seed, code, top_code and prompt; one row group for each `add`."""

    def __init__(self, file: IO[bytes], with_prompts: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"index": "int64", "seed": "uint64", "code": "int32", "top_code": "int32"}
        columns |= {"prompt": "string"} if with_prompts else {}
        # `datasets` reads its own names of types from here: without them the image would be a struct of bytes.
        features: dict[str, dict[str, str]] = {"image": {"_type": "Image"}}
        features |= {name: {"dtype": dtype, "_type": "Value"} for name, dtype in columns.items()}
        self._schema = pa.schema(
            [
                ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                *((name, pa.type_for_alias(dtype)) for name, dtype in columns.items()),
            ],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )
        self._table = pa.Table
        self._writer = pq.ParquetWriter(file, self._schema)

    def add(self, records: Sequence[Record]) -> None:
        rows = [
            {"image": {"bytes": record.png, "path": f"{record.index:0{KEY_DIGITS}d}.png"}} | record.fields()
            for record in records
        ]
        self._writer.write_table(self._table.from_pylist(rows, schema=self._schema))

    def close(self) -> None:
        self._writer.close()
