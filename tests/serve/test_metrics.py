"""/metrics says what the scheduler and the interface have done, in names that stay."""

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from ddm_rt.serve.http.metrics import Metrics
from ddm_rt.serve.scheduling.stats import Aim, Stats

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
    tick_p50_s=0.2,
    tick_p95_s=0.3,
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
    found = read(Metrics(lambda: STATS))
    for name, labels, value in (
        ("ddm_queue_images", (), 40),
        ("ddm_slots_occupied", (), 16),
        ("ddm_step_seconds_count", (), 7),
        ("ddm_step_seconds_sum", (), 1.5),
        ("ddm_step_seconds_p50", (), 0.2),
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
    one, other = Metrics(lambda: now[0]), Metrics(lambda: STATS)
    one.answered("POST", "/v1/images/generations", 200, 0.3)
    now[0] = replace(STATS, images=10)
    assert read(one)["ddm_images_total", ()] == 10
    assert read(one)["ddm_http_requests_total", ("POST", "/v1/images/generations", "200")] == 1
    assert read(one)["ddm_http_request_seconds_bucket", ("0.25", "/v1/images/generations")] == 0
    assert read(one)["ddm_http_request_seconds_bucket", ("0.5", "/v1/images/generations")] == 1
    assert not any(name.startswith("ddm_http") for name, _ in read(other))
