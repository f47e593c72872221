"""The embedding library's core against Python's, to the last bit: tables, noise, quotas, groups, posteriors, text."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from core_probe import CoreProbe, agree, place, python
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import VECTORS, digest, full_table

from ddm_rt.config import PredictionType, SamplerName, ScheduleConfig
from ddm_rt.errors import DdmError
from ddm_rt.kernels.philox import normal
from ddm_rt.sample.balance.assignment import shuffled
from ddm_rt.sample.balance.leave_alone import names_one
from ddm_rt.sample.balance.quota import Quota, TreeQuota
from ddm_rt.sample.balance.quota import parse_target as parse_top_target
from ddm_rt.sample.calibration import posterior
from ddm_rt.sample.calibration.groups import Attribute, check, parse_target
from ddm_rt.sample.loop.noise import derive
from ddm_rt.schedule import SPACINGS, Schedule

STORED = json.loads(VECTORS.read_text())
STEPS = (1, 2, 3, 4, 7, 10, 25, 50, 137, 1000)
SEEDS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("number", range(len(STORED)))
def test_the_golden_vectors_are_given_here_too(core: CoreProbe, number: int) -> None:
    vector = STORED[number]
    found, want = core(vector["op"], **vector["asked"]), vector["want"]
    assert found == want or ("error" in want and place(found["error"]) == place(want["error"]))


def check_tables(core: CoreProbe, config: ScheduleConfig, cases: Sequence[dict[str, Any]]) -> None:
    schedule = Schedule.from_config(config)

    asked = [case | {"eta": repr(case.get("eta", 0.0))} for case in cases]
    stored = {"schema_version": 1, **config.model_dump(), "alphas_cumprod": schedule.alphas_cumprod.tolist()}
    found = core("tables", schedule=json.dumps(stored), tables=asked)
    for case, there in zip(cases, found, strict=True):
        assert agree(there, python(lambda case=case: digest(full_table(schedule, **case)))), (config, case)  # type: ignore[misc]


@pytest.mark.parametrize("kind", PredictionType)
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("spacing", [None, "leading", "linspace", "trailing", "karras"])
def test_step_tables_are_pythons_to_the_bit(core: CoreProbe, spacing: Any, betas: Any, kind: PredictionType) -> None:
    config = ScheduleConfig(beta_schedule=betas, prediction_type=kind, timestep_spacing=spacing)
    cases: list[dict[str, Any]] = [
        {"sampler": sampler.value, "num_steps": n}
        for sampler in SamplerName
        for n in STEPS
        if spacing in (None, *SPACINGS[sampler])
    ]
    cases += [{"sampler": "ddim", "num_steps": n, "eta": 0.3, "clip": (-1.0, 1.0)} for n in STEPS]
    check_tables(core, config, cases)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tables_of_any_schedule(core: CoreProbe, data: st.DataObject) -> None:
    config = data.draw(
        st.builds(
            ScheduleConfig,
            num_train_timesteps=st.integers(2, 300),
            beta_start=st.floats(1e-5, 0.01),
            beta_end=st.floats(0.011, 0.05),
            beta_schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
            prediction_type=st.sampled_from(PredictionType),
            timestep_spacing=st.sampled_from([None, "leading", "linspace", "trailing", "karras"]),
            steps_offset=st.integers(0, 1),
            set_alpha_to_one=st.booleans(),
        )
    )
    try:
        Schedule.from_config(config)
    except DdmError:
        return
    case = st.fixed_dictionaries(
        {
            "sampler": st.sampled_from([sampler.value for sampler in SamplerName]),
            "num_steps": st.integers(-1, 60) | st.just(config.num_train_timesteps),
            "eta": st.sampled_from([0.0, 0.5, 1.0, -1.0, math.nan]),
            "clip": st.none() | st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
            "guidance_interval": st.none() | st.tuples(st.floats(-0.1, 1), st.floats(0, 1.1)),
            "noise_times": st.none() | st.tuples(st.floats(-0.1, 1), st.floats(0, 1.1)),
        }
    )
    check_tables(core, config, data.draw(st.lists(case.flatmap(with_cache), min_size=5, max_size=20)))


def with_cache(case: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The same, and the same with a cache, which mostly fits."""
    last = max(case["num_steps"] - 1, 0)
    steps = st.sets(st.integers(0, last)).map(lambda found: sorted({0, last, *found})) | st.lists(st.integers(-1, last))
    row = st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4)
    caches = steps.flatmap(
        lambda found: st.fixed_dictionaries(
            {"steps": st.just(found), "rows": st.lists(row, min_size=len(found), max_size=len(found)) | st.just([])}
        )
    )
    return st.just(case) | caches.map(lambda cache: case | {"cache": cache})


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(0, 2**32 - 1), st.sampled_from([0, 1]), st.integers(1, 2000))
def test_noise_is_pythons_within_one_unit_in_the_last_place(
    core: CoreProbe, seed: int, row: int, stream: int, size: int
) -> None:
    found = np.array(core("noise", seed=seed, row=row, stream=stream, size=size), np.float32)
    want = normal(np.array([seed], np.uint64), row, stream, (size,))[0]
    apart = np.abs(want.view(np.int32).astype(np.int64) - found.view(np.int32))
    assert apart.max() <= 1


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50), st.integers(0, 200))
def test_seeds_and_shuffles_are_pythons(core: CoreProbe, seed: int, indices: list[int], n: int) -> None:
    assert core("seeds", seed=seed, indices=[0, *indices]) == [derive(seed, index) for index in (0, *indices)]
    assert core("order", seed=seed, n=n) == shuffled(seed, n)


