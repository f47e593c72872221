"""Code discovery finds modes of unequal size, says what it found, and refuses what can't be had."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tolerances import SHARE_ABS

from ddm_rt.config import CodesConfig, DataConfig, RunConfig
from ddm_rt.data import ImageSet, load
from ddm_rt.errors import DdmError
from ddm_rt.train.codes.classes import read_codes
from ddm_rt.train.codes.discover import EXEMPLARS, describe, discover, spectral_embedding

CONFIG = CodesConfig(micro_codes=6, top_codes=2, bootstraps=3)


def blobs(large: int, small: int, spread: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit features of two round blobs of equal spread, and which blob each is from."""
    rng = np.random.default_rng(seed)
    origin = np.repeat([0, 1], [large, small])
    centre = np.eye(2, 8)[origin]
    points = centre + spread * rng.standard_normal((large + small, 8))
    order = rng.permutation(len(points))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    return unit[order].astype(np.float32), origin[order]


@pytest.mark.parametrize("spread", [0.02, 0.25], ids=["apart", "touching"])
def test_two_modes_at_four_to_one_are_found(spread: float) -> None:
    features, origin = blobs(240, 60, spread)
    codes, assignment = discover(features, CONFIG, seed=0)
    top = np.array(codes.top_of)[assignment]
    for k in (0, 1):
        inside = origin[top == k]
        assert max((inside == 0).mean(), (inside == 1).mean()) >= 0.98
    assert (top == 0).sum() > (top == 1).sum(), "top codes are numbered from the largest down"
    assert (top == 1).sum() == pytest.approx(60, abs=3)


def test_the_same_features_and_seed_give_the_same_codes() -> None:
    features, _ = blobs(80, 20, 0.2)
    first, again = discover(features, CONFIG, seed=5), discover(features, CONFIG, seed=5)
    assert first[0] == again[0]
    assert (first[1] == again[1]).all()


@settings(deadline=None, max_examples=15)
@given(
    large=st.integers(12, 60),
    small=st.integers(8, 30),
    micro=st.integers(2, 9),
    top=st.integers(2, 4),
    seed=st.integers(0, 5),
)
def test_what_is_said_of_the_codes_agrees_with_the_assignment(
    large: int, small: int, micro: int, top: int, seed: int
) -> None:
    features, _ = blobs(large, small, 0.3, seed)
    # One image of 21 is less than the default least share of a branch, and such a tree is refused.
    config = CodesConfig(micro_codes=max(micro, top), top_codes=top, min_share=0, bootstraps=0, neighbours=4)
    codes, assignment = discover(features, config, seed)
    assert assignment.shape == (large + small,)
    assert codes.num_codes == config.micro_codes
    assert codes.num_top_codes == top
    for leaf in codes.leaves:
        assert leaf.size == (assignment == leaf.code).sum() > 0
    for k in range(top):
        shares = [leaf.share_in_top for leaf in codes.leaves if leaf.top_code == k]
        assert sum(shares) == pytest.approx(1, abs=SHARE_ABS)
    sizes = [sum(leaf.size for leaf in codes.leaves if leaf.top_code == k) for k in range(top)]
    assert sizes == sorted(sizes, reverse=True)
    for code, exemplars in enumerate(codes.exemplars):
        assert set(assignment[list(exemplars)]) == {code}
        assert len(set(exemplars)) == len(exemplars) == min(EXEMPLARS, codes.leaves[code].size)
    assert len(codes.tree) == codes.num_codes - 1
    assert codes.stability_ari == ()
    assert codes.rule == config.model_dump(mode="json", exclude={"source"})


@pytest.mark.parametrize("bootstraps", [0, 1, 4])
def test_stability_has_one_figure_per_bootstrap(bootstraps: int) -> None:
    features, _ = blobs(120, 30, 0.1)
    codes, _ = discover(features, CONFIG.model_copy(update={"bootstraps": bootstraps}), seed=0)
    assert len(codes.stability_ari) == bootstraps
    assert all(score > 0.9 for score in codes.stability_ari), "well-separated modes are found again"


def test_each_bootstrap_is_another_sample() -> None:
    features, _ = blobs(60, 40, 0.7)  # modes that hardly are any: each sample finds others
    codes, _ = discover(features, CONFIG, seed=0)
    assert len(set(codes.stability_ari)) == CONFIG.bootstraps


def test_exemplars_are_the_images_nearest_to_their_code_s_middle() -> None:
    features, _ = blobs(80, 40, 0.3)
    config = CONFIG.model_copy(update={"bootstraps": 0})
    codes, assignment = discover(features, config, seed=0)
    embedding = spectral_embedding(features, config, seed=0)
    for code, exemplars in enumerate(codes.exemplars):
        members = np.flatnonzero(assignment == code)
        distance = np.linalg.norm(embedding[members] - embedding[members].mean(axis=0), axis=1)
        shown = np.isin(members, exemplars)
        assert distance[shown].max() <= distance[~shown].min(initial=np.inf)


