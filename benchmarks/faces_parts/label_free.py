"""Label-free rules, by clustering alone: what group shares would training images have, weighted as the rule says?

No diffusion here, so that a rule can be tried on every set in seconds: both directions, and a set that is in balance
already and should stay so. A rule gives each image a weight; the share of a group is the weight of its images.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from ddm_rt.config import CodesConfig
from ddm_rt.train.codes.discover import spectral_embedding

Features = NDArray[np.float64]  # [N, D]
Weights = NDArray[np.float64]  # [N], sum 1
Rule = Callable[[dict[str, Features], NDArray[np.float64]], Weights]  # feature sets, colours [N,C]
COMPONENTS, SEED, BOOTSTRAPS = 32, 0, 10
SMALL = 0.05  # of all images: less is no branch
AGREEMENT = 0.25  # normalised mutual information of two splits that count as the same


def principal(features: Features, count: int = COMPONENTS) -> Features:
    """The strongest components [N,count], not whitened."""
    centred = features - features.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(left[:, :count] * scale[:count], np.float64)


def spectral(features: Features) -> Features:
    """The embedding that the engine clusters."""
    return spectral_embedding(features.astype(np.float32), CodesConfig(), SEED)


def without_colour(features: Features, colours: NDArray[np.float64]) -> Features:
    """What a linear model of the mean colours of 4x4 squares of the image leaves of the features (ridge regression)."""
    x = (colours - colours.mean(axis=0)) / np.maximum(colours.std(axis=0), 1e-9)
    y = features - features.mean(axis=0)
    return np.asarray(y - x @ np.linalg.solve(x.T @ x + len(x) * 0.01 * np.eye(x.shape[1]), x.T @ y), np.float64)


class Tree:
    """k-means, and Ward's tree over its centroids. Node numbers as scipy's linkage: leaves first, then merges."""

    def __init__(self, embedding: Features, leaves: int, seed: int = SEED) -> None:
        fitted = KMeans(leaves, n_init=2, random_state=seed).fit(embedding)
        self.leaf = np.asarray(fitted.labels_)
        self.centres = fitted.cluster_centers_
        self.merges = linkage(self.centres, "ward")[:, :2].astype(int)
        self.leaves = leaves
        self.members: list[NDArray[np.bool_]] = [self.leaf == k for k in range(leaves)]
        for left, right in self.merges:
            self.members.append(self.members[left] | self.members[right])

    def halving(self, small: float = 0.0) -> Weights:
        """Each split gives half to each side, down to the leaves; where a side holds less than `small` of the images,
        the node is not split and its images weigh the same.
        """
        weights = np.zeros(len(self.leaf))
        stack = [(len(self.members) - 1, 1.0)]
        while stack:
            node, mass = stack.pop()
            children = [] if node < self.leaves else list(self.merges[node - self.leaves])
            if children and min(self.members[child].mean() for child in children) >= small:
                stack += [(child, mass / 2) for child in children]
            else:
                weights[self.members[node]] = mass / max(int(self.members[node].sum()), 1)
        return weights / weights.sum()

    def top(self, small: float = SMALL) -> NDArray[np.int64]:
        """The side (0, 1) of the highest split of which both sides hold at least `small` of the images."""
        for node in range(len(self.members) - 1, self.leaves - 1, -1):
            left, right = self.merges[node - self.leaves]
            if min(self.members[left].mean(), self.members[right].mean()) >= small:
                nearer = self.members[left]
                return nearer.astype(np.int64)
        return np.zeros(len(self.leaf), np.int64)


def halving(leaves: int, small: float = 0.0, embed: Callable[[Features], Features] = principal) -> Callable[..., Rule]:
    def of(name: str) -> Rule:
        return lambda sets, colours: Tree(embed(sets[name]), leaves).halving(small)

    return of


def two_codes(name: str) -> Rule:
    def rule(sets: dict[str, Features], colours: NDArray[np.float64]) -> Weights:
        return even_over(Tree(spectral(sets[name]), 16).top())

    return rule


def uniform_codes(name: str) -> Rule:
    def rule(sets: dict[str, Features], colours: NDArray[np.float64]) -> Weights:
        return even_over(Tree(principal(sets[name]), 16).leaf)

    return rule


def colourless_halving(leaves: int) -> Callable[..., Rule]:
    """Idea: the dominant nuisance is projected out before the tree is grown."""

    def of(name: str) -> Rule:
        return lambda sets, colours: Tree(principal(without_colour(sets[name], colours)), leaves).halving(0.0)

    return of


def consensus(leaves: int, small: float) -> Rule:
    """Idea: mean of the halving weights of many trees: every feature set, bootstrap samples of the images."""

    def rule(sets: dict[str, Features], colours: NDArray[np.float64]) -> Weights:
        embedded = {name: principal(features) for name, features in sets.items()}
        count = len(colours)
        total, trees = np.zeros(count), 0
        for seed in range(BOOTSTRAPS):
            sample = np.random.default_rng(seed).integers(0, count, count)
            for embedding in embedded.values():
                tree = Tree(embedding[sample], leaves, seed)
                # Every image goes to the leaf whose centre is nearest: weights of all images, not of the sample.
                distance = ((embedding[:, None] - tree.centres[None]) ** 2).sum(axis=2)
                per_leaf = np.bincount(tree.leaf, weights=tree.halving(small), minlength=leaves)
                leaf = distance.argmin(axis=1)
                sizes = np.bincount(leaf, minlength=leaves)
                total += per_leaf[leaf] / sizes[leaf]
                trees += 1
        return total / total.sum()

    return rule


def product(sets: dict[str, Features], colours: NDArray[np.float64]) -> Weights:
    """Idea: cells of the product of every feature set's top split get equal shares."""
    cell = np.zeros(len(colours), np.int64)
    for features in sets.values():
        cell = 2 * cell + Tree(spectral(features), 16).top()
    return even_over(cell)