WEIGHTS = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 1 / 3, 1e-9, 5e-324, math.pi / 4])


@st.composite
def shares(draw: st.DrawFn, most: int = 12) -> list[float]:
    """Most sum to 1 as exactly as floating point can."""
    raw = draw(st.lists(WEIGHTS, min_size=1, max_size=most))
    total = math.fsum(raw) or 1.0
    if draw(st.integers(0, 9)):
        raw = [value / total for value in raw]
    return raw


def texts(values: Sequence[float]) -> list[str]:
    return [repr(value) for value in values]


def restored(quota: Quota, counts: list[int] | None, n: int) -> dict[str, Any]:
    if counts is not None:
        quota.restore(counts)
    draws = quota.assign(n)
    return {"weights": quota.weights, "draws": draws, "counts": quota.counts}


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_quotas_are_pythons(core: CoreProbe, data: st.DataObject) -> None:
    weights = data.draw(shares() | st.lists(st.floats() | WEIGHTS, max_size=3))
    n = data.draw(st.integers(0, 200))
    found = core("quota", weights=texts(weights), n=n)
    assert agree(found, python(lambda: restored(Quota(weights), None, n)))
    if "counts" not in found:
        return
    # Where draws lead to; and near it, where they may not. C counts up to 2**62.
    counts = [max(-1, count + data.draw(st.sampled_from([0, 0, 0, 1, -1, 2**60]))) for count in found["counts"]]
    for given_counts in (found["counts"], counts, counts[1:]):
        want = python(lambda counts=given_counts: restored(Quota(weights), counts, 20))  # type: ignore[misc]
        assert agree(core("quota", weights=texts(weights), n=20, counts=given_counts), want)


def test_what_was_given_back_is_restored_in_a_tree(core: CoreProbe) -> None:
    tops, leaves = [0.3, 0.0, 0.7], [{4: 0.25, 0: 0.75}, {1: 1.0}, {2: 0.5, 3: 0.5}]
    listed = [[[code, share] for code, share in branch.items()] for branch in leaves]
    for n in (0, 1, 7, 100):
        quota = TreeQuota(tops, leaves)
        quota.assign(n)
        counts = list(quota.counts.items())
        there = core("tree", tops=texts(tops), leaves=listed, n=50, counts=counts)
        assert there["draws"] == [code for code, _ in quota.assign(50)]
        assert dict(there["counts"]) == quota.counts
    changes: list[Callable[[dict[int, int]], Any]] = [
        lambda counts: counts.pop(4),
        lambda counts: counts.update({9: 0}),
        lambda counts: counts.update({2: counts[2] + 5}),
        lambda counts: counts.update({1: 1}),
        lambda counts: counts.update({0: -1}),
    ]
    for change in changes:
        changed = dict(counts)
        change(changed)
        want = python(lambda changed=changed: TreeQuota(tops, leaves).restore(changed))  # type: ignore[misc]
        assert agree(core("tree", tops=texts(tops), leaves=listed, n=1, counts=list(changed.items())), want)
        assert "error" in want
    for bad in ([*listed, []], [listed[0], listed[0], listed[2]], [[], *listed[1:]]):
        trees = [dict(branch) for branch in bad]
        want = python(lambda trees=trees: TreeQuota(tops, trees))  # type: ignore[misc]
        assert agree(core("tree", tops=texts(tops), leaves=bad, n=1), want)


NUMBERS = st.sampled_from(
    [".5", "0.25", "1", "1e-1", "nan", "-1", "half", "", "inf", "5e-1\u00a0", "+.5", "+-1", "0x1"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["code:0", "code:1", " code:2", "code:9", "x", "\u00a0code:1"]), NUMBERS)))
def test_targets_over_top_codes_are_pythons(core: CoreProbe, parts: list[tuple[str, str]]) -> None:
    target = ",".join(f"{name}={number}" for name, number in parts)
    assert agree(core("target", target=target, tops=3), python(lambda: list(parse_top_target(target, 3))))


