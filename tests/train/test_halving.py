"""Full tree halving: shares of codes by the tree and not by size, in codes.json, codes files and minibatches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import SHARE_ABS

from ddm_rt.config import CodesConfig, DataConfig, RunConfig
from ddm_rt.data import load
from ddm_rt.errors import DdmError
from ddm_rt.train.codes.classes import read_codes
from ddm_rt.train.codes.discover import describe, discover, halved
from ddm_rt.train.loop import Trainer
from ddm_rt.train.pixels import PixelSubject
from ddm_rt.train.run import train
from ddm_rt.train.trainee import Classes, Material

Make = Callable[..., RunConfig]
# Leaves 0 and 1 merge, then 2 joins them, then 3: halving gives 1/8, 1/8, 1/4, 1/2.
TREE = np.array([[0, 1, 0.1, 2], [2, 4, 0.2, 3], [3, 5, 0.3, 4]])
ASSIGNMENT = np.repeat([0, 1, 2, 3], [10, 20, 30, 40])


@pytest.mark.parametrize(
    ("top_of", "expected"),
    [
        ([0, 0, 0, 1], [0.25, 0.25, 0.5, 1.0]),
        ([0, 0, 1, 1], [0.5, 0.5, 1 / 3, 2 / 3]),  # a branch of two parts, as where an outlier joined it
    ],
)
def test_each_split_gives_half_to_each_side(top_of: list[int], expected: list[float]) -> None:
    leaves = halved(describe(ASSIGNMENT, np.array(top_of), "discovered").leaves, TREE)
    assert [leaf.share_in_top for leaf in leaves] == pytest.approx(expected, abs=SHARE_ABS)
    assert [leaf.size for leaf in leaves] == [10, 20, 30, 40]


def test_discovery_halves_where_it_is_told_to() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((120, 6)).astype(np.float32)
    config = CodesConfig(micro_codes=8, min_share=0.0, bootstraps=0)
    by_size, assignment = discover(features, config, seed=0)
    by_tree, again = discover(features, config.model_copy(update={"halving": True}), seed=0)
    assert (assignment == again).all()
    assert by_size.top_of == by_tree.top_of
    shares = np.bincount(by_tree.top_of, weights=[leaf.share_in_top for leaf in by_tree.leaves])
    assert shares == pytest.approx(1, abs=SHARE_ABS)
    # At even shares of the top codes each leaf has a power of a half.
    halvings = -np.log2([leaf.share_in_top for leaf in by_tree.leaves])
    assert halvings == pytest.approx(np.rint(halvings), abs=1e-9)


def test_minibatches_follow_the_shares(tiny: Make) -> None:
    config = tiny({"train.batch_size": 64})
    y = torch.from_numpy(np.repeat([0, 1, 2], [30, 2, 8]))
    shares = (0.2, 0.8, 1.0)
    classes = Classes(y, 3, (0, 0, 1), shares)
    trainer = Trainer(
        config, Material(torch.zeros(40, 4, 8, 8), classes, lambda: PixelSubject(config, classes.shared_of))
    )
    drawn = torch.cat([trainer.draw(torch.Generator().manual_seed(step)) for step in range(50)])
    counts = np.bincount(y[drawn].numpy(), minlength=3) / len(drawn)
    assert counts == pytest.approx([0.1, 0.4, 0.5], abs=0.03)  # of 3,200 draws
    assert len(set(drawn.tolist())) == 40, "every image can be drawn"


BAD = {
    "too few": ([0.5, 0.5], "field share_in_top has 2 entries for 3 codes"),
    "off the sum": ([0.5, 0.4, 1.0], "field share_in_top sums to 0.9 in top code 0; expected 1"),
    "above the sum": ([0.5, 0.5000011, 1.0], "field share_in_top sums to 1.0000011 in top code 0; expected 1"),
    "negative": ([1.5, -0.5, 1.0], "share_in_top.*less than or equal to 1"),
    "not a number": (["a", 0.5, 1.0], "share_in_top"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_shares_are_named(case: str, folder: Path, tmp_path: Path) -> None:
    shares, said = BAD[case]
    images = load(DataConfig(source=str(folder), image_size=16))
    path = tmp_path / "codes.json"
    path.write_text(json.dumps({"code": [i % 3 for i in range(40)], "top_code": [0, 0, 1], "share_in_top": shares}))
    with pytest.raises(DdmError, match=said):
        read_codes(path, images)


def test_shares_of_a_codes_file_reach_codes_json(tiny: Make, tmp_path: Path) -> None:
    path = tmp_path / "codes.json"
    tree: dict[str, Any] = {"code": [i % 3 for i in range(40)], "top_code": [0, 0, 1], "share_in_top": [0.9, 0.1, 1]}
    path.write_text(json.dumps(tree))
    run = train(tiny({"codes.source": str(path), "train.steps": 2}), tmp_path / "run")
    leaves = json.loads((run / "codes.json").read_bytes())["leaves"]
    assert [leaf["share_in_top"] for leaf in leaves] == [0.9, 0.1, 1.0]
