"""The fused attention kernel in Triton's interpreter (on a machine without a GPU) against the oracle.

bfloat16 is compiled by the tests of the ahead-of-time pack, but not run here: the interpreter multiplies it wrongly.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tolerances import DIRECTIONAL_REL, KERNEL_FP16_ABS, KERNEL_FP32_ABS
from torch import Tensor

from ddm_rt.kernels import dispatch
from ddm_rt.kernels.indicator_attention import indicator_attention, indicator_attention_reference, op, table

fused = pytest.importorskip("ddm_rt.kernels.indicator_attention.fused", reason="needs triton", exc_type=ImportError)

DEVICE = "cpu" if fused.INTERPRETED else "cuda"
# On a device the kernel takes no float32.
DTYPE, TOLERANCE = (torch.float32, KERNEL_FP32_ABS) if fused.INTERPRETED else (torch.float16, KERNEL_FP16_ABS)
interpreter_only = pytest.mark.skipif(not fused.INTERPRETED, reason="float32, or about the interpreter itself")
SMALL = table.Tile(16, 16, 4, 1)

# T and M of the specification's corners, with an N that no tile divides.
LENGTHS = [(1, 1, 1), (5, 16, 33), (16, 4, 64), (77, 4, 65), (256, 3, 7), (512, 15, 17)]

# The tiles follow from the head dim and the masks from the lengths. Slow: each head dim with each of the lengths.
SIZES = [
    pytest.param(dim, *lengths, marks=() if dim == 40 or lengths == LENGTHS[3] else pytest.mark.slow)
    for dim in table.HEAD_DIMS
    for lengths in LENGTHS
]


def inputs(
    batch: int, queries: int, text: int, indicator: int, heads: int, dim: int, dtype: torch.dtype = DTYPE
) -> list[Tensor]:
    """q, k, v, k_ind, v_ind, scale."""
    generator = torch.Generator().manual_seed(queries)
    lengths = (queries, text, text, indicator, indicator)
    tokens = [torch.randn((batch, n, heads, dim), generator=generator).to(dtype) for n in lengths]
    scale = torch.rand(batch, generator=generator) + 0.5
    return [x.to(DEVICE) for x in (*tokens, scale)]


def oracle(given: list[Tensor]) -> Tensor:
    """The reference in float64 of the same numbers."""
    return indicator_attention_reference(*(x.double() for x in given))


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel doesn't write is NaN."""
    empty: Callable[..., Tensor] = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(float("nan")))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [pytest.param(torch.float32, KERNEL_FP32_ABS, marks=interpreter_only), (torch.float16, KERNEL_FP16_ABS)],
    ids=str,
)
@pytest.mark.parametrize(("dim", "text", "indicator", "queries"), SIZES)
def test_equals_the_oracle(
    dim: int, text: int, indicator: int, queries: int, dtype: torch.dtype, tolerance: float
) -> None:
    given = inputs(1 + queries % 2, queries, text, indicator, 3 - queries % 3, dim, dtype)
    out = fused.indicator_attention_fused(*given)
    assert out.shape == given[0].shape
    assert out.dtype == dtype
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), oracle(given), rtol=0, atol=tolerance)


@pytest.mark.parametrize("tile", [(16, 16, 4, 1), (32, 64, 4, 2), (128, 128, 8, 2)], ids=str)
def test_the_tile_changes_no_meaning(tile: tuple[int, int, int, int]) -> None:
    given = inputs(2, 37, 45, 5, 3, 40)
    out = fused.indicator_attention_fused(*given, tile=table.Tile(*tile))
    torch.testing.assert_close(out.double(), oracle(given), rtol=0, atol=TOLERANCE)


def test_strided_inputs_change_no_bit() -> None:
    given = inputs(2, 9, 5, 4, 3, 16)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in given[:5]]
    scale = given[5].repeat_interleave(2)[::2]
    assert not strided[0].is_contiguous()
    assert not scale.is_contiguous()
    assert torch.equal(fused.indicator_attention_fused(*strided, scale), fused.indicator_attention_fused(*given))


