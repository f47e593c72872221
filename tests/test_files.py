"""Files and directories that appear whole, that others can read, and that one process at a time changes."""

import fcntl
import os
from pathlib import Path

import pytest
from paper_bundle import fill

from ddm_rt.bundle import add_directory, write_bundle
from ddm_rt.files import atomic_directory, lock, write_atomic


def test_a_directory_that_appears_can_be_read_by_others(tmp_path: Path) -> None:
    """What root has exported is read by the user that serves it."""
    with atomic_directory(tmp_path / "made") as temporary:
        write_atomic(temporary / "file", "x")
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o755


def test_one_lock_at_a_time(tmp_path: Path) -> None:
    held, other = lock(tmp_path), os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            lock(tmp_path, wait=False)
    finally:
        os.close(held)
        os.close(other)
    os.close(lock(tmp_path, wait=False))


def test_a_directory_that_is_replaced_leaves_its_namesakes_in_the_index(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", fill, {})
    for name in ("reports/x2", "reports/x", "reports/x"):
        bundle = add_directory(bundle, name, lambda directory: write_atomic(directory / "a.txt", "a"))
    assert {"reports/x/a.txt", "reports/x2/a.txt"} <= set(bundle.index.files)
    bundle.check_directory("reports/x2")
