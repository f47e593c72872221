"""Images that come and go between steps end with the bits that they have alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fake_engine import LATENT_SHAPE, FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ddm_rt.config import SamplerName, ScheduleConfig
from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.kernels.projected_guidance import projected_guidance
from ddm_rt.sample.loop.batch_sizes import concat
from ddm_rt.sample.loop.guidance import Branches, guided_steps
from ddm_rt.sample.loop.noise import Stream, normal
from ddm_rt.sample.loop.slots import Job, Slots
from ddm_rt.schedule import Schedule, StepTable, step_table

SCHEDULE = Schedule.from_config(ScheduleConfig())
TABLES = tuple(
    replace(step_table(SCHEDULE, sampler, steps, eta=eta, clip=(-1.0, 1.0)), guided=guided_steps(steps, interval))
    for sampler, steps, eta, interval in (
        (SamplerName.DDIM, 3, 0.0, None),
        (SamplerName.DDIM, 5, 1.0, None),
        (SamplerName.EULER, 4, 0.0, None),
        (SamplerName.DPMPP_2M, 6, 0.0, None),
        (SamplerName.DDPM, 2, 0.0, None),
        (SamplerName.LCM, 4, 0.0, None),
        (SamplerName.DDIM, 5, 1.0, (0.2, 0.8)),
        (SamplerName.DPMPP_2M, 6, 0.0, (0.5, 1.0)),
        (SamplerName.DDPM, 4, 0.0, (0.0, 0.5)),
    )
)
SCALES = (0.0, 1.5, 4.0)
ANY = tuple(range(1, 65))  # as many rows in a call as there are

images = st.tuples(
    st.integers(0, 2**64 - 1),
    st.sampled_from(range(len(TABLES))),
    st.lists(st.integers(-1, 3), min_size=1, max_size=3),
    st.sampled_from(SCALES),
    st.sampled_from([None, (0.5, 0.0), (20.0, 0.25)]),
)
Apg = tuple[float, float] | None
Image = tuple[int, int, list[int], float, Apg]


def slots_of(engine: FakeEngine, buckets: Sequence[int] = ANY) -> Slots:
    context, scale = np.zeros((1, 3, 5), np.float32), np.ones(1, np.float32)

    def gather(wanted: Sequence[Any]) -> dict[str, Any]:
        return concat(engine, [engine.conditioner(context, np.array([code]), scale, {}) for code in wanted])

    return Slots(engine, gather, tuple(buckets))


def admit(slots: Slots, image: Image) -> int:
    seed, number, codes, scale, apg = image
    table: StepTable = TABLES[number]
    x = normal(np.array([seed], np.uint64), 0, Stream.INITIAL, LATENT_SHAPE) * np.float32(table.init_scale)
    branches: Any = Branches(tuple(codes), (scale,) * (len(codes) - 1))
    return slots.admit(table, x, [Job(seed, branches, apg)])[0]


def alone(image: Image) -> NDArray[np.float32]:
    slots = slots_of(FakeEngine())
    admit(slots, image)
    while len(slots):
        _, samples = slots.tick()
    return np.asarray(samples)


@given(
    wanted=st.lists(st.tuples(st.integers(0, 6), images), min_size=1, max_size=12),
    dropped=st.sets(st.integers(0, 11)),
    buckets=st.sampled_from([ANY, (1,), (1, 2, 4, 8), (4,)]),
)
def test_an_image_is_the_same_alone_and_among_others(
    wanted: list[tuple[int, Image]], dropped: set[int], buckets: tuple[int, ...] | None
) -> None:
    engine = FakeEngine()
    slots = slots_of(engine, buckets)
    names: dict[int, int] = {}  # number in the slots -> in `wanted`
    found: dict[int, bytes] = {}
    for tick in range(40):
        for i, (start, image) in enumerate(wanted):
            if start == tick:
                names[admit(slots, image)] = i
        if tick == 3:
            slots.drop({number for number, i in names.items() if i in dropped})
        rows = slots.rows
        engine.denoised.clear()
        numbers, samples = slots.tick()
        assert sum(engine.denoised) >= rows
        if samples is not None:
            found |= {names[number]: each.tobytes() for number, each in zip(numbers, samples, strict=True)}
    assert not len(slots)
    gone = {i for i, (start, (_, table, *_)) in enumerate(wanted) if start <= 3 < start + TABLES[table].num_steps}
    gone &= dropped
    assert found.keys() == set(range(len(wanted))) - gone
    for i, content in found.items():
        assert content == alone(wanted[i][1]).tobytes()


@given(wanted=st.lists(images, min_size=1, max_size=8), ticks=st.lists(st.integers(0, 3), max_size=3))
def test_images_that_part_end_the_same(wanted: list[Image], ticks: list[int]) -> None:
    """Slots split in halves again and again, each half going on at its own time."""
    parts = [slots_of(FakeEngine(), (1, 2, 4, 8))]
    names = {admit(parts[0], image): i for i, image in enumerate(wanted)}
    found: dict[int, bytes] = {}

    def tick(slots: Slots) -> None:
        numbers, samples = slots.tick()
        if samples is not None:
            found.update((names[number], each.tobytes()) for number, each in zip(numbers, samples, strict=True))

    for count in ticks:
        for slots in tuple(parts):
            before = slots.numbers
            parts.append(slots.split())
            assert slots.numbers + parts[-1].numbers == before
            for _ in range(count):
                tick(slots)
    for slots in parts:
        while len(slots):
            tick(slots)
    assert found.keys() == set(range(len(wanted)))
    for i, content in found.items():
        assert content == alone(wanted[i]).tobytes()


def test_an_image_that_joins_after_a_split_has_a_number_of_its_own() -> None:
    slots = slots_of(FakeEngine())
    there = [admit(slots, (seed, 0, [0], 1.5, None)) for seed in range(4)]
    other = slots.split()
    assert slots.numbers + other.numbers == tuple(there)
    assert admit(other, (9, 0, [0], 1.5, None)) not in there
    assert admit(slots, (9, 0, [0], 1.5, None)) not in there


def test_what_is_previewed_does_not_depend_on_neighbours() -> None:
    image, other = (3, 1, [0, 2], 1.5, None), (9, 3, [1], 0.0, None)
    alone, among = slots_of(FakeEngine()), slots_of(FakeEngine())
    number = admit(alone, image)
    admit(among, other)
    among.tick()
    same = admit(among, image)
    for _ in range(2):
        alone.tick()
        among.tick()
    (found,), x0 = alone.previewed({number: {2}})
    (there,), also = among.previewed({same: {2}})
    assert (found, there) == (number, same)
    assert np.array_equal(x0, also)
    assert alone.previewed({number: {1, 3}}) == ((), None)


def by_hand(image: Image) -> tuple[NDArray[np.float32], int]:
    """The image of a loop of its own, step by step, and the rows that its denoiser was given."""
    seed, number, codes, scale, apg = image
    table, engine = TABLES[number], FakeEngine()
    context, one = np.zeros((1, 3, 5), np.float32), np.ones(1, np.float32)
    x = normal(np.array([seed], np.uint64), 0, Stream.INITIAL, LATENT_SHAPE) * np.float32(table.init_scale)
    x0 = x
    for i, row in enumerate(table.rows()):
        own = codes if table.guided[i] else codes[-1:]
        conds = [engine.conditioner(context, np.array([code]), one, {}) for code in own]
        outputs = [engine.denoiser(x, table.timesteps[i : i + 1], cond) for cond in conds]
        scales = np.full((1, len(own) - 1), scale, np.float32)
        if apg is not None and len(own) > 1:
            outputs = [projected_guidance(outputs, np.concatenate([scales, np.array([apg], np.float32)], axis=1))]
            scales = scales[:, :0]
        x, x0 = guided_step(outputs, scales, row[None], x, x0, np.array([seed], np.uint64), np.array([i]))
    return x, sum(engine.denoised)


@given(images)
def test_an_image_is_what_a_loop_of_its_own_gives(image: Image) -> None:
    want, rows = by_hand(image)
    assert alone(image).tobytes() == want.tobytes()
    guided = int(TABLES[image[1]].guided.sum())
    assert rows == TABLES[image[1]].num_steps + guided * (len(image[2]) - 1)


def test_steps_without_guidance_cost_no_rows_of_the_other_branches() -> None:
    engine = FakeEngine()
    slots = slots_of(engine)
    for seed in range(3):
        admit(slots, (seed, 6, [-1, 2], 1.5, None))
    rows = []
    while len(slots):
        rows.append(slots.rows)
        slots.tick()
    assert rows == engine.denoised == [3, 6, 6, 6, 3]
