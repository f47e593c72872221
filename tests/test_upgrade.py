"""Bundles of format 1 become format 2: where they are or beside, with what was added to them, killed at any moment."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from format1 import write_format_1
from paper_bundle import fill

from ddm_rt.bundle import INDEX, Bundle, add_directory, write_bundle
from ddm_rt.config import RunConfig
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.files import write_atomic
from ddm_rt.workflows.upgrade import upgrade_bundle as upgrade

FORMAT_1 = ("config.json", "schedule.json", "codes.json")


@pytest.fixture
def exported(tmp_path: Path) -> Bundle:
    """As an exporter writes it today."""
    return write_bundle(tmp_path / "exported", lambda directory: fill(directory, (0.25, 0.75)), {"preset": "test"})


@pytest.fixture
def old(exported: Bundle, tmp_path: Path) -> Bundle:
    """The same in format 1, with a report."""
    bundle = write_format_1(exported, tmp_path / "old", run=RunConfig().model_dump(mode="json"))
    return add_directory(bundle, "reports/mine", lambda directory: write_atomic(directory / "a.txt", "kept"))


def listing(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("beside", [True, False])
def test_it_says_the_same_under_a_new_id(old: Bundle, exported: Bundle, beside: bool, tmp_path: Path) -> None:
    before, training = listing(old.path), old.training
    new = upgrade(old, tmp_path / "new" if beside else None)
    assert new.bundle_id == exported.bundle_id  # what an export of the same run has
    assert new.index.former_ids == (old.bundle_id,)
    [former] = new.index.former
    assert former.files == {name: old.index.files[name].sha256 for name in FORMAT_1}
    assert (new.config, new.index.provenance) == (old.config, old.index.provenance)
    assert new.training == training
    assert new.is_of(old.bundle_id)
    assert new.is_of(new.bundle_id)
    assert not new.is_of("0" * 64)
    assert not old.is_of(new.bundle_id)
    new.check_directory("reports/mine")
    assert set(listing(new.path)) == set(new.index.files) | {INDEX}
    assert not set(FORMAT_1) & set(new.index.files)
    if beside:
        assert listing(old.path) == before


def test_a_bundle_of_the_present_format_stays_as_it_is(exported: Bundle) -> None:
    before = listing(exported.path)
    assert upgrade(exported).index == exported.index
    assert listing(exported.path) == before


def test_a_former_id_is_held_to_the_graphs(old: Bundle) -> None:
    """Nobody can say that a bundle was made from another one with other graphs."""
    path = upgrade(old).path
    index = json.loads((path / INDEX).read_bytes())
    write_atomic(path / INDEX, json.dumps(index | {"former": [{**index["former"][0], "bundle_id": "0" * 64}]}))
    with pytest.raises(BundleError, match=r"field former\.0\.bundle_id does not match the files it lists"):
        Bundle.load(path)


def test_a_copy_of_a_bundle_of_the_present_format_keeps_its_ids(old: Bundle, tmp_path: Path) -> None:
    new = upgrade(old)
    copy = upgrade(new, tmp_path / "copy")
    assert copy.index == new.index


def test_files_that_are_not_its_own_stay(old: Bundle) -> None:
    """Repositories of models keep a config.json of their own beside."""
    new = upgrade(old)
    write_atomic(new.path / "config.json", "{}")
    assert upgrade(new).index == new.index
    assert (new.path / "config.json").read_text() == "{}"


def test_what_others_do_meanwhile_goes_on(old: Bundle) -> None:
    """Another process that has the bundle open can add to it, and still knows what was trained."""

    def fill_slowly(directory: Path) -> None:
        upgrade(Bundle.load(old.path))
        write_atomic(directory / "a.txt", "made for hours")

    added = add_directory(old, "calibrations/x", fill_slowly)
    assert added.index.schema_version == 2
    added.check_directory("calibrations/x")
    assert old.training == added.training


def test_it_can_be_done_twice(old: Bundle) -> None:
    first = upgrade(old)
    before = listing(old.path)
    assert upgrade(old).index == first.index  # `old` was opened before
    assert upgrade(Bundle.load(old.path)).index == first.index
    assert listing(old.path) == before


def test_fields_of_newer_versions_in_the_index_and_in_training_stay(exported: Bundle, tmp_path: Path) -> None:
    run = RunConfig().model_dump(mode="json")
    run["train"]["invented"] = 3
    path = write_format_1(exported, tmp_path / "old", run=run).path
    index = json.loads((path / INDEX).read_bytes())
    write_atomic(path / INDEX, json.dumps(index | {"signature": "newer"}))
    upgrade(Bundle.load(path))
    assert json.loads((path / INDEX).read_bytes())["signature"] == "newer"
    assert json.loads((path / "training.json").read_bytes())["run"] == run


def test_a_place_that_is_taken_is_refused(old: Bundle, exported: Bundle) -> None:
    before = listing(exported.path)
    with pytest.raises(DdmError, match="exists and is not an empty directory"):
        upgrade(old, exported.path)
    assert listing(exported.path) == before


# Runs in a process of its own, which kills itself at the moment before it would change the file system the STEPth time.
_KILLED = """
import os, pathlib, signal, sys
import ddm_rt.files, ddm_rt.workflows.upgrade
from ddm_rt.bundle import Bundle

bundle, step = Bundle.load(sys.argv[1]), int(sys.argv[2])
out = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else None
done = 0

def counted(function):
    def call(*args, **kwargs):
        global done
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return function(*args, **kwargs)
    return call

for place, name in ((pathlib.Path, "replace"), (pathlib.Path, "rename"), (pathlib.Path, "unlink"), (os, "fsync")):
    setattr(place, name, counted(getattr(place, name)))
ddm_rt.workflows.upgrade.upgrade_bundle(bundle, out)
"""


def killed_at(step: int, *arguments: Path) -> bool:
    """Whether the process got that far."""
    line = [sys.executable, "-c", _KILLED, str(arguments[0]), str(step), *map(str, arguments[1:])]
    code = subprocess.run(line, check=False, env=os.environ).returncode
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_killed_at_any_moment_in_place(old: Bundle, exported: Bundle, tmp_path: Path) -> None:
    """The bundle opens, as the old one or as the new one, and doing it again leaves nothing over."""
    seen, step = set(), 0
    while killed_at(step, old.path):
        left = Bundle.load(old.path)
        left.check_directory("reports/mine")
        assert left.bundle_id == (old.bundle_id if left.index.schema_version == 1 else exported.bundle_id)
        seen.add(left.index.schema_version)
        step += 1
    assert seen == {1, 2}
    assert step > 4
    new = upgrade(Bundle.load(old.path))
    assert set(listing(new.path)) - {INDEX} == set(new.index.files)


@pytest.mark.parametrize("step", [0, 3, 6])
def test_killed_beside(old: Bundle, step: int, tmp_path: Path) -> None:
    before = listing(old.path)
    assert killed_at(step, old.path, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert listing(old.path) == before
    assert upgrade(old, tmp_path / "new").is_of(old.bundle_id)
