"""Where the ledger's streams stand: each top code's part of what was handed out, whatever has become of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import FakeEngine, factor_bundle, fake_bundle
from http_server import GENERATIONS, client_of
from ledger_processes import STREAM, quota

from ddm_rt.sample.balance.assignment import by_names
from ddm_rt.sample.balance.ledger import Ledger, Stream
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.http.balance import balances

CODES = fake_bundle().codes  # those of `quota`, whose top codes have 0.3 and 0.7


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """10 draws are done, 6 are leased and 4 in the pool."""
    with Ledger(tmp_path / "counts.ledger") as ledger:
        done, leased, given_back = (ledger.lease(STREAM, quota, n) for n in (10, 6, 4))
        done.commit()
        given_back.release()
        yield ledger
        leased.release()


def test_a_stream_s_counts_by_top_code(ledger: Ledger) -> None:
    [found] = balances(ledger, CODES)
    assert (found.scope, found.target, found.measured) == (STREAM.scope, STREAM.target, None)
    counts = found.assigned
    assert (counts.issued, counts.done, counts.in_progress, counts.pooled) == (20, 10, 6, 4)
    assert [top.top_code for top in found.top_codes] == [0, 1]
    assert [top.issued for top in found.top_codes] == [6, 14]
    assert [top.share for top in found.top_codes] == [0.3, 0.7]
    assert [top.done for top in found.top_codes] == [3, 7]
    assert [top.in_progress for top in found.top_codes] == [2, 4]


def test_streams_of_one_scope(ledger: Ledger) -> None:
    other = Stream(STREAM.bundle_id, "other", STREAM.target)
    ledger.lease(other, quota, 1).commit()
    assert len(balances(ledger, CODES)) == 2
    assert [found.scope for found in balances(ledger, CODES, "other")] == ["other"]
    assert balances(ledger, CODES, "none") == []


def test_a_stream_s_counts_by_factor() -> None:
    bundle = factor_bundle()
    named = by_names(bundle, "hair:dark=1")
    assert named is not None
    with Ledger() as ledger:
        ledger.lease(Stream(bundle.bundle_id, "a", named.target), named.quota, 4).commit()
        [found] = balances(ledger, bundle.codes)
    assert found.target == "hair:dark=1.0"
    shares = {part.factor: {each.value: (each.done, each.share) for each in part.values} for part in found.factors}
    assert shares == {
        "gender": {"female": (2, 0.5), "male": (2, 0.5)},
        "hair": {"dark": (4, 1.0), "fair": (0, 0.0), "grey": (0, 0.0)},
    }


def test_a_request_by_factors() -> None:
    """One spelling of the target in manifest, ledger and metrics, from the request on; what is wrong is its target."""
    pipeline = Pipeline(factor_bundle(missing=True), FakeEngine())
    with client_of(pipeline) as client:
        asked = {"n": 8, "seed": 1, "target": " gender:male=.75 , gender : female=.25"}
        reply = client.post(GENERATIONS, json=asked).json()
        assert reply["manifest"]["target"] == "gender:female=0.25,gender:male=0.75"
        assert [item["top_code"] for item in reply["data"]].count(1) == 6
        [stream] = client.get("/v1/balance").json()["data"]
        assert stream["target"] == reply["manifest"]["target"]
        assert [part["done"] for part in stream["factors"][0]["values"]] == [2, 6]
        metrics = client.get("/metrics").text
        assert 'target="gender:female=0.25,gender:male=0.75",value="male"} 6.0' in metrics
        [model] = client.get("/v1/models").json()["data"]
        assert [(each["name"], each["values"]) for each in model["factors"]] == [
            ("gender", ["female", "male"]),
            ("hair", ["dark", "fair", "grey"]),
        ]
        assert model["factors"][1]["shares"] == pytest.approx([1 / 3] * 3)
        for target, said in (
            ("gender:female=1", "A target within reach is gender:female=1,hair:dark=0.5,hair:fair=0.5"),
            ("gender:female=.5", "sum to 0.5"),
            ("female=.5,male=.5", "`ddm-rt calibrate` adds one (the bundle's factors are gender: female, male; hair"),
            ("gendre:female=1", r"the bundle's factors are gender: female, male; hair: dark, fair, grey"),
        ):
            refused = client.post(GENERATIONS, json={"target": target})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "target"
            assert said in refused.json()["error"]["message"]
    again = pipeline.replay(reply["manifest"])
    assert list(again.codes) == [item["code"] for item in reply["data"]]
