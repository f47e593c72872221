"""benchmarks/serving.py runs, on loads too small for figures; and the server withstands minutes of rude clients."""

from pathlib import Path

import pytest
import serving
from serving_parts import closed, overload
from serving_parts.faults import faults
from serving_parts.soak import soak
from store import load


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed, "RAMP_S", 0.5)
    monkeypatch.setattr(closed, "CLIENTS", 2)  # so that requests end and begin within a second on a busy machine too
    monkeypatch.setattr(serving, "SIZES", {"n = 1 to 16": (1, 2), "n = 1": (1, 1)})
    monkeypatch.setattr(overload, "CAPACITY_S", 2.0)
    monkeypatch.setattr(overload, "PROBES_S", 1.0)
    monkeypatch.setattr(overload, "DEADLINE_S", 3.0)


@pytest.mark.idle(reason="its loads fail where requests take longer than the parts do")
@pytest.mark.usefixtures("hasty")
def test_parts_are_measured_and_kept(tmp_path: Path) -> None:
    for part, seconds in (("cost", 1), ("throughput", 1), ("peer", 1)):
        serving.main([part, "--rounds", "1", "--seconds", str(seconds), "--results", str(tmp_path)])
    record = load("serving", tmp_path)
    assert record is not None
    results = {row.pop("part"): row for row in record["rows"]}
    assert set(results) == {"cost", "throughput", "peer"}
    assert results["throughput"]["served_over_engine"] > 0
    assert set(results["peer"]) == {*serving.SIZES, "measured"}
    assert "overload, growth of memory: at most 0.05: -, not measured" in (tmp_path / "serving.md").read_text()


@pytest.mark.idle(reason="holds the server to a deadline")
@pytest.mark.usefixtures("hasty")
def test_overload_is_refused_and_what_is_accepted_is_in_time() -> None:
    found = overload.overload(6.0, threads=1)
    assert set(found["answers"]) <= {"200", "429"}
    assert found["answers"]["429"] > found["answers"]["200"]
    assert found["accepted_past_deadline"] == 0
    assert found["ready_afterwards"]


@pytest.mark.slow  # a leak takes minutes to show
def test_two_minutes_of_clients_that_leave_leak_nothing(tmp_path: Path) -> None:
    found = soak(120.0, 1, tmp_path)
    assert {"200", "client left"} <= set(found["answers"]) <= {"200", "429", "client left"}
    assert found["requests_failed"] == 0
    assert found["ledger_equals_server"]
    assert found["delivered_within_ledger"]
    assert found["in_progress_at_end"] == 0
    assert found["furthest_top_code_from_its_share_images"] < 2
    assert found["rss_growth"] <= 0.05
    assert found["threads_at_end"] <= found["threads_first_quarter"] + 1
    assert found["open_files_at_end"] <= found["open_files_first_quarter"]


@pytest.mark.slow  # half a minute
def test_clients_lose_nothing_while_the_disk_is_full_at_times(tmp_path: Path, own_file_system: None) -> None:
    """Ray's replicas, which take long to start, are killed in tests/serve/test_ray.py."""
    found = faults(10.0, 1, tmp_path, number=16)
    assert set(found["answers"]) <= {"200", "429", "503", "client left"}
    assert found["not_as_expected"] == found["images_not_as_in_quiet"] == 0
    assert found["images_compared"] > 0
    assert found["ledger_equals_server"]
    assert found["delivered_within_ledger"]
    assert found["in_progress_at_end"] == 0
    assert found["furthest_top_code_from_its_share_images"] < 2