def agreeing_splits(sets: dict[str, Features], colours: NDArray[np.float64]) -> Weights:
    """Idea: a branch that trees of different feature sets both find is a mode of the data and not of one encoder.

    Branches (one against the rest) of each set's tree; those that some branch of another set agrees with are kept, the
    most agreed with first, near copies left out; raking gives each side of every kept one half.
    """
    branches = {}
    for name, features in sets.items():
        tree = Tree(principal(features), 16)
        shares = [member.mean() for member in tree.members]
        branches[name] = [m for m, share in zip(tree.members, shares, strict=True) if SMALL <= share <= 0.5]
    scored = []
    for a, b in combinations(branches, 2):
        for one in branches[a]:
            for other in branches[b]:
                scored.append((float(normalized_mutual_info_score(one, other)), one & other, one | other))
    kept: list[NDArray[np.bool_]] = []
    for score, both, _ in sorted(scored, key=lambda entry: -entry[0]):
        if score < AGREEMENT or len(kept) == 6:
            break
        if all(normalized_mutual_info_score(both, other) < AGREEMENT for other in kept):
            kept.append(both)
    return rake(kept, len(colours))


def rake(splits: list[NDArray[np.bool_]], count: int, rounds: int = 200) -> Weights:
    """Weights in which every split has half on each side, by iterative proportional fitting."""
    weights = np.full(count, 1 / count)
    for _ in range(rounds):
        for side in splits:
            mass = weights[side].sum()
            if 0 < mass < 1:
                weights = np.where(side, weights / mass / 2, weights / (1 - mass) / 2)
    return weights


def even_over(cell: NDArray[np.int64]) -> Weights:
    """Equal shares for every cell that has images, equal weights within."""
    _, index, sizes = np.unique(cell, return_inverse=True, return_counts=True)
    return np.asarray(1 / sizes[index] / len(sizes), np.float64)


def rules(names: list[str]) -> dict[str, Rule]:
    """Every rule by name: each single-tree rule on each feature set, then those that need several sets."""
    single: dict[str, Callable[[str], Rule]] = {
        "uniform over 16 codes": uniform_codes,
        "2 top codes": two_codes,
        "halving, K = 32": halving(32),
        "halving, K = 64": halving(64),
        "halving of branches of 5 % or more, K = 64": halving(64, SMALL),
        "halving, K = 64, spectral": halving(64, 0.0, spectral),
        "colour projected out, halving, K = 32": colourless_halving(32),
        "colour projected out, halving, K = 64": colourless_halving(64),
    }
    found = {f"{rule} | {name}": make(name) for rule, make in single.items() for name in names}
    return found | {
        "consensus of 30 trees, K = 64 | all": consensus(64, 0.0),
        "consensus of 30 trees, branches of 5 % or more | all": consensus(64, SMALL),
        "product of top splits | all": product,
        "agreeing branches, raked | all": agreeing_splits,
    }
