"""The embedding library's ledger and calibrations: files that Python uses too, refused alike."""

import json
import logging
import os
import random
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from calibration_settings import SETTINGS
from core_probe import CoreProbe, agree, python
from embedding_build import Built
from ledger_damage import DAMAGE, change
from ledger_processes import STREAM, quota, reference, used
from paper_bundle import fill

from ddm_rt.bundle import Bundle, add_directory, write_bundle
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.sample.cache.reuse import Reuse
from ddm_rt.sample.calibration.calibration import Calibration, Settings, Stored, resolve, store
from ddm_rt.sample.calibration.groups import Attribute
from ddm_rt.sample.manifest import ImageRecord, Manifest
from ddm_rt.sample.request import ResolvedRequest

LEASE = {
    **STREAM._asdict(),
    "tops": ["0.3", "0.7"],
    "leaves": [[[0, 0.5], [2, 0.5]], [[1, 0.25], [3, 0.75]]],
    "do": "lease",
    "name": "a",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return used(tmp_path)


def draw(core: CoreProbe, path: Path | None, n: int, timeout_s: float = 10) -> Any:
    """What the core draws as the ledger "a", or its error."""
    place = None if path is None else str(path)
    if error := core("ledger", do="open", name="a", path=place, timeout_s=repr(timeout_s)):
        return error
    found = core("ledger", n=n, lease="one", **LEASE)
    core("ledger", do="release", lease="one", name="a")
    core("ledger", do="close", name="a")
    return found


def drawn(path: Path, n: int, timeout_s: float = 10) -> Any:
    with Ledger(path, timeout_s=timeout_s) as ledger:
        return [[*one] for one in ledger.lease(STREAM, quota, n).draws]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file(core: CoreProbe, path: Path, damage: str) -> None:
    DAMAGE[damage][0](path)
    there = draw(core, path, 5)
    assert there == python(lambda: drawn(path, 5))
    assert there["status"] == 3


COUNTS = (
    '{"0": 1.0}',
    '{"0": NaN}',
    '{"0": true}',
    '{"0": "1"}',
    '{" 0": 1}',
    '{"1_0": 1}',
    '{"01": 1, "1": 1}',
    "{}",
    "[]",
)
COUNTS += (
    '{"0": -1, "1": 0, "2": 0, "3": 0}',
    '{"0": 1e3}',
    '{"0": 9223372036854775808}',
    '{"x": 1}',
    "null",
    '{"0": 1',
    "",
)


@pytest.mark.parametrize("counts", COUNTS)
def test_counts_that_nobody_wrote(core: CoreProbe, path: Path, counts: str) -> None:
    change(path, "DELETE FROM draws")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE streams SET counts = ?", (counts,))
    assert draw(core, path, 1) == python(lambda: drawn(path, 1))


def test_a_locked_file(core: CoreProbe, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        there = draw(core, path, 1, timeout_s=0.05)
        assert there == python(lambda: drawn(path, 1, timeout_s=0.05))
    assert there["error"].endswith("locked by another process for more than 0.05 s; nothing was changed")


def test_a_file_of_another_bundle(core: CoreProbe, path: Path) -> None:
    core("ledger", do="open", name="a", path=str(path))
    there = core("ledger", do="check_bundle", name="a", bundle_id="cd" * 32)
    with Ledger(path) as ledger:
        assert there == python(lambda: ledger.lease(STREAM._replace(bundle_id="cd" * 32), quota, 1))
    assert there["status"] == 3
    core("ledger", do="close", name="a")
    said = {"error": f"ledger {path}: closed", "status": 3}
    assert core("ledger", n=1, lease="one", **LEASE) == said
    assert python(lambda: ledger.lease(STREAM, quota, 1)) == said


def test_what_one_side_gives_back_the_other_hands_out(core: CoreProbe, path: Path) -> None:
    pooled = [[*one] for one in reference(12)[8:]]
    assert draw(core, path, 6)[:4] == pooled
    assert drawn(path, 6) == draw(core, path, 6) == [[*one] for one in reference(14)[8:]]
    assert draw(core, None, 20) == [[*one] for one in reference(20)]


def test_a_forked_child_does_not_keep_the_draws_of_its_parent(built: Built, path: Path) -> None:
    with CoreProbe(built.tests / "ddm-core-probe") as parent:
        parent("ledger", do="open", name="a", path=str(path))
        assert len(parent("ledger", n=6, lease="one", **LEASE)) == 6
        child = parent("fork")
        with Ledger(path) as ledger:
            assert ledger.counts(STREAM).leased.total() == 6
            parent.process.kill()
            parent.process.wait()
            try:
                assert ledger.counts(STREAM).leased.total() == 0
                assert ledger.counts(STREAM).pooled.total() == 6
            finally:
                os.kill(child, signal.SIGKILL)


def test_a_process_that_goes_to_another_folder(built: Built, tmp_path: Path) -> None:
    """It stays alive, with its draws, and its file stays where it was: every daemon goes to another folder."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    path = here / "counts.ledger"
    with CoreProbe(built.tests / "ddm-core-probe") as probe:
        probe("chdir", path=str(here))
        probe("ledger", do="open", name="a", path=path.name)
        probe("ledger", do="open", name="late", path=f"./{path.name}")  # that uses the file from elsewhere on
        first = probe("ledger", n=6, lease="one", **LEASE)
        probe("chdir", path=str(there))
        probe("ledger", do="open", name="b", path=str(path))
        second = probe("ledger", n=6, lease="two", **LEASE | {"name": "b"})
        third = probe("ledger", n=6, lease="three", **LEASE | {"name": "late"})
        assert first + second + third == [[*one] for one in reference(18)]
        assert probe("ledger", do="commit", lease="one", name="a") is None
        said = probe("ledger", do="check_bundle", name="a", bundle_id="cd" * 32)["error"]
        assert said.startswith("ledger counts.ledger: belongs to")
        with Ledger(path) as ledger:
            assert ledger.counts(STREAM).done.total() == 6
            assert ledger.counts(STREAM).leased.total() == 12
        for name in ("a", "b", "late"):
            probe("ledger", do="close", name=name)
    assert not [*there.iterdir()]
    assert not [*here.glob("*-owner-*")]


def test_a_new_file_is_made_in_the_folder_where_it_was_named(built: Built, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    with CoreProbe(built.tests / "ddm-core-probe") as probe:
        probe("chdir", path=str(here))
        probe("ledger", do="open", name="a", path="counts.ledger")
        probe("chdir", path=str(there))
        assert len(probe("ledger", n=6, lease="one", **LEASE)) == 6
        probe("ledger", do="close", name="a")
    assert (here / "counts.ledger").is_file()
    assert not [*there.iterdir()]


@pytest.mark.parametrize("there", [True, False], ids=["used before", "new"])
@pytest.mark.parametrize("given", ["link", "chain", "folder/link", "folder/../real/counts.ledger", "missing/../chain"])
def test_a_link_to_a_ledger_is_that_ledger(built: Built, tmp_path: Path, given: str, there: bool) -> None:
    """Python's too: nothing is handed out twice, and owners' locks lie beside the file itself."""
    real, links = tmp_path / "real", tmp_path / "links"
    real.mkdir()
    (links / "deep").mkdir(parents=True)
    path = real / "counts.ledger"
    (links / "link").symlink_to("../real/counts.ledger")
    (links / "chain").symlink_to(links / "link")
    (links / "folder").symlink_to(links / "deep")
    (links / "deep" / "link").symlink_to("../link")
    (links / "real").symlink_to(real)
    if there:
        Ledger(path).lease(STREAM, quota, 1).commit()
    with CoreProbe(built.tests / "ddm-core-probe") as probe, Ledger(links / given) as linked, Ledger(path) as ledger:
        assert linked.path == path
        probe("chdir", path=str(links))
        probe("ledger", do="open", name="a", path=given)
        probe("ledger", do="open", name="b", path=str(path))
        drawn = probe("ledger", n=2, lease="one", **LEASE)
        drawn += probe("ledger", n=2, lease="two", **LEASE | {"name": "b"})
        leases = [linked.lease(STREAM, quota, 2), ledger.lease(STREAM, quota, 2)]
        drawn += [[*one] for lease in leases for one in lease.draws]
        drawn += probe("ledger", n=2, lease="three", **LEASE)
        assert drawn == [[*one] for one in reference(10 + there)[there:]]
        assert len([*real.glob("counts.ledger-owner-*")]) == 4
        said = probe("ledger", do="check_bundle", name="a", bundle_id="cd" * 32)["error"]
        assert said.startswith(f"ledger {given}: ")
        for name in ("a", "b"):
            probe("ledger", do="close", name=name)
    assert sorted(one.name for one in links.iterdir()) == ["chain", "deep", "folder", "link", "real"]
    assert [one.name for one in (links / "deep").iterdir()] == ["link"]


def test_links_that_lead_nowhere_are_refused(core: CoreProbe, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    said = f"ledger {tmp_path}/a: cannot be made or opened (Too many levels of symbolic links)"
    assert draw(core, tmp_path / "a", 1) == {"error": said, "status": 3}


GENDER = Attribute(name="gender", groups=("female", "male"))
RACE = Attribute(name="race", groups=("asian", "black", "white"))
SHARES = (0.25, 0.1, 0.4, 0.05, 0.2)
TARGETS = (
    *("gender:uniform", "female=.3,male=.7", "female=.6,male=.4", "race:uniform", "asian=.2,black=.5,white=.3"),
    *("gender:uniform;race:uniform", "gender&race:uniform", "female=1", "female=.999,male=.001", "old=1"),
    *("female&asian=.2,male&white=.3,female&black=.5", "male=.5,female=.5;asian=.5,white=.25,black=.25"),
)


def calibration(bundle: Bundle, rng: random.Random, largest: int, **changes: Any) -> Calibration:
    """Audits of `bundle` that show each code as mostly one group."""
    counts = [[rng.choice([0, 0, 0, 1, 2, rng.randrange(largest)]) for _ in range(6)] for _ in SHARES]
    return Calibration(
        bundle_id=bundle.bundle_id,
        attributes=(GENDER, RACE),
        counts=tuple(map(tuple, counts)),
        unsure=(0,) * len(SHARES),
        settings=SETTINGS.model_copy(update=changes),
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", lambda folder: fill(folder, SHARES), {})


CACHE = Reuse(steps=(0, 2, 3), rows=((0.5, 0.5, 0.0, 0.1),) * 3)


def manifest(bundle: Bundle, num_steps: int = 4, scope: str | None = None, cache: Reuse | None = None) -> Manifest:
    shared = {name: value for name, value in SETTINGS if name in ResolvedRequest.model_fields}
    return Manifest(
        bundle_id=bundle.bundle_id,
        request=ResolvedRequest(**shared | {"n": 1, "seed": 0, "balance": "auto", "scope": scope, "cache": cache}),
        target=None,
        sampler=SETTINGS.sampler,
        num_steps=num_steps,
        backend="onnxruntime",
        precision=SETTINGS.precision,
        threads=1,
        versions={},
        images=(ImageRecord(file="00000.png", seed=0, code=-1, top_code=-1),),
    )


def check_weights(
    core: CoreProbe, bundle: Bundle, asked: Manifest, caplog: Any, *, allow_stale: bool = False
) -> list[Any]:
    """Both sides on every target; what they give."""
    now = Settings.of(asked.request, asked.sampler, asked.num_steps, asked.precision)

    def want(target: str) -> dict[str, Any]:
        caplog.clear()
        found = resolve(bundle, target, now, allow_stale=allow_stale)
        return {
            "target": found.target,
            "calibration_id": found.calibration_id,
            "code_weights": list(found.code_weights),
            "warnings": [record.getMessage() for record in caplog.records],
        }

    content = json.dumps(asked.tree())
    found: list[Any] = core(
        "weights", path=str(bundle.path), manifest=content, targets=TARGETS, allow_stale=allow_stale
    )
    for target, there in zip(TARGETS, found, strict=True):
        assert agree(there, python(lambda target=target: want(target))), target  # type: ignore[misc]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_weights_for_groups_are_pythons(core: CoreProbe, bundle: Bundle, caplog: Any, seed: int) -> None:
    caplog.set_level(logging.WARNING)
    rng = random.Random(seed)
    stored, _ = store(bundle, calibration(bundle, rng, (4, 20, 80)[seed % 3]), "default")
    check_weights(core, stored, manifest(stored), caplog)


def test_the_calibration_that_fits_is_taken(core: CoreProbe, bundle: Bundle, caplog: Any) -> None:
    caplog.set_level(logging.WARNING)
    rng = random.Random(1)
    known = Stored(target="gender:female=0.3,male=0.7", code_weights=(0.1, 0.2, 0.3, 0.4, 0.0))
    for name, changes in {
        "a": {},
        "b.c": {"num_steps": 5},
        "b-c": {"scope": "staff"},
        "\u00e4": {"prompt": ""},
        "cached": {"cache": CACHE},
    }.items():
        record = calibration(bundle, rng, 50, **changes)
        bundle, _ = store(bundle, record.model_copy(update={"targets": (known,)}), name)
    asked_for = [manifest(bundle, *more) for more in ((), (5,), (6,), (4, "staff"), (4, None, CACHE))]
    for asked in asked_for:
        found = check_weights(core, bundle, asked, caplog)
        assert asked.num_steps == 6 or found[1]["code_weights"] == list(known.code_weights)
        check_weights(core, bundle, asked, caplog, allow_stale=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"schema_version": 1', '"schema_version": 2'),
        ('"female"', '"fe=male"'),
        ('"female"', '"male"'),
        ('"gender"', '"code"'),
        ('"gender"', '"race"'),
        ('"counts": [', '"counts": [[1, 2],'),
        ('"unsure": [', '"unsure": [-1,'),
        ('"targets": []', '"targets": [{"target": "x", "code_weights": [0.5, 0.5, 0, 0, 0.1]}]'),
        ('"targets": []', '"targets": [{"target": "x", "code_weights": [1.5, -0.5, 0, 0, 0]}]'),
        ('"num_steps": 4', '"num_steps": 0'),
        ('"num_steps": 4', '"num_steps": 4, "cache": {"steps": [0], "rows": []}'),
        ("{", "["),
    ],
)
def test_a_calibration_that_cannot_be(core: CoreProbe, bundle: Bundle, caplog: Any, old: str, new: str) -> None:
    content = calibration(bundle, random.Random(0), 9).model_dump_json(indent=1)
    assert old in content
    broken = content.replace(old, new, 1)
    added = add_directory(
        bundle, "calibrations/x", lambda folder: (folder / "calibration.json").write_text(broken) and None
    )
    found = check_weights(core, added, manifest(added), caplog)
    assert all("calibration.json" in there["error"] for there in found)
