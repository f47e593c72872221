"""What can happen to a ledger's file, and a word of what is said then."""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path


def change(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def overwrite(path: Path, start: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "another kind of file": (lambda path: path.write_bytes(b"years of work " * 99), "damaged, or no ledger"),
    "cut in the middle": (lambda path: os.truncate(path, path.stat().st_size // 2), "damaged"),
    "cut in the header": (lambda path: os.truncate(path, 50), "no ledger"),
    "overwritten header": (lambda path: overwrite(path, 0, b"\xff" * 100), "no ledger"),
    "overwritten pages": (lambda path: overwrite(path, 1024, b"\xa5" * (path.stat().st_size - 1024)), "damaged"),
    "another SQLite file": (lambda path: change(path, "PRAGMA application_id = 7"), "no ledger"),
    "another version": (lambda path: change(path, "PRAGMA user_version = 2"), "version 2; this program reads 1"),
    "missing table": (lambda path: change(path, "DROP TABLE draws"), "no such table"),
    "impossible counts": (lambda path: change(path, "UPDATE streams SET counts = replace(counts, '1', '7')"), "counts"),
    "unreadable counts": (lambda path: change(path, "UPDATE streams SET counts = '[1'"), "unreadable"),
    "counts of other codes": (lambda path: change(path, """UPDATE streams SET counts = '{"9": 1}'"""), "counts"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "cannot be"),
    "below a file": (lambda path: (path.parent.rename(f"{path.parent}.moved"), path.parent.touch()), "cannot be"),
}  # fmt: skip
