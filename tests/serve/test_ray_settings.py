"""Settings of replicas: what Ray Serve is told of them, and what makes no sense."""

import pytest
from pydantic import ValidationError
from ray import serve

from ddm_rt.serve.cluster.deployment import deployment_options
from ddm_rt.serve.cluster.replica import Replica
from ddm_rt.serve.settings import RaySettings, ServeSettings


def test_settings_say_what_scales() -> None:
    fixed = deployment_options(
        ServeSettings(drain_s=7), RaySettings(replicas=3, cpus=2, gpus_per_replica=0.5, max_ongoing=9)
    )
    assert fixed["num_replicas"] == 3
    assert (fixed["max_ongoing_requests"], fixed["graceful_shutdown_timeout_s"]) == (9, 7)
    assert fixed["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0.5}
    scaled = deployment_options(ServeSettings(), RaySettings(replicas=1, max_replicas=4, target_ongoing=5))
    assert "num_replicas" not in scaled
    assert scaled["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 5,
        "upscale_delay_s": 10,
        "downscale_delay_s": 300,
    }


@pytest.mark.parametrize("most", [None, 4])
def test_ray_serve_takes_them(most: int | None) -> None:
    options = deployment_options(ServeSettings(), RaySettings(replicas=2, max_replicas=most))
    deployment = serve.deployment(Replica).options(**options)
    assert deployment.max_ongoing_requests == 256


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": 0},
        {"replicas": 3, "max_replicas": 2},
        {"target_ongoing": 0},
        {"max_ongoing": 0},
        {"threads": 0},
        {"cpus": -1},
        {"gpus_per_replica": float("nan")},
    ],
    ids=str,
)
def test_what_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(reversed(wrong))):
        RaySettings(**wrong)
