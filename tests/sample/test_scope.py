"""Requests with a scope: the pipeline and the ledger together, on a fake engine."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, fake_bundle

from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.ledger import Ledger, Stream
from ddm_rt.sample.balance.quota import TreeQuota
from ddm_rt.sample.pipeline import Cancelled, Pipeline

STREAM = Stream("ab" * 32, "today", "uniform")


def pipeline_of(ledger: Ledger | None = None) -> Pipeline:
    return Pipeline(fake_bundle(), FakeEngine(), ledger)


def column(generation: Any, name: str) -> list[Any]:
    return [image[name] for image in generation.manifest["images"]]


def test_a_scope_goes_on_where_its_last_request_stopped() -> None:
    pipeline = pipeline_of()
    whole = pipeline.generate(n=11).codes
    parts = [pipeline.generate(n=n, seed=n, scope="today") for n in (1, 3, 1, 6)]
    assert [code for part in parts for code in part.codes] == list(whole)
    assert [position for part in parts for position in column(part, "position")] == list(range(11))
    assert {part.manifest["request"]["scope"] for part in parts} == {"today"}
    assert pipeline.generate(n=11, scope="tomorrow").codes == whole
    assert pipeline.generate(n=11, target="code:0=0.5,code:1=0.5", scope="today").codes == whole


def test_without_a_scope_codes_depend_on_the_request_alone() -> None:
    pipeline = pipeline_of()
    first = pipeline.generate(n=3)
    pipeline.generate(n=2, scope="today")
    assert pipeline.generate(n=3).manifest == first.manifest
    assert column(first, "position") == [None] * 3


def test_pipelines_share_a_ledger_file(tmp_path: Path) -> None:
    drawn: list[int] = []
    for seed in range(4):
        with Ledger(tmp_path / "counts.ledger") as ledger:
            drawn += column(pipeline_of(ledger).generate(n=2, seed=seed, scope="today"), "position")
    assert drawn == list(range(8))


def fail(_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cancel": lambda: True}, Cancelled),
        ({"on_step": lambda done, total: 1 // 0}, ZeroDivisionError),
        ({"deliver": fail}, OSError),
    ],
    ids=["cancelled", "failed", "not delivered"],
)
def test_a_request_that_comes_to_nothing_gives_its_draws_back(options: dict[str, Any], error: type[Exception]) -> None:
    pipeline = pipeline_of()
    pipeline.generate(n=2, scope="today")
    with pytest.raises(error):
        pipeline.generate(n=5, scope="today", **options)
    assert pipeline.ledger.counts(STREAM).pooled.total() == 5
    assert column(pipeline.generate(n=7, scope="today"), "position") == list(range(2, 9))


def test_a_bad_request_draws_nothing() -> None:
    pipeline = pipeline_of()
    for options in ({"num_steps": 0}, {"height": 3}, {"seed": -1}, {"target": "a=1"}, {"indicator_guidance_scale": -1}):
        with pytest.raises(DdmError):
            pipeline.generate(n=2, scope="today", **options)
    assert not pipeline.ledger.counts(STREAM).issued


def test_draws_are_done_only_after_delivery() -> None:
    pipeline = pipeline_of()
    seen = []
    made = pipeline.generate(
        n=3, scope="today", deliver=lambda made: seen.append((made, pipeline.ledger.counts(STREAM)))
    )
    ((delivered, counts),) = seen
    assert delivered is made
    assert counts.leased.total() == 3
    assert pipeline.ledger.counts(STREAM).done.total() == 3


def test_replay_does_not_ask_the_ledger(tmp_path: Path) -> None:
    pipeline = pipeline_of(Ledger(tmp_path / "counts.ledger"))
    pipeline.generate(n=3, scope="today")
    made = pipeline.generate(n=4, seed=5, scope="today", shuffle=True, target="code:0=.3,code:1=.7")
    made.save(tmp_path / "out")
    pipeline.ledger.close()
    again = pipeline.replay(tmp_path / "out" / "manifest.json")
    assert again.images.tobytes() == made.images.tobytes()
    assert again.manifest == made.manifest
    assert again.manifest["request"]["shuffle"] is True
    one = pipeline.replay(made.manifest, index=2)
    assert one.images.tobytes() == made.images[2:3].tobytes()
    with pytest.raises(DdmError, match="closed"):
        pipeline.generate(scope="today")


def test_a_manifest_from_before_scopes_still_replays() -> None:
    manifest = json.loads(json.dumps(pipeline_of().generate(n=2).manifest))
    del manifest["request"]["shuffle"]
    for image in manifest["images"]:
        del image["position"]
    assert pipeline_of().replay(manifest).codes == pipeline_of().generate(n=2).codes


def test_shuffled_requests_keep_the_bound_at_their_ends() -> None:
    pipeline = pipeline_of()
    tops: list[int] = []
    for seed in range(12):
        tops += column(pipeline.generate(n=1 + seed % 5, seed=seed, scope="today", shuffle=True), "top_code")
        assert abs(tops.count(0) - len(tops) / 2) <= 0.5


def test_load_refuses_a_ledger_of_another_bundle(tmp_path: Path, tiny_bundle: Any) -> None:
    path = tmp_path / "counts.ledger"
    with Ledger(path) as ledger:
        ledger.lease(STREAM, lambda: TreeQuota([1.0], [{0: 1.0}]), 1).commit()
    with pytest.raises(DdmError, match=r"counts\.ledger: belongs to bundle abababababab"):
        Pipeline.load(tiny_bundle, ledger=path)
    made = Pipeline.load(tiny_bundle, ledger=tmp_path / "own.ledger", threads=1).generate(n=2, scope="today")
    assert column(made, "position") == [0, 1]
