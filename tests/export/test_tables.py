"""Step tables as files: the numbers that sampling uses, and what isn't a table."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddm_rt.bundle import Bundle, copy_bundle
from ddm_rt.cli import options
from ddm_rt.config import SamplerName
from ddm_rt.errors import DdmError
from ddm_rt.export.tables import COLUMNS, add_tables, make_tables, tree_of
from ddm_rt.schedule import step_table


def test_a_bundle_s_tables_are_those_that_it_is_sampled_with(tmp_path: Path) -> None:
    bundle = copy_bundle(Bundle.load("digits"), tmp_path / "digits")
    wanted = [(SamplerName.DDIM, 25), (SamplerName.DPMPP_2M, 8)]
    made = make_tables(bundle.schedule, bundle.config.sampling, wanted)
    assert add_tables(bundle, made).bundle_id == bundle.bundle_id
    bundle = Bundle.load(tmp_path / "digits")
    for name, (sampler, steps) in zip(("ddim-25", "dpmpp2m-8"), wanted, strict=True):
        bundle.check_directory(f"tables/{name}")
        tree = json.loads((bundle.path / "tables" / name / "table.json").read_bytes())
        table = step_table(bundle.schedule, sampler, steps, clip=bundle.config.sampling.clip)
        assert (tree["sampler"], tree["num_steps"]) == (sampler, steps)
        assert np.array_equal(np.array(tree["rows"], np.float32), table.rows())
        assert np.array_equal(np.array(tree["timesteps"], np.float32), table.timesteps)
        assert np.float32(tree["init_scale"]) == np.float32(table.init_scale)
        assert tree["columns"] == list(COLUMNS)
        assert len(tree["rows"][0]) == len(COLUMNS)


def test_without_a_clip_the_limits_are_the_largest_numbers() -> None:
    bundle = Bundle.load("digits")
    sampling = bundle.config.sampling.model_copy(update={"clip": None})
    (table,) = make_tables(bundle.schedule, sampling, [(SamplerName.EULER, 3)])
    rows = np.array(json.loads(json.dumps(tree_of(table), allow_nan=False))["rows"], np.float32)
    assert np.isfinite(rows).all()
    assert np.array_equal(rows[:, :-2], table.rows()[:, :-2])


@given(st.lists(st.tuples(st.sampled_from(SamplerName), st.integers(0, 5000)), min_size=1, max_size=4))
def test_samplers_and_steps_are_read(wanted: list[tuple[SamplerName, int]]) -> None:
    text = ", ".join(f"{sampler.value}:{steps}" for sampler, steps in wanted)
    assert options.samplers(text) == wanted


@given(st.text(max_size=20).filter(lambda text: ":" not in text))
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(DdmError, match="--tables"):
        options.samplers(text)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_steps_are_refused(steps: int) -> None:
    bundle = Bundle.load("digits")
    with pytest.raises(DdmError, match="num_steps"):
        make_tables(bundle.schedule, bundle.config.sampling, [(SamplerName.DDIM, steps)])
