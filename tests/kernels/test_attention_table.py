"""The tile table: complete, and clear about what it doesn't hold. What its tiles compile to is tested with the pack."""

import itertools

import pytest

from ddm_rt.kernels.indicator_attention import table

EVERY = list(itertools.product(table.HEAD_DIMS, table.DTYPES, table.ARCHITECTURES))


def test_each_shipped_tile_has_alternatives_of_legal_sizes() -> None:
    for key in EVERY:
        tiles = table.tactics(*key)
        assert tiles[0] == table.tile(*key)
        assert 2 <= len(tiles) == len(set(tiles)) <= 4, key
        for tile in tiles:
            assert tile.block_m in (16, 32, 64, 128)
            assert tile.block_n in (16, 32, 64, 128)
            assert tile.num_warps in (2, 4, 8)
            assert 1 <= tile.num_stages <= 4


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ((48, "fp16", "sm_80"), "head_dim 48 has no tile; choices: 16, 32, 40, 64, 80, 96, 128, 160"),
        ((64, "fp32", "sm_80"), "dtype 'fp32' has no tile; choices: fp16, bf16"),
        ((64, "fp16", "sm_75"), "architecture 'sm_75' has no tile; choices: sm_80, sm_86"),
    ],
)
def test_what_is_not_in_the_table_is_named_with_the_choices(key: tuple[int, str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table.tile(*key)


@pytest.mark.parametrize(
    ("capability", "name"), [(80, "sm_80"), (87, "sm_86"), (90, "sm_90"), (103, "sm_100"), (121, "sm_120")]
)
def test_a_device_without_a_row_takes_the_nearest_older_one(capability: int, name: str) -> None:
    assert table.nearest(capability) == name


def test_a_device_older_than_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="sm_75 is older than every architecture of the table: sm_80"):
        table.nearest(75)
