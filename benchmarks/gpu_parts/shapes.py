"""Which sizes are tried: Stable Diffusion 1.5's cross-attention layers at 512 pixels, and odd ones for numerics."""

from typing import NamedTuple


class Attention(NamedTuple):
    """Sizes of one call of indicator attention: q [B,N,H,D], keys of text [B,T,H,D] and indicator [B,M,H,D]."""

    batch: int
    queries: int
    heads: int
    head_dim: int
    text: int
    indicator: int


HEADS, TEXT, INDICATOR = 8, 77, 4
ROWS = (2, 16, 32)  # of a call: 1, 8 and 16 guided images
THROUGHPUT_BATCHES = (1, 2, 4, 8, 16, 32)  # images of a request to TensorRT

# (queries N, head dim D) -> how many of the UNet's 16 cross-attention layers have them.
SD15_LAYERS: dict[tuple[int, int], int] = {(4096, 40): 5, (1024, 80): 5, (256, 160): 5, (64, 160): 1}
# A dry run's: small, and 16 layers as well.
TINY_LAYERS: dict[tuple[int, int], int] = {(64, 40): 8, (16, 80): 8}


def sd15(batch: int, layers: dict[tuple[int, int], int] = SD15_LAYERS) -> list[Attention]:
    """The layers' shapes at one batch size."""
    return [Attention(batch, n, HEADS, d, TEXT, INDICATOR) for n, d in layers]


def odd(head_dims: tuple[int, ...]) -> list[Attention]:
    """Per head dim: ragged sizes, single tokens, and the largest T and M."""
    sizes = ((2, 77, 3, 77, 4), (1, 1, 1, 1, 1), (3, 200, 2, 5, 16), (1, 130, 5, 512, 3), (2, 64, 8, 256, 7))
    return [Attention(b, n, h, d, t, m) for d in head_dims for b, n, h, t, m in sizes]


def bytes_moved(shape: Attention, element_size: int = 2) -> int:
    """Each input read once and the output written once: the least that any implementation moves."""
    b, n, h, d, t, m = shape
    return (2 * n + 2 * t + 2 * m) * b * h * d * element_size + 4 * b


def flops(shape: Attention) -> int:
    """Multiplications and additions of the four products."""
    b, n, h, d, t, m = shape
    return 4 * b * h * n * (t + m) * d
