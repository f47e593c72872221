"""factors.json: read, accepted, and made codes of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ddm_rt.config import DataConfig
from ddm_rt.data import ImageSet
from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.quota import TreeQuota
from ddm_rt.train.codes.classes import read_codes
from ddm_rt.train.factors import record
from ddm_rt.train.factors.candidates import Candidate
from ddm_rt.train.factors.crossing import _drawn_order, cross


def of_table(counts: list[list[int]]) -> record.FactorsFile:
    """Two candidates whose sides occur together so often."""
    pairs = np.array([(a, b) for a, row in enumerate(counts) for b, n in enumerate(row) for _ in range(n)])
    pairs = np.random.default_rng(0).permutation(pairs)
    labels: list[NDArray[np.int64]] = [pairs[:, 0], pairs[:, 1]]
    candidates = [Candidate(label, "pixels", f"branch {i}", 0.5, 0.1, 0.9) for i, label in enumerate(labels)]
    names = [f"{i}.png" for i in range(len(pairs))]
    return record.FactorsFile(
        data=DataConfig(), names_sha256=record.names_sha256(names), seed=0, factors=record.described(candidates, 0)
    )


def images(count: int) -> ImageSet:
    return ImageSet(np.zeros((count, 8, 8, 1), np.uint8), None, tuple(f"{i}.png" for i in range(count)))


NAMES = {1: ("heel", ("flat", "high")), 2: ("colour", ("dark", "light", "red"))}


def accepted(counts: list[list[int]], cells: record.Cells = "auto") -> record.FactorsFile:
    return record.accept(of_table(counts), [1, 2], NAMES, cells)


def margins(counts: list[list[int]], cells: record.Cells = "auto") -> list[NDArray[np.float64]]:
    """The share of each value of each factor with uniform top codes."""
    codes, _ = cross(accepted(counts, cells).chosen, cells, "here")
    share = np.array([leaf.share_in_top for leaf in codes.leaves]) / codes.num_top_codes
    return [np.bincount(factor.value_of, weights=share) for factor in codes.factors]


def test_a_full_product_gives_each_cell_the_same_share() -> None:
    codes, assignment = cross(accepted([[80, 40, 30], [20, 30, 40]]).chosen, "auto", "here")
    assert codes.rule["cells"] == "product"
    assert [leaf.share_in_top for leaf in codes.leaves] == pytest.approx([1 / 3] * 6)
    assert [factor.name for factor in codes.factors] == ["heel", "colour"]
    assert np.bincount(assignment).tolist() == [leaf.size for leaf in codes.leaves]
    assert codes.factors[0].value_of == codes.top_of


def test_rare_and_missing_cells_are_raked_to_even_margins() -> None:
    for counts in ([[300, 80, 40], [60, 20, 3]], [[80, 40, 30], [60, 30, 0]]):
        for shares in margins(counts):
            assert shares == pytest.approx(np.full(len(shares), 1 / len(shares)), abs=1e-6)
    codes, _ = cross(accepted([[80, 40, 30], [60, 30, 0]]).chosen, "auto", "here")
    assert (codes.num_codes, codes.rule["cells"]) == (5, "margins")
    with pytest.raises(DdmError, match="1 of 6 combinations have no image"):
        cross(accepted([[80, 40, 30], [60, 30, 0]]).chosen, "product", "here")


def test_a_short_request_sees_every_value() -> None:
    codes, _ = cross(accepted([[80, 40, 30], [20, 30, 40]]).chosen, "auto", "here")
    leaves: list[dict[int, float]] = [{}, {}]
    for leaf in codes.leaves:
        leaves[leaf.top_code][leaf.code] = leaf.share_in_top
    drawn = [code for code, _ in TreeQuota([0.5, 0.5], leaves).assign(6)]
    heels, colours = ([factor.value_of[code] for code in drawn] for factor in codes.factors)
    assert sorted(heels[:2]) == [0, 1]
    assert len(set(colours[:3])) == 3
    assert sorted(drawn) == list(range(6))


@pytest.mark.parametrize("sizes", [(2, 4), (2, 3), (3, 3), (2, 2, 2), (2, 4, 3), (4, 2, 2)])
def test_cells_are_drawn_in_turns_of_every_factor(sizes: tuple[int, ...]) -> None:
    present = np.array(list(np.ndindex(*sizes))).T
    order = _drawn_order(present, sizes)
    assert sorted(order) == list(range(present.shape[1]))
    per_top = present[:, order].reshape(len(sizes), sizes[0], -1)
    drawn = per_top.transpose(0, 2, 1).reshape(len(sizes), -1)  # tops in turn, each in its order
    for factor, size in enumerate(sizes):
        assert len(set(drawn[factor, :size])) == size


def test_training_takes_the_file_for_its_own_images_alone(tmp_path: Path) -> None:
    found, path = accepted([[80, 40, 30], [20, 30, 40]]), tmp_path / "factors.json"
    path.write_text(found.model_dump_json())
    codes, assignment = read_codes(path, images(240))
    assert codes.origin == "factors:factors.json"
    assert len(assignment) == 240
    with pytest.raises(DdmError, match=r"made of 240 images of .*; the 239 images here are others"):
        read_codes(path, images(239))
    path.write_text(of_table([[80, 40, 30], [20, 30, 40]]).model_dump_json())
    with pytest.raises(DdmError, match="no factor is accepted"):
        read_codes(path, images(240))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accepted": [1, 1]}, "field accepted: 1; expected different numbers from 1 to 2"),
        ({"accepted": [3]}, "field accepted: 3"),
        ({"accepted": [1], "factors.0.name": None}, "factor 1 is accepted; it needs a name"),
        ({"factors.1.name": "heel"}, "the accepted factors need different names"),
        ({"factors.1.name": "code"}, "none of them code"),
        ({"factors.0.sizes": [1, 239]}, "field label: its sides have other sizes"),
        ({"factors.0.number": 2}, "expected the numbers 1 to 2 in order"),
        ({"factors.0.name": "a:b"}, "field factors.0.name"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    tree = json.loads(accepted([[80, 40, 30], [20, 30, 40]]).model_dump_json())
    for field, value in change.items():
        node: Any = tree
        *parents, last = field.split(".")
        for name in parents:
            node = node[int(name) if isinstance(node, list) else name]
        node[last] = value
    path = tmp_path / "factors.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(DdmError, match=message):
        record.read_factors(path)


def test_unnamed_candidates_get_a_plain_name_and_unknown_ones_are_refused() -> None:
    found = of_table([[80, 40, 30], [20, 30, 40]])
    plain = record.accept(found, [2], {})
    assert plain.chosen[0].name == "factor2"
    assert plain.chosen[0].values == ("a", "b", "c")
    assert plain.factors[0].name is None
    with pytest.raises(DdmError, match="there is no candidate 3"):
        record.accept(found, [3], {})
    with pytest.raises(DdmError, match="candidate 1 has a name, but --accept doesn't name it"):
        record.accept(found, [2], NAMES)


def test_what_a_candidate_moves_is_told_by_the_others_shares() -> None:
    first, second = of_table([[100, 0, 0], [0, 50, 50]]).factors
    assert first.moves["2"][0] == pytest.approx(0.5)
    assert second.moves["1"] == pytest.approx((0.5, 2 / 3))
    assert first.overlap["2"] == pytest.approx(second.overlap["1"])
    assert all(len(side) == record.TYPICAL for factor in (first, second) for side in factor.examples)
