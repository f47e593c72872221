"""Noise from torch's operations against numpy's, which `tests/sample/test_rng.py` holds to the definition."""

import numpy as np
import pytest
import torch
from tolerances import NOISE_ULP

from ddm_rt.kernels import philox
from ddm_rt.kernels.philox import STEP_STREAM

SEEDS = np.array([0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 0x243F6A8885A308D3], np.uint64)
ROWS = np.array([0, 1, 2, 999, 2**31 - 1, 2**31, 2**32 - 1, 7])


def test_words_in_signed_integers_are_those_in_unsigned_ones() -> None:
    blocks = np.arange(50)[None]
    unsigned = philox.philox4x32(
        (blocks.astype(np.uint64), ROWS.astype(np.uint64)[:, None], np.uint64([[1]]), np.uint64([[0]])),
        philox.key_of(SEEDS[:, None]),
    )
    block = torch.from_numpy(blocks)
    signed = philox.philox4x32(
        (block, torch.from_numpy(ROWS)[:, None], torch.ones_like(block), torch.zeros_like(block)),
        philox.key_of(torch.from_numpy(SEEDS.view(np.int64))[:, None]),
    )
    for one, other in zip(signed, unsigned, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.astype(np.int64))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shape", [(1,), (3, 7, 5), (4, 32, 32)])
def test_elementwise_noise_is_numpys(shape: tuple[int, ...], device: str) -> None:
    want = philox.normal(SEEDS, ROWS, STEP_STREAM, shape)
    seeds, rows = torch.from_numpy(SEEDS.view(np.int64)).to(device), torch.from_numpy(ROWS).to(device)
    like = torch.zeros((len(SEEDS), *shape), device=device)
    found = philox.normal_elementwise(like, seeds, rows, STEP_STREAM)
    assert found.device.type == device
    assert found.dtype == torch.float32
    np.testing.assert_array_max_ulp(found.cpu().numpy(), want, maxulp=NOISE_ULP)


def test_noise_of_tensors_on_the_cpu_has_numpys_bits() -> None:
    like = torch.zeros((len(SEEDS), 3, 7, 5))
    found = philox.normal_like(like, torch.from_numpy(SEEDS.view(np.int64)), torch.from_numpy(ROWS), 0)
    assert found.numpy().tobytes() == philox.normal(SEEDS, ROWS, 0, (3, 7, 5)).tobytes()
