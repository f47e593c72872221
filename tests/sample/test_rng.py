"""Philox against its published vectors, and the properties that sampling relies on."""

import math
import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S
from scipy import stats
from tolerances import NOISE_ULP

from ddm_rt.errors import DdmError
from ddm_rt.kernels import philox
from ddm_rt.sample.loop.noise import MAX_SEED, Stream, derive, derive_range, normal, philox4x32

SEEDS = st.integers(0, MAX_SEED)


def words(*values: int) -> tuple[np.ndarray, ...]:
    return tuple(np.array([value], np.uint64) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123 1.14, kat_vectors, philox4x32 10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert tuple(int(word[0]) for word in philox4x32(words(*counter), words(*key))) == expected


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    """The round function in plain integers."""
    for _ in range(10):
        p0, p1 = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [p1 >> 32 ^ counter[1] ^ key[0], p1 % 2**32, p0 >> 32 ^ counter[3] ^ key[1], p0 % 2**32]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, row=st.integers(0, 2**32 - 1), stream=st.sampled_from(Stream))
def test_noise_equals_the_definition(seed: int, row: int, stream: Stream) -> None:
    found = normal(np.array([seed], np.uint64), row, stream, (3, 5, 2))[0].ravel()
    expected = []
    for block in range(8):
        u = [(r + 0.5) / 2**32 for r in scalar_philox([block, row, stream, 0], [seed % 2**32, seed >> 32])]
        for radial, angular in (u[:2], u[2:]):
            radius = math.sqrt(-2 * math.log(radial))
            expected += [radius * math.cos(2 * math.pi * angular), radius * math.sin(2 * math.pi * angular)]
    np.testing.assert_array_max_ulp(found, np.array(expected[:30], np.float32), maxulp=NOISE_ULP)


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 8, 8), (3, 7, 5)])
def test_noise_does_not_depend_on_the_batch(shape: tuple[int, ...]) -> None:
    seeds = np.random.default_rng(0).integers(0, MAX_SEED, 13, np.uint64, endpoint=True)
    rows = np.arange(13)
    whole = normal(seeds, rows, Stream.STEP, shape)
    assert whole.shape == (13, *shape)
    assert whole.dtype == np.float32
    for i in range(13):
        assert normal(seeds[i : i + 1], i, Stream.STEP, shape)[0].tobytes() == whole[i].tobytes()
    order = np.random.default_rng(1).permutation(13)
    assert normal(seeds[order], rows[order], Stream.STEP, shape).tobytes() == whole[order].tobytes()


def test_a_second_thread_changes_nothing() -> None:
    """Nor after a fork, which has no threads but its own."""
    seeds = np.arange(64, dtype=np.uint64)
    alone = normal(seeds, 3, Stream.STEP, (16, 8, 8))
    assert np.array_equal(normal(seeds, 3, Stream.STEP, (16, 8, 8), threads=2), alone)
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as forked:
        assert np.array_equal(forked.submit(normal, seeds, 3, Stream.STEP, (16, 8, 8), 2).result(), alone)


def test_a_busy_second_thread_is_not_waited_for() -> None:
    seeds, done = np.arange(64, dtype=np.uint64), threading.Event()
    occupied = philox._second_thread().submit(done.wait, PATIENCE_S)
    try:
        busy = normal(seeds, 3, Stream.STEP, (16, 8, 8), threads=2)
        assert not occupied.done()
    finally:
        done.set()
    assert np.array_equal(busy, normal(seeds, 3, Stream.STEP, (16, 8, 8)))


def test_a_thread_that_outlives_the_main_one_still_has_noise() -> None:
    """Python's pools take nothing more by then."""
    script = (
        "import threading, numpy as np\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from ddm_rt.kernels.philox import normal\n"
        "pool = ThreadPoolExecutor(1)\n"
        "def late():\n"
        "    try:\n"
        "        while True: pool.submit(int).result()\n"
        "    except RuntimeError: pass\n"
        "    print(normal(np.arange(64, dtype=np.uint64), 0, 0, (16, 8, 8), 2).shape)\n"
        "threading.Thread(target=late).start()\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (said.stdout, said.returncode) == ("(64, 16, 8, 8)\n", 0), said.stderr


def test_a_larger_image_begins_with_the_smaller_ones_noise() -> None:
    seeds = np.array([5], np.uint64)
    small, large = normal(seeds, 0, Stream.INITIAL, (7,)), normal(seeds, 0, Stream.INITIAL, (4000,))
    assert small[0].tobytes() == large[0, :7].tobytes()


def test_streams_rows_and_seeds_differ() -> None:
    seeds = np.array([0, 1, 2**32, MAX_SEED], np.uint64)
    draws = [normal(seeds, row, stream, (64,)) for row in (0, 1) for stream in Stream]
    flat = np.concatenate(draws)
    assert len(np.unique(flat, axis=0)) == len(flat)
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 0.6  # 64 numbers each: five standard errors


def test_noise_is_standard_normal() -> None:
    values = normal(np.arange(256, dtype=np.uint64), 3, Stream.STEP, (4, 16, 16)).ravel().astype(np.float64)
    n = len(values)
    assert abs(values.mean()) < 5 / math.sqrt(n)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((values**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert stats.kstest(values, "norm").pvalue > 1e-3
    pairs = values.reshape(-1, 2)  # cosine and sine of one angle
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 5 / math.sqrt(len(pairs))


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, index=st.integers(1, 2**32 - 1))
def test_derive_equals_the_definition(seed: int, index: int) -> None:
    r0, r1, _, _ = scalar_philox([index, 0, 0, 1], [seed % 2**32, seed >> 32])
    assert derive(seed, index) == r0 + (r1 << 32)
    assert derive(seed, 0) == seed


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, start=st.integers(0, 2**32 - 9), n=st.integers(0, 9))
def test_seeds_derived_together_are_those_derived_one_by_one(seed: int, start: int, n: int) -> None:
    for indices in (range(start, start + n), range(n)):
        assert derive_range(seed, indices) == [derive(seed, i) for i in indices]


def test_derived_seeds_differ() -> None:
    assert len({derive(seed, index) for seed in range(3) for index in range(500)}) == 1500


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(DdmError, match="seed"):
        derive(seed, 0)


@pytest.mark.parametrize("index", [-1, 2**32])
def test_index_out_of_range(index: int) -> None:
    with pytest.raises(DdmError, match="index"):
        derive(0, index)