@pytest.mark.parametrize("dim", [16, 40, 96])
def test_nothing_beyond_the_tensors_is_read(dim: int) -> None:
    """Each tensor is a view into memory that is NaN before and behind it."""

    def among_nan(x: Tensor) -> Tensor:
        margin = 64 * x.shape[-1]
        memory = torch.full((x.numel() + 2 * margin,), float("nan"), dtype=x.dtype, device=x.device)
        view = memory[margin:-margin].view(x.shape)
        return view.copy_(x)

    given = inputs(1, 19, 21, 3, 2, dim, torch.float16)
    out = fused.indicator_attention_fused(*(among_nan(x) for x in given))
    assert torch.equal(out, fused.indicator_attention_fused(*given))


@pytest.mark.parametrize("dim", [32, 80])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, about NaN
def test_an_image_is_the_same_alone_and_among_neighbours_of_nan(dim: int) -> None:
    """Its bits depend neither on the batch nor on another head; rows behind its keys are a neighbour's."""
    given = inputs(3, 21, 19, 5, 2, dim, torch.float16)
    together = fused.indicator_attention_fused(*given)
    for b in range(3):
        alone = fused.indicator_attention_fused(*(x[b : b + 1] for x in given))
        assert torch.equal(together[b : b + 1], alone)
        poisoned = [x.clone() for x in given]
        for x in poisoned:
            x[torch.arange(3) != b] = float("nan")
        assert torch.equal(fused.indicator_attention_fused(*poisoned)[b : b + 1], alone)
    for x in given[:5]:
        x[:, :, 1] = float("nan")
    assert torch.equal(fused.indicator_attention_fused(*given)[:, :, 0], together[:, :, 0])


def test_scale_zero_is_plain_attention_whatever_the_indicator_holds() -> None:
    given = inputs(2, 9, 5, 4, 2, 16, torch.float16)
    given[5][:] = 0
    plain = fused.indicator_attention_fused(*given)
    torch.testing.assert_close(plain.double(), oracle(given), rtol=0, atol=KERNEL_FP16_ABS)
    garbage = [*given[:3], given[3] * 1e4, given[4] * 1e4, given[5]]
    assert torch.equal(fused.indicator_attention_fused(*garbage), plain)


@pytest.mark.parametrize("name", ["q", "k", "v", "k_ind", "v_ind", "scale"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, about NaN
def test_nan_goes_where_the_oracle_lets_it(name: str) -> None:
    given = inputs(2, 5, 20, 4, 2, 16)
    given[5][1] = 0
    position = ["q", "k", "v", "k_ind", "v_ind", "scale"].index(name)
    given[position].view(-1)[-1] = float("nan")
    out = fused.indicator_attention_fused(*given, tile=SMALL)
    torch.testing.assert_close(out.double(), oracle(given), rtol=0, atol=TOLERANCE, equal_nan=True)
    assert out.isnan().any()


def test_logits_of_any_size_stay_finite() -> None:
    given = inputs(1, 5, 33, 2, 1, 16)
    given[0] *= 1e4
    out = fused.indicator_attention_fused(*given, tile=SMALL)
    torch.testing.assert_close(out.double(), oracle(given), rtol=0, atol=TOLERANCE)


def test_no_queries_is_an_empty_result() -> None:
    given = inputs(2, 0, 5, 4, 2, 16)
    assert fused.indicator_attention_fused(*given).shape == (2, 0, 2, 16)


@interpreter_only
def test_gradient_of_the_op_fits_the_fused_forward() -> None:
    """The op's backward recomputes through the reference; here it meets the kernel's own slope."""
    given = inputs(2, 9, 5, 3, 2, 40)
    leaves = [x.clone().requires_grad_() for x in given]
    weight = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    gradients = torch.autograd.grad((indicator_attention(*leaves) * weight).sum(), leaves)
    for i, gradient in enumerate(gradients):
        step = 2e-2 * gradient / gradient.norm()

        def loss(moved: Tensor, i: int = i) -> Tensor:
            out = fused.indicator_attention_fused(*given[:i], moved, *given[i + 1 :])
            return (out.double() * weight).sum()

        slope = (loss(given[i] + step) - loss(given[i] - step)) / (2 * step.double().norm())
        torch.testing.assert_close(slope, gradient.double().norm(), rtol=DIRECTIONAL_REL, atol=0)


@interpreter_only
def test_bfloat16_is_refused_in_the_interpreter() -> None:
    with pytest.raises(ValueError, match="interpreter multiplies bfloat16 matrices wrongly"):
        fused.indicator_attention_fused(*inputs(1, 5, 5, 4, 1, 16, torch.bfloat16))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1, 4, 513, 4, 1, 16), "text tokens is 513, not 1 to 512"),
        ((1, 4, 0, 4, 1, 16), "text tokens is 0"),
        ((1, 4, 5, 17, 1, 16), "indicator tokens is 17, not 1 to 16"),
        ((1, 4, 5, 4, 1, 48), "head dim 48 is not one of 16, 32, 40"),
        ((65536, 1, 1, 1, 1, 16), "batch times heads is 65536"),
    ],
)
def test_sizes_out_of_range_are_named(shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=f"fused indicator attention: {reason}"):
        fused.indicator_attention_fused(*inputs(*shape, torch.float16))


