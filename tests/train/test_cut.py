"""Where the tree of micro-codes is cut into top codes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage

from ddm_rt.config import CodesConfig
from ddm_rt.errors import DdmError
from ddm_rt.train.codes.discover import cut

# Two modes on a line, and an outlier that lies farther from both than they from each other.
CENTROIDS = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [-20.0]])
SIZES = np.array([500, 400, 600, 200, 175, 27])  # the outlier holds 1.4 % of the images


def branches(config: CodesConfig, sizes: np.ndarray = SIZES, centroids: np.ndarray = CENTROIDS) -> list[int]:
    return cut(linkage(centroids, "ward"), sizes, centroids, config).tolist()


def test_an_outlier_is_no_mode_of_its_own() -> None:
    found = branches(CodesConfig(micro_codes=6, top_codes=2))
    assert found[0] == found[1] == found[2] == found[5]  # the outlier joins the nearer mode
    assert found[3] == found[4] != found[0]


def test_without_a_least_share_it_is_the_highest_split() -> None:
    found = branches(CodesConfig(micro_codes=6, top_codes=2, min_share=0.0))
    assert len(set(found[:5])) == 1
    assert found[5] != found[0]


def test_a_branch_of_just_the_least_share_is_one() -> None:
    sizes, centroids = np.array([50, 50, 25]), np.array([[0.0], [1.0], [9.0]])
    found = branches(CodesConfig(micro_codes=3, top_codes=2, min_share=0.2), sizes, centroids)
    assert found[0] == found[1] != found[2]


def test_an_outlier_joins_the_mode_whose_images_are_nearest() -> None:
    """The left mode's images lie at 0.2 and its micro-codes at 1, on either side of what makes it the nearer one."""
    sizes = np.array([900, 100, 500, 500, 10])
    centroids = np.array([[0.0, 0.0], [2.0, 0.0], [8.0, 0.0], [8.2, 0.0], [4.3, 20.0]])
    found = branches(CodesConfig(micro_codes=5, top_codes=2), sizes, centroids)
    assert found[0] == found[1] != found[2]
    assert found[4] == found[3] == found[2]


def test_too_few_branches_of_that_size_are_refused() -> None:
    with pytest.raises(DdmError, match=r"top_codes is 2.*min_share"):
        branches(CodesConfig(micro_codes=6, top_codes=2, min_share=0.45))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), leaves=st.integers(2, 24), share=st.floats(0, 0.3))
def test_every_code_has_a_branch_and_every_branch_its_share(data: st.DataObject, leaves: int, share: float) -> None:
    top_codes = data.draw(st.integers(2, leaves))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    centroids, sizes = rng.standard_normal((leaves, 3)), rng.integers(1, 1000, leaves)
    config = CodesConfig(micro_codes=leaves, top_codes=top_codes, min_share=share)
    try:
        found = cut(linkage(centroids, "ward"), sizes, centroids, config)
    except DdmError:
        return  # refused, with the reason
    assert sorted(set(found.tolist())) == list(range(top_codes))
    assert (np.bincount(found, weights=sizes) >= share * sizes.sum() - 1e-9).all()
