"""The stamp beside figures."""

import os
from pathlib import Path

import pytest

from ddm_rt.engine import machine as stamps
from ddm_rt.engine.machine import Machine, machine, processor


def test_the_stamp_says_what_the_machine_is() -> None:
    found = machine()
    assert Machine.model_validate_json(found.model_dump_json()) == found
    assert 1 <= found.cpus <= (os.cpu_count() or 1)
    assert found.memory_gib > 0.1
    assert found.processor == processor() != ""


def test_a_system_without_cpuinfo_has_a_stamp_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "Path", lambda name: tmp_path / "absent")
    assert machine().clock_mhz is None
    assert processor() != ""