@pytest.mark.parametrize("images", [2, 5, 6])
def test_more_codes_than_images_are_refused(images: int) -> None:
    features, _ = blobs(images - 1, 1, 0.2)
    with pytest.raises(DdmError, match=rf"codes\.micro_codes is 6, but there are only {images} images"):
        discover(features, CONFIG, seed=0)


def test_fewer_clusters_than_codes_are_refused() -> None:
    features, _ = blobs(5, 5, 0.3)  # 15 neighbours of 10 images: everyone is everyone's neighbour
    with pytest.raises(DdmError, match=r"codes\.micro_codes is 2, but the 10 images form only 1 clusters"):
        discover(features, CodesConfig(micro_codes=2, bootstraps=0), seed=0)


def test_describe_counts() -> None:
    codes = describe(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 0]), origin="discovered")
    assert [(leaf.code, leaf.top_code, leaf.size, leaf.share_in_top) for leaf in codes.leaves] == [
        (0, 0, 2, 2 / 5),
        (1, 1, 1, 1.0),
        (2, 0, 3, 3 / 5),
    ]


@pytest.fixture
def four(tmp_path: Path, folder: Path) -> ImageSet:
    images = load(DataConfig(source=str(folder), image_size=16))
    return ImageSet(images.images[:4], None, images.names[:4])


@pytest.mark.parametrize(
    ("tree", "top_of"),
    [
        ({"code": [0, 1, 1, 0]}, (0, 1)),
        ({"code": [0, 1, 2, 0], "top_code": [1, 0, 1]}, (1, 0, 1)),
    ],
)
def test_codes_of_someone_else(tmp_path: Path, four: ImageSet, tree: dict[str, Any], top_of: tuple[int, ...]) -> None:
    path = tmp_path / "given.json"
    path.write_text(json.dumps(tree))
    codes, assignment = read_codes(path, four)
    assert assignment.tolist() == tree["code"]
    assert codes.top_of == top_of
    assert codes.origin == "file:given.json"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("", "Invalid JSON"),
        ("[0, 1, 1, 0]", "object"),
        ("{}", "field code: Field required"),
        ('{"code": []}', "field code"),
        ('{"code": "0110"}', "field code"),
        ('{"code": [0, 1, 1]}', "3 entries for 4 images"),
        ('{"code": [[0, 1], [1, 0]]}', r"field code\.0"),
        ('{"code": [0, 2, 2, 0]}', "every number from 0 on; there are 2"),
        ('{"code": [0, -1, 1, 0]}', r"field code\.1"),
        ('{"code": [0, 0.5, 1, 0]}', r"field code\.1"),
        ('{"code": [0, 1, 1, 0], "top": [0, 1]}', "field top: "),
        ('{"code": [0, 1, 1, 0], "top_code": [0, 2]}', "top_code must use every number"),
        ('{"code": [0, 1, 1, 0], "top_code": [-1, 0]}', r"field top_code\.0"),
        ('{"code": [0, 1, 1, 0], "top_code": [0]}', "1 entries for 2 codes"),
        ('{"code": [0, 1, 1, 99999999999999999999]}', r"field code\.3"),
    ],
)
def test_a_bad_codes_file_is_named(tmp_path: Path, four: ImageSet, content: str | None, said: str) -> None:
    path = tmp_path / "given.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DdmError, match=rf"codes\.source .*given\.json.*({said})"):
        read_codes(path, four)


@settings(deadline=None, max_examples=100)
@given(
    tree=st.fixed_dictionaries(
        {"code": st.lists(st.integers(-2, 5) | st.floats() | st.none(), max_size=5)},
        optional={"top_code": st.lists(st.integers(-2, 4), max_size=5) | st.text(max_size=3)},
    )
)
def test_any_codes_file_is_read_or_refused(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any_codes.json"
    path.write_text(json.dumps(tree))
    images = ImageSet(np.zeros((4, 8, 8, 1), np.uint8), None, ("a", "b", "c", "d"))
    try:
        codes, assignment = read_codes(path, images)
    except DdmError:
        return
    assert sum(leaf.size for leaf in codes.leaves) == len(assignment) == 4


def test_the_codes_field_takes_a_file(tmp_path: Path, tiny: Callable[..., RunConfig], folder: Path) -> None:
    from ddm_rt.runtime import Codes
    from ddm_rt.train.run import train

    path = tmp_path / "labels.json"
    kinds = load(DataConfig(source=str(folder), image_size=16)).labels or ()
    path.write_text(json.dumps({"code": [int(kind == "down") for kind in kinds]}))
    run = train(tiny({"codes.source": str(path), "train.steps": 2}), tmp_path / "run")
    codes = Codes.model_validate_json((run / "codes.json").read_bytes())
    assert codes.origin == "file:labels.json"
    assert [leaf.size for leaf in codes.leaves] == [30, 10]
