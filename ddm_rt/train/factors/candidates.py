"""Candidate factors: ways to split the training images that a person looks at, names, and accepts or not.

A candidate is a branch of a spectral tree against all other images, or a factor of an encoder's features
(`mixture.py`). Candidates are ranked by how much other views of the images know of them. That is evidence that a split
is in the images and not in one set of features. It is no evidence that it is the split that a person means.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, mutual_info_score

from ddm_rt.config import CodesConfig
from ddm_rt.errors import DdmError
from ddm_rt.progress import OnFigures
from ddm_rt.train.codes.discover import graph_embedding, neighbour_graph, top_split, tree_of
from ddm_rt.train.factors.mixture import equal_share_factors

Labels = NDArray[np.int64]

BRANCHES = 6  # of each view, the highest in its tree
TOGETHER, BRANCH = "all views together", "branch"
DEFAULT_VIEWS = ("encoder", "contrastive")  # that training takes: the first of them that is there
DEFAULT = "the split that training takes by itself"
FIRST = 6  # candidates that a person looks at first
SAME, ALIKE = 0.95, 0.6  # adjusted Rand index from which two splits are one; are shown as one
MOST = 12  # candidates that are shown


@dataclass(frozen=True)
class Candidate:
    """One way to split N images, and where it came from."""

    label: Labels  # [N], the largest side is 0
    view: str  # the features that it was found in
    rule: str
    agreement: float  # mean over the other views of the best adjusted Rand index
    known: float  # the same of the mutual information in nats, which ranks: few odd images agree well, but tell little
    stability: float | None  # of a branch: the best adjusted Rand index in bootstrap samples of its view, averaged

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(np.bincount(self.label).tolist())


def find_candidates(
    views: Mapping[str, NDArray[np.float32]], config: CodesConfig, seed: int, progress: OnFigures | None = None
) -> list[Candidate]:
    """Up to MOST candidates, first those of which the other views know most, from features [N,D] by view.

    The graphs of all views added up are a view of their own, which isn't asked about the splits of others. The split in
    two that training takes where nobody chooses (of the encoder's features, or of contrastive ones), or one like it, is
    among the first FIRST in any case.

    Raises DdmError for too few images, or where no view has a split with `codes.min_share` of the images on each side.
    """
    count = len(next(iter(views.values())))
    if count <= config.micro_codes:
        raise DdmError(f"codes.micro_codes is {config.micro_codes}, but there are only {count} images")
    splits: dict[str, list[tuple[Labels, str]]] = {}
    resampled: dict[str, list[list[Labels]]] = {}
    graphs = {view: neighbour_graph(features, config) for view, features in views.items()}
    if len(graphs) > 1:
        graphs[TOGETHER] = sum(graphs.values())
    by_default = next((view for view in DEFAULT_VIEWS if view in views), None)
    for number, (view, graph) in enumerate(graphs.items()):
        embedding = graph_embedding(graph, config, seed)
        found = [(label, f"{BRANCH} {i + 1} of the tree") for i, label in enumerate(_branches(embedding, config, seed))]
        if view == by_default and (default := _default(embedding, config, seed)) is not None:
            found = [(default, DEFAULT), *found]
        if view == "encoder":
            factors = [_ordered(label) for label in equal_share_factors(views[view], seed)]
            found = [(label, f"equal-share factor {i + 1}") for i, label in enumerate(factors)] + found
        splits[view] = found
        again = (_again(embedding, config, seed, i) for i in range(config.bootstraps))
        resampled[view] = [branches for branches in again if branches]
        if progress is not None:
            progress(number + 1, len(graphs), {})
    every = [(view, label, rule) for view, found in splits.items() for label, rule in found]
    if not every:
        raise DdmError(
            f"no view of the {count} images splits off {config.min_share:.0%} of them or more; lower codes.min_share"
        )
    candidates = [
        Candidate(
            label,
            view,
            rule,
            *_agreement(label, view, splits),
            _stability(label, resampled[view]) if rule.startswith(BRANCH) else None,
        )
        for view, label, rule in every
    ]
    ranked = sorted(candidates, key=lambda each: -each.known)  # ties: in the order of views
    kept: list[Candidate] = []
    for candidate in ranked:
        if all(adjusted_rand_score(candidate.label, other.label) < ALIKE for other in kept):
            kept.append(candidate)
    return _with_default_early(kept, candidates)[:MOST]


def _with_default_early(kept: list[Candidate], candidates: list[Candidate]) -> list[Candidate]:
    """The split that training takes stands among the first, unless one like it does."""
    default = next((candidate for candidate in candidates if candidate.rule == DEFAULT), None)
    early = kept[: FIRST - 1]
    if default is None or any(adjusted_rand_score(default.label, other.label) >= ALIKE for other in early):
        return kept
    later = [other for other in kept[FIRST - 1 :] if adjusted_rand_score(default.label, other.label) < ALIKE]
    return [*early, default, *later]


def _default(embedding: NDArray[np.float64], config: CodesConfig, seed: int) -> Labels | None:
    """The split that training takes; None where its rule finds none."""
    try:
        return _ordered(top_split(embedding, config, seed))
    except DdmError:
        return None


def _branches(embedding: NDArray[np.float64], config: CodesConfig, seed: int) -> list[Labels]:
    """Images of a branch (1) against all others (0), from the highest branch down, each split once.

    There are none where the images form fewer clusters than micro-codes, as in a view that sees no differences.
    """
    try:
        micro, tree = tree_of(embedding, config, seed)
    except DdmError:
        return []
    leaves = len(tree) + 1
    members: list[list[int]] = [[k] for k in range(leaves)]
    for left, right in tree[:, :2].astype(int):
        members.append(members[left] + members[right])
    found: list[Labels] = []
    for node in range(2 * leaves - 2, leaves - 1, -1):
        for child in tree[node - leaves, :2].astype(int):
            label = np.isin(micro, members[child]).astype(np.int64)
            if not config.min_share <= label.mean() <= 1 - config.min_share:
                continue
            if all(adjusted_rand_score(label, other) < SAME for other in found):
                found.append(_ordered(label))
        if len(found) >= BRANCHES:
            break
    return found[:BRANCHES]


def _again(embedding: NDArray[np.float64], config: CodesConfig, seed: int, number: int) -> list[Labels]:
    """The branches of a bootstrap sample, over all images: -1 where an image isn't in the sample."""
    drawn = np.random.default_rng([seed, number]).integers(0, len(embedding), len(embedding))
    found = []
    for branch in _branches(embedding[drawn], config, seed):
        label = np.full(len(embedding), -1, np.int64)
        label[drawn] = branch
        found.append(label)
    return found


def _agreement(label: Labels, view: str, splits: Mapping[str, list[tuple[Labels, str]]]) -> tuple[float, float]:
    """The best adjusted Rand index and mutual information (nats) in each other view, each averaged over those views.

    Both are 0 where there is no other view.
    """
    others = [found for name, found in splits.items() if name not in (view, TOGETHER) and found]
    agreement, known = (
        [max((float(score(label, other)) for other, _ in found), default=0.0) for found in others]
        for score in (adjusted_rand_score, mutual_info_score)
    )
    return float(np.mean(agreement or [0.0])), float(np.mean(known or [0.0]))


def _stability(label: Labels, resampled: list[list[Labels]]) -> float | None:
    """None where no sample had enough different images."""
    best = []
    for branches in resampled:
        scores = [adjusted_rand_score(label[other >= 0], other[other >= 0]) for other in branches]
        best.append(float(max(scores, default=0.0)))
    return float(np.mean(best)) if best else None


def _ordered(label: Labels) -> Labels:
    """The same split with its sides numbered by size, the largest first."""
    rank = np.argsort(np.argsort(-np.bincount(label), kind="stable"), kind="stable")
    return rank[label].astype(np.int64)