ATTRIBUTES = {"gender": ["female", "male"], "race": ["asian", "black", "white"], "hair": ["dark", "white"]}
WORDS = (
    "gender",
    "race",
    "female",
    "male",
    "asian",
    "white",
    "uniform",
    ":",
    "&",
    "=",
    ",",
    ";",
    " ",
    ".5",
    "1",
    "0.25",
)
TARGETS = (
    "male=.3, female=0.7",
    "race:white=.5,asian=.5;male=1",
    "asian&male=.25,female&race:white=.75",
    "asian&male=.25,female&black=.75",
    "race&gender:uniform",
    "female=.5,male=.6",
    "female=inf,male=.5",
    "female=-.5,male=1.5",
    "gender:asian=1",
    "white=1",
    "female=1;gender:uniform",
    "female&male=1",
    "gender&gender:uniform",
)


def parsed(target: str, attributes: dict[str, list[str]]) -> list[Any]:
    known = check([Attribute(name=name, groups=tuple(groups)) for name, groups in attributes.items()], "attributes")
    return [[str(part), list(part.shares)] for part in parse_target(target, known)]


@pytest.mark.parametrize("target", TARGETS)
def test_targets_over_groups_are_pythons(core: CoreProbe, target: str) -> None:
    here = python(lambda: parsed(target, ATTRIBUTES))
    assert agree(core("group_target", target=target, attributes=ATTRIBUTES), here)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=20).map("".join) | st.text("femal=,;:&.15? ", max_size=30))
def test_any_text_as_a_target_over_groups(core: CoreProbe, target: str) -> None:
    here = python(lambda: parsed(target, ATTRIBUTES))
    assert agree(core("group_target", target=target, attributes=ATTRIBUTES), here)


@pytest.mark.parametrize(
    "attributes",
    [
        *({}, {"code": ["a", "b"]}, {"a": ["b"]}, {"a": ["b", "b"]}, {"a": []}, {"a": ["b", ""]}, {"a": ["b", "c=d"]}),
        *({"a": ["b", " c"]}, {"a\nb": ["c", "d"]}, {"a": ["b\u2003", "c"]}, {"\u00e4": ["\u0378", "'"]}),
    ],
    ids=str,
)
def test_groups_that_cannot_be_named(core: CoreProbe, attributes: dict[str, list[str]]) -> None:
    here = python(lambda: parsed("b=1", attributes))
    assert agree(core("group_target", target="b=1", attributes=attributes), here)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_posteriors_are_pythons_to_the_bit(core: CoreProbe, data: st.DataObject) -> None:
    groups = data.draw(st.integers(2, 20))
    row = st.lists(st.integers(0, 40), min_size=groups, max_size=groups)
    counts = np.array(data.draw(st.lists(row, min_size=1, max_size=9)))
    prior = posterior.fitted_prior(counts)
    assert core("posterior", counts=counts.tolist()) == {
        "mean": posterior.mean(counts).tolist(),
        "fitted": prior,
        "fitted_mean": posterior.mean(counts, prior).tolist(),
        "variance": posterior.variance(counts).tolist(),
    }


def parse_float(text: str) -> str | None:
    try:
        return repr(float(text))
    except ValueError:
        return None


FLOATS = st.text("0123456789.eE+-naif \u00a0", max_size=12) | st.floats().map(repr)
# Characters that every side's Unicode assigns.
TEXT = st.text("aZ '\"\\\n\t\x85\u00a0\u00e9\u200b\u3000\u533b\U0001f600/.", max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOATS, max_size=40), st.lists(TEXT, max_size=40))
def test_text_is_read_as_python_does(core: CoreProbe, floats: list[str], texts: list[str]) -> None:
    found = core("text", floats=floats, texts=texts)
    assert found["floats"] == [parse_float(text) for text in floats]
    assert [one[:2] for one in found["texts"]] == [[text.strip(), text.isprintable()] for text in texts]


@settings(max_examples=60, deadline=None)
@given(
    st.text("aM\u00e4\u00df \u00a0.-'\u0130\uff21_", max_size=12), st.lists(st.text("am\u00e4sS \uff21i", max_size=4))
)
def test_words_are_found_where_python_finds_them(core: CoreProbe, prompt: str, words: list[str]) -> None:
    words = [word for word in words if word.strip()]
    assert core("leave_alone", prompt=prompt, words=words) == names_one(prompt, words)


def test_json_of_python_is_json_here(core: CoreProbe) -> None:
    """What is written is what Python writes, to the byte: ledgers are keyed by such text."""
    values = [
        0.1,
        1e22,
        5e-324,
        -0.0,
        2**63,
        -(2**63),
        2**64 - 1,
        "\U0001f642\u20ac\x7f\x1f",
        [],
        {},
        None,
        True,
    ]
    asked = [json.dumps(value).encode().hex() for value in values]
    assert core("json", texts=asked) == [json.dumps(value) for value in values]