def test_mixed_types_are_named() -> None:
    q, *others = inputs(1, 4, 5, 4, 1, 16, torch.float16)
    with pytest.raises(ValueError, match="dtypes float16, float32 are mixed"):
        fused.indicator_attention_fused(q.float(), *others)


def test_tensors_of_two_devices_are_refused() -> None:
    *tensors, scale = inputs(1, 4, 5, 4, 1, 16, torch.float16)
    with pytest.raises(ValueError, match="not all tensors are on q's device"):
        fused.indicator_attention_fused(*tensors, scale.to("meta"))


def test_on_a_mock_device_the_op_takes_the_reference_where_the_kernel_refuses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(op, "_implementation", lambda: (fused.indicator_attention_fused, fused.refused))
    op._say.cache_clear()
    caplog.set_level("INFO", logger=op.__name__)
    given = inputs(2, 5, 5, 4, 2, 16, torch.float16)
    assert torch.equal(op._on_device(*given), fused.indicator_attention_fused(*given))
    assert not caplog.records
    wide = inputs(2, 5, 5, 4, 2, 24, torch.float16)
    for _ in range(2):
        assert torch.equal(op._on_device(*wide), indicator_attention_reference(*wide))
    (record,) = caplog.records
    assert "takes the reference: head dim 24 is not one of" in record.getMessage()


def test_without_triton_the_op_of_a_mock_device_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "load", lambda name: indicator_attention_reference)
    op._implementation.cache_clear()
    given = inputs(2, 5, 5, 4, 2, 16)
    try:
        assert torch.equal(op._on_device(*given), indicator_attention_reference(*given))
    finally:
        op._implementation.cache_clear()


def test_a_mock_device_without_a_row_takes_older_tiles_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(8, 0), (10, 3), (7, 5)][index])
    caplog.set_level("INFO", logger=fused.__name__)
    fused.architecture.cache_clear()
    try:
        assert [fused.architecture(index) for index in (0, 1, 1)] == ["sm_80", "sm_100", "sm_100"]
        with pytest.raises(ValueError, match="sm_75 is older than every architecture"):
            fused.architecture(2)
    finally:
        fused.architecture.cache_clear()
    (record,) = caplog.records
    assert record.getMessage() == "indicator attention: sm_103 has no tiles of its own and takes those of sm_100"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_on_a_device_the_op_is_the_kernel(dtype: torch.dtype) -> None:
    for dim in table.HEAD_DIMS:
        given = inputs(2, 65, 77, 4, 3, dim, dtype)
        out = indicator_attention(*given)
        assert torch.equal(out, fused.indicator_attention_fused(*given))
        torch.testing.assert_close(out.double(), oracle(given), rtol=2 * torch.finfo(dtype).eps, atol=KERNEL_FP16_ABS)


@interpreter_only
def test_offsets_beyond_32_bits() -> None:
    """The second image's queries begin at element 2³¹; memory that isn't touched costs nothing.

    The grid is cut to the first queries of both images.
    """
    queries, dim = 2**27, 16
    memory = torch.from_numpy(np.empty(queries * dim + 16 * dim, np.float16))
    few, *others = inputs(2, 16, 5, 3, 1, dim, torch.float16)
    held = [memory[b * queries * dim :][: few[b].numel()].view(few[b].shape) for b in range(2)]
    for b in range(2):
        held[b].copy_(few[b])
    # The result takes the queries' place: a program has read its queries by then.
    sizes = (queries, 5, 3, 1)
    fused._kernel[(1, 2, 1)](memory, *others, *sizes, memory, HEAD_DIM=dim, BLOCK_M=16, BLOCK_N=16)
    out = torch.stack(held)
    torch.testing.assert_close(out.double(), oracle([few, *others]), rtol=0, atol=KERNEL_FP16_ABS)
