"""/metrics says what the scheduler and the interface have done, in names that stay."""

from dataclasses import replace

import pytest
from fake_engine import factor_bundle, fake_bundle
from http_server import GENERATIONS, client_of, fake_pipeline
from prometheus_client.parser import text_string_to_metric_families

from ddm_rt.serve.http.metrics import Metrics
from ddm_rt.serve.scheduling.stats import Aim, Stats

CODES = fake_bundle(num_codes=2).codes  # one for each top code, with its number
STATS = Stats(
    requests=3,
    waiting=40,
    occupied=16,
    decoding=2,
    slots=16,
    queue=256,
    ticks=7,
    steps=112,
    tick_seconds=1.5,
    tick_images={16: 6, 3: 1},
    ledger_calls=3,
    ledger_seconds=0.5,
    ledger_errors=1,
    images=9,
    finished=4,
    failed=1,
    cancelled=2,
    rejected={"queue": 5},
    assigned={(Aim("default", "uniform"), 0): 6, (Aim(None, None), 1): 3},
)


def read(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_counts_of_the_scheduler() -> None:
    found = read(Metrics(lambda: STATS, {"model": "digits"}, CODES))
    for name, labels, value in (
        ("ddm_queue_images", (), 40),
        ("ddm_slots_occupied", (), 16),
        ("ddm_step_seconds_count", (), 7),
        ("ddm_step_seconds_sum", (), 1.5),
        ("ddm_batch_images_bucket", ("2.0", "digits"), 0),
        ("ddm_batch_images_bucket", ("4.0", "digits"), 1),
        ("ddm_batch_images_bucket", ("16.0", "digits"), 7),
        ("ddm_batch_images_bucket", ("+Inf", "digits"), 7),
        ("ddm_batch_images_sum", ("digits",), 99),
        ("ddm_ledger_seconds_count", (), 3),
        ("ddm_ledger_errors_total", (), 1),
        ("ddm_image_steps_total", (), 112),
        ("ddm_images_total", (), 9),
        ("ddm_requests_total", ("cancelled",), 2),
        ("ddm_rejected_total", ("queue",), 5),
        ("ddm_assigned_total", ("default", "uniform", "0"), 6),
        ("ddm_assigned_total", ("", "", "1"), 3),
    ):
        assert found[name, labels] == value


def test_they_are_read_anew_each_time_and_apart_for_each_server() -> None:
    now = [STATS]
    one, other = Metrics(lambda: now[0], codes=CODES), Metrics(lambda: STATS, codes=CODES)
    one.answered("POST", "/v1/images/generations", 200, 0.3)
    now[0] = replace(STATS, images=10)
    assert read(one)["ddm_images_total", ()] == 10
    assert read(one)["ddm_http_requests_total", ("POST", "/v1/images/generations", "200")] == 1
    assert read(one)["ddm_http_request_seconds_bucket", ("0.25", "/v1/images/generations", "200")] == 0
    assert read(one)["ddm_http_request_seconds_bucket", ("0.5", "/v1/images/generations", "200")] == 1
    assert not any(name.startswith("ddm_http") for name, _ in read(other))


def test_how_far_shares_are_from_their_targets() -> None:
    wanted = {"uniform": (0.5, 0.5), "code:0=0.2,code:1=0.8": (0.2, 0.8)}
    assigned = {
        (Aim("a", "uniform"), 0): 6,
        (Aim("a", "uniform"), 1): 4,
        (Aim("a", "code:0=0.2,code:1=0.8"), 1): 5,
        (Aim("a", "3=0.5,8=0.5"), 0): 1,
        (Aim(None, None), -1): 7,
    }
    found = read(Metrics(lambda: replace(STATS, assigned=assigned), codes=CODES, wanted=wanted.get))
    errors = {labels: value for (name, labels), value in found.items() if name == "ddm_share_error"}
    assert errors == {("a", "uniform"): pytest.approx(0.1), ("a", "code:0=0.2,code:1=0.8"): pytest.approx(0.2)}


def test_factors_have_counts_of_their_values_and_their_largest_error() -> None:
    """Of two by three cells, 6 images: even in gender, and one too many of dark hair in place of a grey one."""
    aim, null = Aim("a", "uniform"), Aim(None, None)
    assigned = {(aim, 0): 2, (aim, 1): 1, (aim, 3): 1, (aim, 4): 1, (aim, 5): 1, (null, -1): 3}
    codes, wanted = factor_bundle().codes, lambda _: [1 / 6] * 6
    found = read(Metrics(lambda: replace(STATS, assigned=assigned), codes=codes, wanted=wanted))
    values = {labels: value for (name, labels), value in found.items() if name == "ddm_assigned_values_total"}
    gender, hair = (("gender", "a", "uniform"), ("hair", "a", "uniform"))  # factor, scope, target
    assert values == {
        (*gender, "female"): 3,
        (*gender, "male"): 3,
        (*hair, "dark"): 3,
        (*hair, "fair"): 2,
        (*hair, "grey"): 1,
    }
    assert found["ddm_assigned_total", ("a", "uniform", "1")] == 3
    assert found["ddm_assigned_total", ("", "", "-1")] == 3
    assert found["ddm_share_error", ("a", "uniform")] == pytest.approx(1 / 6)


@pytest.mark.parametrize("stream", [False, True])
def test_times_of_a_request_for_images(stream: bool) -> None:
    with client_of(fake_pipeline()) as client:
        assert client.post(GENERATIONS, json={"n": 2, "stream": stream}).status_code == 200
        families = text_string_to_metric_families(client.get("/metrics").text)
        samples = {
            (sample.name, sample.labels.get("stream"), sample.labels.get("status")): sample.value
            for family in families
            for sample in family.samples
        }
    labels = str(stream).lower(), "finished"
    times = [samples[f"ddm_{name}_seconds_sum", *labels] for name in ("queue", "first_image", "generation")]
    assert 0 <= times[0] <= times[1] <= times[2]
    assert all(samples[f"ddm_{name}_seconds_count", *labels] == 1 for name in ("queue", "first_image", "generation"))
    assert ("process_resident_memory_bytes", None, None) in samples
    assert not any(name.endswith("_created") for name, *_ in samples)
    assert samples["ddm_build_info", None, None] == 1
