"""Bundle ids, step tables, codes, seeds, calibrations and ledgers are what they were, on every machine."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from goldens import changed, files, ledgers, streams, tables

from ddm_rt.bundle import Bundle
from ddm_rt.sample.balance.assignment import code_tree
from ddm_rt.sample.calibration.calibration import Calibration


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Calibration, str]:
    """The old shipped bundle, its calibration and that one's id."""
    return files.calibrated(Bundle.load(files.old_digits(tmp_path_factory.mktemp("goldens") / "digits")))


@pytest.mark.parametrize("name", ["digits", *files.TINY])
def test_old_bundles_open_and_keep_their_ids(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    opened = Bundle.load(files.old_digits(place) if name == "digits" else files.unpack(name, place))
    assert opened.bundle_id == files.read_json(files.FILES / "bundle_ids.json")[name]


def test_step_tables_of_every_sampler() -> None:
    made, golden = _as_read(tables.tables()), files.read_json(files.FILES / "tables.json")
    assert made["whole"] == golden["whole"]  # first: these show numbers
    assert made["schedules"] == golden["schedules"]
    assert made["digests"].keys() == golden["digests"].keys()
    differ = [name for name, digests in golden["digests"].items() if made["digests"][name] != digests]
    assert not differ, f"step tables that are not what they were; meant: {', '.join(changed.TABLES)}"


def test_codes_of_long_streams_seeds_and_shuffles(digits: tuple[Bundle, Calibration, str]) -> None:
    made, golden = _as_read(streams.streams(code_tree(digits[0]))), files.read_json(files.FILES / "streams.json")
    for kind, each in golden.items():
        for name, wanted in each.items():
            assert made[kind][name] == wanted, f"{kind} of {name}"
    assert made == golden


def test_a_calibration_of_the_same_audit(digits: tuple[Bundle, Calibration, str]) -> None:
    _, calibration, calibration_id = digits
    text = files.AUDIT.with_name("calibration.json").read_text()
    assert json.loads(calibration.model_dump_json()) == json.loads(text)
    assert calibration.model_dump_json(indent=1) + "\n" == text
    assert calibration_id == files.read_json(files.AUDIT.with_name("id.json"))


def test_an_old_ledger_goes_on(digits: tuple[Bundle, Calibration, str], tmp_path: Path) -> None:
    """What was given back, and what a process that is gone had drawn, comes first; then new positions."""
    path = tmp_path / "ledger"
    shutil.copyfile(files.LEDGER, path)
    made, golden = _as_read(ledgers.go_on(path, ledgers.Streams(*digits))), files.read_json(files.FILES / "ledger.json")
    for part, wanted in golden.items():
        assert made[part] == wanted, part


def _as_read(tree: Any) -> Any:
    """As JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(tree))
