"""The bundle directory: what is missing, truncated, altered or foreign is named, and writing is all or nothing."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paper_bundle import fill

from ddm_rt.bundle import GRAPHS, INDEX, Bundle, FileEntry, add_directory, bundle_id, copy_bundle, write_bundle
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.files import atomic_directory, sha256, write_atomic, write_json

FILES = ("runtime.json", "training.json", *GRAPHS)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", fill, {"preset": "test"})


def reindex(path: Path, change: Callable[[dict], None]) -> None:
    index = json.loads((path / INDEX).read_text())
    change(index)
    (path / INDEX).write_text(json.dumps(index))


def test_round_trip(bundle: Bundle) -> None:
    loaded = Bundle.load(bundle.path)
    assert (loaded.path, loaded.index, loaded.config) == (bundle.path, bundle.index, bundle.config)
    assert loaded.schedule.config == bundle.schedule.config
    np.testing.assert_array_equal(loaded.schedule.alphas_cumprod, bundle.schedule.alphas_cumprod)
    assert loaded.bundle_id == loaded.index.bundle_id
    assert loaded.index.provenance == {"preset": "test"}
    assert set(loaded.index.files) == set(FILES)
    assert loaded.codes.top_of == (0,)
    assert (loaded.codes.num_codes, loaded.codes.num_top_codes) == (1, 1)
    assert loaded.graphs == {name.removesuffix(".onnx"): bundle.path / name for name in GRAPHS}


def test_the_directory_can_move(bundle: Bundle, tmp_path: Path) -> None:
    moved = bundle.path.rename(tmp_path / "elsewhere")
    assert Bundle.load(str(moved)).bundle_id == bundle.bundle_id


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(bundle: Bundle, name: str) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}: missing; {INDEX} lists it with \d+ bytes"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_named(bundle: Bundle, name: str) -> None:
    content = (bundle.path / name).read_bytes()
    (bundle.path / name).write_bytes(content[:-1])
    with pytest.raises(BundleError, match=rf"{name}: truncated or extended: {len(content) - 1} bytes"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize("name", FILES)
def test_altered_file_is_named(bundle: Bundle, name: str) -> None:
    content = bytearray((bundle.path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle.path / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name}: altered"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize("name", [name for name in FILES if name != "training.json"])
def test_unlisted_file_is_named(bundle: Bundle, name: str) -> None:
    reindex(bundle.path, lambda index: index["files"].pop(name))
    with pytest.raises(BundleError, match=rf"{INDEX}: field files: {name} is not listed"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version": 1}'])
def test_index_that_is_none_is_named(bundle: Bundle, content: bytes) -> None:
    (bundle.path / INDEX).write_bytes(content)
    with pytest.raises(DdmError, match=INDEX):
        Bundle.load(bundle.path)


def test_truncated_index_is_named(bundle: Bundle) -> None:
    content = (bundle.path / INDEX).read_bytes()
    (bundle.path / INDEX).write_bytes(content[:-10])
    with pytest.raises(DdmError, match=INDEX):
        Bundle.load(bundle.path)


def test_other_schema_version_is_refused(bundle: Bundle) -> None:
    reindex(bundle.path, lambda index: index.update(schema_version=3))
    with pytest.raises(BundleError, match="schema_version is 3; this version reads 1 and 2"):
        Bundle.load(bundle.path)


def test_bundle_id_must_match_its_files(bundle: Bundle) -> None:
    reindex(bundle.path, lambda index: index.update(bundle_id="0" * 64))
    with pytest.raises(BundleError, match="field bundle_id does not match"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "", "..\\b"])
def test_paths_out_of_the_bundle_are_refused(bundle: Bundle, name: str) -> None:
    reindex(bundle.path, lambda index: index["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    with pytest.raises(BundleError, match="is not a path inside the bundle"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize("content", [b"{}", b"not json", b'{"unknown": NaN}'])
def test_malformed_but_correctly_hashed_file_is_named(tmp_path: Path, content: bytes) -> None:
    def bad(directory: Path) -> None:
        fill(directory)
        (directory / "runtime.json").write_bytes(content)

    with pytest.raises(DdmError, match=r"runtime\.json"):
        write_bundle(tmp_path / "bundle", bad, {})
    assert list(tmp_path.iterdir()) == []


def test_unknown_name_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"'nothing': no such directory; shipped bundles: digits"):
        Bundle.load("nothing")
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.load(tmp_path)


def test_id_covers_content_alone() -> None:
    base = {name: FileEntry(sha256="0" * 64, bytes=1) for name in FILES}
    plan = FileEntry(sha256="1" * 64, bytes=1)
    others = ("plans/a.engine", "reports/index.html", "calibrations/x.json", "weights.safetensors", "training.json")
    for name in others:
        assert bundle_id(base | {name: plan}) == bundle_id(base)
    for name in ("runtime.json", *GRAPHS, "tokenizer/vocab.json", "denoiser.onnx.data"):
        assert bundle_id(base | {name: plan}) != bundle_id(base)


@given(st.permutations(FILES))
def test_id_does_not_depend_on_the_order_of_files(names: list[str]) -> None:
    entries = {name: FileEntry(sha256=f"{i:064x}", bytes=i) for i, name in enumerate(FILES)}
    assert bundle_id({name: entries[name] for name in names}) == bundle_id(entries)


def test_an_error_while_filling_leaves_nothing(tmp_path: Path) -> None:
    def fails(directory: Path) -> None:
        fill(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "bundle", fails, {})
    assert list(tmp_path.iterdir()) == []


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DdmError, match=r"file is a file; expected a directory"):
        write_bundle(tmp_path / "file" / "a" / "b", fill, {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_occupied_directory_is_refused_and_kept(bundle: Bundle) -> None:
    before = sorted(bundle.path.iterdir())
    with pytest.raises(DdmError, match="exists and is not an empty directory"):
        write_bundle(bundle.path, fill, {})
    assert sorted(bundle.path.iterdir()) == before


def test_file_in_the_way_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("mine")
    with pytest.raises(DdmError, match="exists and is not an empty directory"):
        write_bundle(tmp_path / "bundle", fill, {})
    assert (tmp_path / "bundle").read_text() == "mine"


def test_empty_directory_is_filled_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert write_bundle(tmp_path / "empty", fill, {}).path == tmp_path / "empty"
    assert write_bundle(tmp_path / "a" / "b", fill, {}).path == tmp_path / "a" / "b"


def test_atomic_directory_is_invisible_until_done(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "out") as temporary:
        (temporary / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "file").read_text() == "x"


def test_write_atomic_keeps_the_old_file_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_may_be_read_by_everyone(tmp_path: Path) -> None:
    """A temporary file is its owner's alone; a bundle may be made by one user and served by another."""
    write_atomic(tmp_path / "file", "text")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@given(st.binary(max_size=200))
