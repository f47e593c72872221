"""schedule.json of bundles of format 1, and the noise levels in either format: what is wrong is named."""

import json
from typing import Any

import numpy as np
import pytest
from format1 import schedule_json
from hypothesis import given, settings
from hypothesis import strategies as st

from ddm_rt.config import ScheduleConfig
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.schedule import Schedule


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_what_was_written_is_read_to_the_bit(betas: str) -> None:
    schedule = Schedule.from_config(ScheduleConfig(beta_schedule=betas, prediction_type="v_prediction"))
    again = Schedule.from_json(schedule_json(schedule).encode(), "schedule.json")
    assert again.config == schedule.config
    assert again.alphas_cumprod.tobytes() == schedule.alphas_cumprod.tobytes()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"beta_start": -1.0}, "beta_start"),
        ({"beta_end": 0.5}, "alphas_cumprod"),
        ({"prediction_type": "score"}, "prediction_type"),
        ({"num_train_timesteps": 999}, "num_train_timesteps"),
        ({"timestep_spacing": "cosine"}, "timestep_spacing"),
        ({"steps_offset": 2}, "steps_offset"),
        ({"set_alpha_to_one": "no, thanks"}, "set_alpha_to_one"),
        ({"alphas_cumprod": None}, "alphas_cumprod"),
        ({"alphas_cumprod": []}, "alphas_cumprod"),
        ({"alphas_cumprod": ["0.5"] * 1000}, "alphas_cumprod"),
        ({"alphas_cumprod": [0.5] * 1000}, "alphas_cumprod"),
        ({"alphas_cumprod": [float("nan")] * 1000}, "alphas_cumprod"),
        ({"alphas_cumprod": [10**400] * 1000}, "alphas_cumprod"),
        ({"alphas_cumprod": list(np.linspace(1.5, 0.1, 1000))}, "alphas_cumprod"),
        ({"alphas_cumprod": list(np.linspace(0.9, 0.1, 1000))}, "alphas_cumprod: differs"),
        ({"alphas_cumprod": list(np.linspace(0.9, 0.0, 1000))}, "alphas_cumprod must decrease strictly within"),
        ({"alphas_cumprod": list(np.linspace(1.0, 0.1, 1000))}, "alphas_cumprod must decrease strictly within"),
    ],
)
def test_bad_json_names_the_field(change: dict[str, Any], field: str) -> None:
    tree = json.loads(schedule_json(Schedule.from_config(ScheduleConfig()))) | change
    with pytest.raises(DdmError, match=field) as caught:
        Schedule.from_json(json.dumps(tree), "some/schedule.json")
    assert "some/schedule.json" in str(caught.value)


@settings(max_examples=50)
@given(content=st.one_of(st.binary(max_size=50), st.text(max_size=50), st.just("[1]"), st.just("null")))
def test_no_json_crashes_the_parser(content: str | bytes) -> None:
    with pytest.raises(BundleError, match=r"schedule\.json"):
        Schedule.from_json(content, "schedule.json")


def test_one_level_that_is_off_by_little_is_refused() -> None:
    tree = json.loads(schedule_json(Schedule.from_config(ScheduleConfig())))
    tree["alphas_cumprod"][700] *= 1.0001
    with pytest.raises(BundleError, match="differs from what the beta fields give"):
        Schedule.from_json(json.dumps(tree), "schedule.json")


def test_truncated_json_is_refused() -> None:
    text = schedule_json(Schedule.from_config(ScheduleConfig()))
    with pytest.raises(BundleError, match="not JSON"):
        Schedule.from_json(text[: len(text) // 2], "schedule.json")


def test_a_file_that_does_not_say_its_version_is_refused() -> None:
    tree = json.loads(schedule_json(Schedule.from_config(ScheduleConfig())))
    del tree["schema_version"]
    with pytest.raises(BundleError, match="field schema_version: expected 1"):
        Schedule.from_json(json.dumps(tree), "schedule.json")
