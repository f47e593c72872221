"""Images that come and go between steps end with the bits that they have alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from fake_engine import LATENT_SHAPE, FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ddm_rt.config import SamplerName, ScheduleConfig
from ddm_rt.sample.loop.batch_sizes import concat
from ddm_rt.sample.loop.guidance import Branches
from ddm_rt.sample.loop.noise import Stream, normal
from ddm_rt.sample.loop.slots import Job, Slots
from ddm_rt.schedule import Schedule, StepTable, step_table

SCHEDULE = Schedule.from_config(ScheduleConfig())
TABLES = tuple(
    step_table(SCHEDULE, sampler, steps, eta=eta, clip=(-1.0, 1.0))
    for sampler, steps, eta in (
        (SamplerName.DDIM, 3, 0.0),
        (SamplerName.DDIM, 5, 1.0),
        (SamplerName.EULER, 4, 0.0),
        (SamplerName.DPMPP_2M, 6, 0.0),
        (SamplerName.DDPM, 2, 0.0),
        (SamplerName.LCM, 4, 0.0),
    )
)
SCALES = (0.0, 1.5, 4.0)
ANY = tuple(range(1, 65))  # as many rows in a call as there are

images = st.tuples(
    st.integers(0, 2**64 - 1),
    st.sampled_from(range(len(TABLES))),
    st.lists(st.integers(-1, 3), min_size=1, max_size=3),
    st.sampled_from(SCALES),
)
Image = tuple[int, int, list[int], float]


def slots_of(engine: FakeEngine, buckets: Sequence[int] = ANY) -> Slots:
    context, scale = np.zeros((1, 3, 5), np.float32), np.ones(1, np.float32)

    def gather(wanted: Sequence[Any]) -> dict[str, Any]:
        return concat(engine, [engine.conditioner(context, np.array([code]), scale, {}) for code in wanted])

    return Slots(engine, gather, tuple(buckets))


def admit(slots: Slots, image: Image) -> int:
    seed, number, codes, scale = image
    table: StepTable = TABLES[number]
    x = normal(np.array([seed], np.uint64), 0, Stream.INITIAL, LATENT_SHAPE) * np.float32(table.init_scale)
    branches: Any = Branches(tuple(codes), (scale,) * (len(codes) - 1))
    return slots.admit(table, x, [Job(seed, branches)])[0]


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
    there = [admit(slots, (seed, 0, [0], 1.5)) for seed in range(4)]
    other = slots.split()
    assert slots.numbers + other.numbers == tuple(there)
    assert admit(other, (9, 0, [0], 1.5)) not in there
    assert admit(slots, (9, 0, [0], 1.5)) not in there


def test_what_is_previewed_does_not_depend_on_neighbours() -> None:
    image, other = (3, 1, [0, 2], 1.5), (9, 3, [1], 0.0)
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
