"""Codes of a training set as files for `codes.source`: true labels, 16 codes, few-label codes, tree halving."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt import data
from ddm_rt.config import CodesConfig, FeatureConfig
from ddm_rt.train.codes.contrastive import contrastive_features, together
from ddm_rt.train.codes.discover import discover
from ddm_rt.train.codes.patches import patch_features
from ddm_rt.train.codes.probe import MIN_PER_CLASS, Labels, probe
from faces_parts.methods import FEATURE_SETS, Method
from faces_parts.sets import BiasedSet, Faces

# For drawings of heads that all look ahead: little rotation, mirrored, no change of strokes.
_PLAIN: dict[str, Any] = {
    "rotation": 8.0,
    "shear": 0.1,
    "elastic": 0.05,
    "translate": 0.1,
    "scale": 0.15,
    "thickness": False,
    "flip": True,
}
FEATURES = {
    "plain": FeatureConfig(**_PLAIN),
    "colour jitter": FeatureConfig(**_PLAIN, colour=0.6),
}
PATCHES = "patches"
SEED = 0


def features(train: Faces, name: str, cache: Path) -> NDArray[np.float32]:
    """Features [N,D] of the set `name`, from the cache where they are there."""
    path = cache / f"{name.replace(' ', '_')}.npy"
    if not path.is_file():
        x = data.to_model(train.images)
        found = patch_features(x, SEED) if name == PATCHES else contrastive_features(x, FEATURES[name], SEED)
        cache.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft.npy")
        np.save(draft, found)
        draft.rename(path)
    stored: NDArray[np.float32] = np.load(path)
    return stored


def every_feature(train: Faces, cache: Path) -> NDArray[np.float32]:
    """The feature sets side by side, unit vectors again."""
    joined = np.concatenate([features(train, name, cache) for name in FEATURE_SETS], axis=1)
    return np.asarray(joined / np.linalg.norm(joined, axis=1, keepdims=True), np.float32)


def make(train: Faces, what: BiasedSet, method: Method, cache: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The codes file, and what should be recorded about it. Labels are read where the method has some."""
    if method.kind == "oracle":
        return {"code": train.labels(what.attribute).tolist()}, {}
    if method.kind == "few-label":
        return _few_label(train, what, method, cache)
    if method.kind == "halving":
        config = CodesConfig(micro_codes=method.count, top_codes=2, min_share=0.0, bootstraps=0, halving=True)
        codes, assignment = discover(features(train, method.features, cache), config, SEED)
        shares = [leaf.share_in_top for leaf in codes.leaves]
        return {"code": assignment.tolist(), "top_code": list(codes.top_of), "share_in_top": shares}, {}
    config = CodesConfig(micro_codes=16, top_codes=16, min_share=0.0, bootstraps=0)
    codes, assignment = discover(every_feature(train, cache), config, SEED)
    # Every code is a top code of its own: weights are given to codes, not to branches.
    return {"code": np.array(codes.top_of)[assignment].tolist()}, {}


def _few_label(train: Faces, what: BiasedSet, method: Method, cache: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`count` images drawn at random are labelled; a draw that lacks two images of some group is drawn again."""
    rng = np.random.default_rng([method.count, method.draw])
    truth = train.labels(what.attribute)
    while True:
        index = np.sort(rng.choice(len(train), method.count, replace=False))
        if np.bincount(truth[index], minlength=len(what.groups)).min() >= MIN_PER_CLASS:
            break
    # Classes in the order of the groups, as code k is class k.
    labels = Labels(index.astype(np.int64), truth[index], what.groups, "")
    codes, assignment = probe(probe_features(train, cache), labels, SEED)
    hits = [float((assignment[truth == k] == k).mean()) for k in range(len(what.groups))]
    return {"code": assignment.tolist()}, codes.rule | {"recall_per_group": hits}


def probe_features(train: Faces, cache: Path) -> dict[str, NDArray[np.float32]]:
    """What `ddm_rt.train.codes.contrastive.feature_sets` gives, from the cache."""
    found = {name: features(train, name, cache) for name in (*FEATURE_SETS, PATCHES)}
    return found | {"all together": together(found)}