def test_write_atomic_round_trip(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip"
    write_atomic(path, content)
    assert path.read_bytes() == content
    assert len(sha256(path)) == 64


def test_write_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", {"x": float("nan")})
    assert not (tmp_path / "file").exists()


def test_copy_of_a_bundle_is_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    assert Bundle.load(shutil.copytree(bundle.path, tmp_path / "copy")).bundle_id == bundle.bundle_id


def plan(directory: Path) -> None:
    (directory / "kernels").mkdir()
    (directory / "denoiser.plan").write_bytes(b"plan")
    (directory / "kernels" / "manifest.json").write_text("{}")


def listed(bundle: Bundle) -> list[str]:
    return [name for name in bundle.index.files if name.startswith("plans/")]


def test_an_added_directory_is_indexed_and_keeps_the_id(bundle: Bundle) -> None:
    added = add_directory(bundle, "plans/one", plan)
    assert listed(added) == ["plans/one/denoiser.plan", "plans/one/kernels/manifest.json"]
    assert added.bundle_id == bundle.bundle_id
    assert added.index.provenance == bundle.index.provenance
    added.check_directory("plans/one")
    both = add_directory(bundle, "plans/two", plan)  # from the bundle as it was opened: what came since stays
    assert len(listed(both)) == 4
    both.check_directory("plans/one")
    with pytest.raises(BundleError, match="nothing below plans/three is listed"):
        both.check_directory("plans/three")


def test_an_added_directory_replaces_the_one_of_its_name(bundle: Bundle) -> None:
    first = add_directory(bundle, "plans/one", plan)
    second = add_directory(first, "plans/one", lambda directory: (directory / "new").write_text("new") and None)
    assert listed(second) == ["plans/one/new"]
    assert [path.name for path in (bundle.path / "plans").rglob("*")] == ["one", "new"]


def test_what_lies_elsewhere_is_not_added(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match=r"'denoiser\.onnx' is not below any of plans/"):
        add_directory(bundle, "denoiser.onnx", plan)
    with pytest.raises(BundleError, match="is not a path inside the bundle"):
        add_directory(bundle, "plans/../../x", plan)


@pytest.mark.parametrize("broken", ["fill", "write_atomic"])
def test_an_addition_that_fails_changes_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    before = add_directory(bundle, "plans/one", plan)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if broken == "write_atomic":
        monkeypatch.setattr("ddm_rt.bundle.write_atomic", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        add_directory(before, "plans/one", fail if broken == "fill" else lambda directory: None)
    assert caught.value.filename == str(bundle.path / "plans" / "one")
    after = Bundle.load(bundle.path)
    assert after.index == before.index
    after.check_directory("plans/one")
    assert [path.name for path in (bundle.path / "plans").iterdir()] == ["one"]


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_a_machine_that_stops_halfway_leaves_a_bundle_that_opens(bundle: Bundle, rename: int) -> None:
    add_directory(bundle, "plans/one", plan)
    script = (
        "import os, sys, pathlib; from ddm_rt.bundle import *\n"
        "count = 0\n"
        "def counted(real):\n"
        "    def call(*arguments):\n"
        "        global count; count += 1\n"
        "        if count == int(sys.argv[2]): os._exit(9)\n"
        "        return real(*arguments)\n"
        "    return call\n"
        "pathlib.Path.rename, pathlib.Path.replace = map(counted, (pathlib.Path.rename, pathlib.Path.replace))\n"
        "add_directory(Bundle.load(sys.argv[1]), 'plans/one', lambda folder: (folder / 'new').write_text('x'))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script, str(bundle.path), str(rename)], check=False)
    assert done.returncode == 9
    after = Bundle.load(bundle.path)
    assert after.bundle_id == bundle.bundle_id
    if rename == 1:  # the old one hasn't been moved yet
        after.check_directory("plans/one")
    else:
        with pytest.raises(BundleError, match=r"denoiser\.plan: missing"):
            after.check_directory("plans/one")
    assert listed(add_directory(after, "plans/one", plan))[0] == "plans/one/denoiser.plan"
    assert [path.name for path in (bundle.path / "plans").iterdir()] == ["one"]  # and what was left is swept away


def test_two_that_add_at_once_keep_out_of_each_others_way(bundle: Bundle) -> None:
    def outer(directory: Path) -> None:
        add_directory(bundle, "plans/one", plan)
        plan(directory)
        (directory / "last").write_text("x")

    assert "plans/one/last" in listed(add_directory(bundle, "plans/one", outer))


def test_a_bundle_that_became_another_meanwhile_is_refused(bundle: Bundle) -> None:
    def rewrite(directory: Path) -> None:
        plan(directory)
        tree = json.loads((bundle.path / INDEX).read_text()) | {"bundle_id": "0" * 64}
        (bundle.path / INDEX).write_text(json.dumps(tree))

    with pytest.raises(BundleError, match="its own files were changed while plans/one was made"):
        add_directory(bundle, "plans/one", rewrite)
    assert list((bundle.path / "plans").iterdir()) == []


def test_an_altered_plan_is_found_when_it_is_used_and_not_before(bundle: Bundle) -> None:
    add_directory(bundle, "plans/one", plan)
    (bundle.path / "plans/one/denoiser.plan").write_bytes(b"PLAN")
    with pytest.raises(BundleError, match=r"denoiser\.plan: altered"):
        Bundle.load(bundle.path).check_directory("plans/one")


def test_a_copy_holds_what_the_index_lists(bundle: Bundle, tmp_path: Path) -> None:
    added = add_directory(bundle, "plans/one", plan)
    (bundle.path / "stray").write_text("x")
    copy = copy_bundle(added, tmp_path / "copy")
    assert copy.index == added.index
    copy.check_directory("plans/one")
    assert not (tmp_path / "copy" / "stray").exists()
    with pytest.raises(DdmError, match="choose another --out"):
        copy_bundle(added, tmp_path / "copy")
