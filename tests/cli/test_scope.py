"""`ddm-rt sample --scope`: counts go on across commands, and a command that fails changes none."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddm_rt.bundle import Bundle
from ddm_rt.sample.balance.ledger import Ledger, Stream

Sample = Callable[..., Any]


@pytest.fixture
def sample(ddm_rt, bundle: Bundle, tmp_path: Path) -> Sample:
    """sample(name, seed, ...) draws three images in a scope into a directory of that name."""

    def run(name: str, seed: int, *more: object) -> Any:
        line = ("sample", bundle.path, "-n", 3, "--seed", seed, "--out", tmp_path / name, "--threads", 1)
        return ddm_rt(*line, "--scope", "campaign", *more)

    return run


def images(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "manifest.json").read_bytes())["images"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_scope_goes_on_from_command_to_command(ddm_rt, sample: Sample, bundle: Bundle, tmp_path: Path) -> None:
    ledger = ("--ledger", tmp_path / "l")
    for seed, more in enumerate([(), ("--shuffle",), ("--fsync",)]):
        assert sample(f"out{seed}", seed, *ledger, *more).code == 0
    drawn = [image for seed in range(3) for image in images(tmp_path / f"out{seed}")]
    assert sorted(image["position"] for image in drawn) == list(range(9))
    assert ddm_rt("sample", bundle.path, "-n", 9, "--out", tmp_path / "whole").code == 0
    in_order = sorted(drawn, key=lambda image: image["position"])
    assert [image["code"] for image in in_order] == [image["code"] for image in images(tmp_path / "whole")]

    counted = (tmp_path / "l").read_bytes()
    replay = ("sample", bundle.path, "--from", tmp_path / "out1" / "manifest.json", "--out", tmp_path / "again")
    assert ddm_rt(*replay).code == 0
    for image in drawn[3:6]:
        assert (tmp_path / "again" / image["file"]).read_bytes() == (tmp_path / "out1" / image["file"]).read_bytes()
    assert (tmp_path / "l").read_bytes() == counted


def test_a_scope_without_a_ledger_says_that_it_ends(sample: Sample, tmp_path: Path) -> None:
    result = sample("out", 0)
    assert result.code == 0
    assert "--ledger keeps them" in result.out
    assert [image["position"] for image in images(tmp_path / "out")] == [0, 1, 2]


def test_images_that_cannot_be_written_are_not_counted(sample: Sample, bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "l"
    assert sample("first", 0, "--ledger", path).code == 0
    (tmp_path / "file").write_text("in the way")
    assert "file" in sample("file/out", 1, "--ledger", path).refusal()
    with Ledger(path) as ledger:
        assert ledger.counts(Stream(bundle.bundle_id, "campaign", "uniform")).issued.total() == 3


def test_images_that_the_ledger_cannot_record_are_taken_away(
    sample: Sample, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process locks the file between the images and their record."""
    from ddm_rt.sample.generation import Generation

    path = tmp_path / "l"
    save = Generation.save
    others: list[sqlite3.Connection] = []

    def save_and_lock(self: Generation, out: Path) -> Path:
        saved = save(self, out)
        others.append(sqlite3.connect(path, isolation_level=None))
        others[0].execute("BEGIN IMMEDIATE")
        return saved

    monkeypatch.setattr(Generation, "save", save_and_lock)
    monkeypatch.setattr(Ledger.__init__, "__kwdefaults__", Ledger.__init__.__kwdefaults__ | {"timeout_s": 0.05})
    assert "l: locked by another process" in sample("out", 0, "--ledger", path).refusal()
    others[0].close()
    assert not (tmp_path / "out").exists()
    with Ledger(path) as ledger:
        assert ledger.counts(Stream(bundle.bundle_id, "campaign", "uniform")).pooled.total() == 3


def spoil(path: Path) -> None:
    path.write_bytes(b"years of work")


def another_bundle(path: Path) -> None:
    from ledger_processes import STREAM, quota

    with Ledger(path) as ledger:
        ledger.lease(STREAM, quota, 1).commit()


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (spoil, "l: damaged, or no ledger"),
        (Path.touch, "l: empty; expected a ledger"),
        (another_bundle, "l: belongs to bundle abababababab"),
        (Path.mkdir, "l: cannot be"),
    ],
)
def test_a_ledger_that_cannot_be_used(
    sample: Sample, tmp_path: Path, prepare: Callable[[Path], object], said: str
) -> None:
    prepare(tmp_path / "l")
    before = names(tmp_path)
    content = (tmp_path / "l").read_bytes() if (tmp_path / "l").is_file() else b""
    assert said in sample("out", 0, "--ledger", tmp_path / "l").refusal()
    assert names(tmp_path) == before
    assert content == ((tmp_path / "l").read_bytes() if (tmp_path / "l").is_file() else b"")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--ledger", "l"), "--ledger: keeps the counts of scopes; name one"),
        (("--scope", "s", "--fsync"), "--fsync: is about the file of --ledger"),
        (("--scope", "s", "--ledger", "l", "--from", "m.json"), "--from: a replay draws nothing"),
        (("--scope", "s", "--from", "m.json"), "--from: a replay draws nothing"),
        (("--scope", ""), "scope is ''; expected 1 to 200 printable characters"),
        (("--scope", "s", "--balance", "off"), "scope is 's', but no quota draws"),
        (("--shuffle", "--balance", "off"), "shuffle is True, but no quota draws"),
        (("--scope", "s", "--ledger", "l", "--steps", 0), "num_steps is 0"),
        (("--scope", "s", "--ledger", "nowhere/l"), "nowhere/l: cannot be made or opened (No such file or directory)"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_options_that_do_not_fit(
    ddm_rt, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in ddm_rt("sample", bundle.path, "-n", 2, "--out", tmp_path / "out", *more).refusal()
    assert list(tmp_path.iterdir()) == []
