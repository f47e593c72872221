"""The loop against a plain one over single images, its batching, and the probe for batch sizes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fake_engine import LATENT_SHAPE, FakeEngine, Quirk
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pairs import in_pairs

from ddm_rt.config import SamplerName, ScheduleConfig
from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.sample.loop.batch_sizes import CANDIDATES, concat, probe, split, take
from ddm_rt.sample.loop.guidance import Branches
from ddm_rt.sample.loop.noise import Stream, normal
from ddm_rt.sample.loop.slots import Job, Slots
from ddm_rt.schedule import Schedule, StepTable, step_table

Float32 = NDArray[np.float32]

SEEDS = np.array([3, 2**63, 11, 7, 5], np.uint64)
CODES = (-1, 0, 2, 1, 0)


def table_of(sampler: SamplerName = SamplerName.DDIM, **options: Any) -> StepTable:
    return step_table(Schedule.from_config(ScheduleConfig()), sampler, 5, clip=(-1.0, 1.0), **options)


def condition(engine: FakeEngine, codes: tuple[int, ...]) -> dict[str, Float32]:
    context, scale = np.zeros((1, 3, 5), np.float32), np.ones(1, np.float32)
    return concat(engine, [engine.conditioner(context, np.array([code]), scale, {}) for code in codes])


def branches_of(engine: FakeEngine, branches: int) -> list[dict[str, Float32]]:
    """Null code, code, and the code after it."""
    choices = [(-1,) * len(CODES), CODES, tuple(code + 1 for code in CODES)]
    return [condition(engine, codes) for codes in choices[:branches]]


def one_by_one(table: StepTable, branches: int, scales: Float32) -> Float32:
    """Every image alone and every branch alone."""
    engine = FakeEngine()
    conds = branches_of(engine, branches)
    images = []
    for j in range(len(SEEDS)):
        one = slice(j, j + 1)
        x = normal(SEEDS[one], 0, Stream.INITIAL, LATENT_SHAPE) * np.float32(table.init_scale)
        x0 = np.zeros_like(x)
        for i, row in enumerate(table.rows()):
            t = table.timesteps[i : i + 1]
            outputs = [engine.denoiser(x, t, {"token": cond["token"][one]}) for cond in conds]
            x, x0 = guided_step(outputs, scales[one], row[None], x, x0, SEEDS[one], np.array([i]))
        images.append(x)
    return np.concatenate(images)


TABLES = [table_of(), table_of(eta=1.0), *(table_of(name) for name in SamplerName)]


@pytest.mark.parametrize(
    ("table", "branches", "buckets"),
    in_pairs(TABLES, (1, 2, 3), ((1,), (4,), (1, 2, 4, 8), (64,))),
    ids=lambda value: f"{value.sampler.value}, {value.f.any()}" if isinstance(value, StepTable) else str(value),
)
def test_equals_images_made_one_by_one(table: StepTable, branches: int, buckets: tuple[int, ...]) -> None:
    engine = FakeEngine()
    scales = np.linspace(0, 4, 5 * (branches - 1), dtype=np.float32).reshape(5, -1)
    if branches == 1:
        scales = np.empty((5, 0), np.float32)
    x = normal(SEEDS, 0, Stream.INITIAL, LATENT_SHAPE) * np.float32(table.init_scale)
    conds = branches_of(engine, branches)

    def gather(wanted: Sequence[tuple[int, int]]) -> dict[str, Any]:
        return concat(engine, [take(engine, conds[branch], np.array([image])) for branch, image in wanted])

    slots = Slots(engine, gather, buckets)
    jobs = []
    for image, (seed, own) in enumerate(zip(SEEDS.tolist(), scales.tolist(), strict=True)):
        needed: Any = Branches(tuple((branch, image) for branch in range(branches)), tuple(own))
        jobs.append(Job(seed, needed))
    slots.admit(table, x, jobs)
    while len(slots):
        _, found = slots.tick()
    assert found.tobytes() == one_by_one(table, branches, scales).tobytes()
    assert set(engine.denoised) <= set(buckets)


@given(rows=st.integers(1, 300), buckets=st.sets(st.integers(1, 64), min_size=1).map(sorted))
def test_split_covers_every_row_once_in_order(rows: int, buckets: list[int]) -> None:
    calls = split(rows, buckets)
    assert all(len(index) in buckets for index in calls)
    flat = np.concatenate(calls)
    np.testing.assert_array_equal(flat[:rows], np.arange(rows))
    assert len(flat) - len(calls[-1]) < rows  # only the last call is filled up
    assert ((flat >= 0) & (flat < rows)).all()


def test_split_fills_up_where_little_is_wasted() -> None:
    assert [len(index) for index in split(60, CANDIDATES)] == [64]
    assert [len(index) for index in split(40, CANDIDATES)] == [32, 8]
    assert [len(index) for index in split(5, (64,))] == [64]
    assert [len(index) for index in split(3, (1, 2, 4))] == [4]  # a quarter, exactly


@pytest.mark.parametrize(
    ("quirk", "expected"),
    [
        ("none", (CANDIDATES,)),
        ("size 1", ((2, 4, 8, 16, 32, 64), (1,))),
        ("batch size", ((64,), (32,), (16,), (8,), (4,), (2,), (1,))),
        ("position", ((1,),)),
        ("last position", ((1,),)),
        ("neighbours", ((1,),)),
    ],
)
def test_probe_tells_the_sizes_apart_that_give_unequal_bits(
    quirk: Quirk, expected: tuple[tuple[int, ...], ...]
) -> None:
    engine = FakeEngine(quirk)
    cond = condition(engine, (-1, 0, 1))
    assert probe(engine, cond, 3, LATENT_SHAPE, table_of().timesteps) == expected


def test_probe_limits_the_size_of_calls() -> None:
    engine = FakeEngine()
    cond = condition(engine, (-1,))
    assert probe(engine, cond, 1, (4, 128, 128), table_of().timesteps) == ((1, 2, 4),)
    assert probe(engine, cond, 1, (4, 512, 512), table_of().timesteps) == ((1,),)


@pytest.mark.parametrize(("max_batch", "most"), [(4, None), (None, 4), (4, 8), (8, 4)])
def test_probe_keeps_to_the_engines_limit_and_the_callers(max_batch: int | None, most: int | None) -> None:
    engine = FakeEngine()
    engine.max_batch = max_batch
    sizes = probe(engine, condition(engine, (-1,)), 1, LATENT_SHAPE, table_of().timesteps, most)
    assert sizes == ((1, 2, 4),)
    assert max(engine.denoised) == 4


def test_take_and_concat_keep_every_name() -> None:
    engine = FakeEngine()
    one = {"a": np.arange(3.0), "b": np.arange(6.0).reshape(3, 2)}
    both = concat(engine, [one, one])
    assert {name: value.shape for name, value in both.items()} == {"a": (6,), "b": (6, 2)}
    np.testing.assert_array_equal(take(engine, both, np.array([5, 0]))["a"], [2, 0])
