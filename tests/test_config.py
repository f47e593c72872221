"""Configuration: what is saved comes back equal, and what doesn't fit is refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddm_rt.config import (
    DEFAULT_INDICATOR_WEIGHT,
    IndicatorMode,
    PredictionType,
    RunConfig,
    TrainConfig,
    parse,
    parse_json,
)
from ddm_rt.errors import DdmError
from ddm_rt.presets import PRESETS, resolve


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_comes_back_equal_from_json(preset: str) -> None:
    config = resolve(preset)
    assert config == PRESETS[preset]
    assert config.preset == preset
    assert parse_json(RunConfig, config.model_dump_json(), "test") == config
    channels, height, width = config.model.latent_shape(config.data)
    assert channels == config.data.channels * config.model.patch**2
    assert height == width == config.data.image_size // config.model.patch


def test_the_digits_presets_fit_the_latents_that_the_design_allows() -> None:
    for name in ("digits", "digits-bench", "digits-demo"):
        channels, height, width = resolve(name).model.latent_shape(resolve(name).data)
        assert (channels, height, width) <= (16, 8, 8)


def test_dotted_overrides() -> None:
    config = resolve(
        "tiny",
        {
            "train.steps": 7,
            "train.indicator": "labels",
            "schedule.prediction_type": "v_prediction",
            "model.unet.layers_per_block": 2,
            "data.source": "digits:3,8@4:1",
        },
    )
    assert config.train.steps == 7
    assert config.train.indicator is IndicatorMode.LABELS
    assert config.schedule.prediction_type is PredictionType.V_PREDICTION
    assert config.model.unet["layers_per_block"] == 2
    assert config.data.source == "digits:3,8@4:1"
    assert resolve("tiny") == PRESETS["tiny"], "an override must not reach the preset"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"train.stepz": 3}, "train.stepz"),
        ({"nonsense": 3}, "nonsense"),
        ({"train.steps.more": 3}, "train.steps.more"),
        ({"": 3}, "''"),
        ({"train.steps": 0}, "train.steps"),
        ({"train.steps": "many"}, "train.steps"),
        ({"train.learning_rate": float("nan")}, "train.learning_rate"),
        ({"train.indicator": "groups"}, "train.indicator"),
        ({"train.indicator_weight": 1.5}, "train.indicator_weight"),
        ({"train": 5}, "train"),
        ({"data.channels": 2}, "data.channels"),
        ({"data.image_size": 18}, "multiple of 4"),
        ({"data.image_size": 17}, "data.image_size is 17"),
        ({"codes.top_codes": 5}, "codes.top_codes (5) must not exceed codes.micro_codes (4)"),
        ({"codes.top_codes": 1}, "codes.top_codes"),
        ({"train.drop_both": 0.6, "train.drop_code": 0.5}, "drop_both + drop_code + drop_text"),
    ],
)
def test_a_bad_override_is_refused_by_name(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(DdmError) as caught:
        resolve("tiny", overrides)
    assert said in str(caught.value)


def test_an_unknown_preset_lists_the_choices() -> None:
    with pytest.raises(DdmError, match="'gigantic' is unknown; presets: digits, "):
        resolve("gigantic")


@pytest.mark.parametrize("path", [(), ("train",), ("model",), ("sampling",)])
def test_an_unknown_field_is_refused_by_name(path: tuple[str, ...]) -> None:
    tree = PRESETS["tiny"].model_dump(mode="json")
    node = tree
    for part in path:
        node = node[part]
    node["colour_of_the_cover"] = 1
    with pytest.raises(DdmError, match=r"here\.json.*" + r"\.".join((*path, "colour_of_the_cover"))):
        parse(RunConfig, tree, "here.json")
    with pytest.raises(DdmError, match=r"here\.json.*colour_of_the_cover"):
        parse_json(RunConfig, json.dumps(tree), "here.json")


@given(st.text() | st.binary())
def test_any_text_parses_or_is_refused(text: str | bytes) -> None:
    try:
        parse_json(RunConfig, text, "here.json")
    except DdmError as error:
        assert "here.json" in str(error)  # noqa: PT017 - both outcomes are right


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        PRESETS["tiny"].train.steps = 3  # type: ignore[misc]


def test_alpha_is_the_given_weight_or_the_mode_s_own() -> None:
    for mode in IndicatorMode:
        assert TrainConfig(indicator=mode).alpha == DEFAULT_INDICATOR_WEIGHT[mode]
        assert TrainConfig(indicator=mode, indicator_weight=0.2).alpha == 0.2
    assert DEFAULT_INDICATOR_WEIGHT[IndicatorMode.LABELS] == 0.05, "the paper's"
