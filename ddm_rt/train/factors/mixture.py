"""Factors of features by mixtures in which every cluster counts the same, however few images it has.

A mixture that is fitted as usual spends its clusters on what is frequent. Here the scatter within clusters is the mean
over clusters, so a cluster with a tenth of the images shapes it as much as the others. What is found is erased from the
features by LEACE (Belrose et al., "LEACE: Perfect linear concept erasure in closed form", arXiv 2306.03819, theorem
4.2), and what crosses it is looked for in the rest.

With features of a strong encoder this found two crossing attributes; with a weak one it found others, and balancing
those did harm. Nothing in this file tells the two apart: a person must look.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from ddm_rt.train.factors.raking import raked

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

DIMENSIONS, KEPT = 8, 32  # of the whitened features in which clusters are fitted; of those that are erased from
MOST_CLUSTERS, PENALTY, LEAST_GAIN = 5, 0.5, 0.2  # gain in nats an image; penalty a cluster after the first
VALLEY = 0.3  # gain of two clusters over one that each pair must show, where there are more than two
LEAST_SHARE = 0.04  # of the weight: a smaller cluster is an outlier
ROUNDS, MOST_FACTORS = 6, 4
_SOFT, _RIDGE, _EPS = 0.9, 0.02, 1e-12


@dataclass(frozen=True)
class Clusters:
    """A fitted mixture: gain over one Gaussian in nats an image, and the cluster of each image, int64 [N]."""

    gain: float
    label: Labels

    @property
    def number(self) -> int:
        return int(self.label.max()) + 1

    @property
    def score(self) -> float:
        return self.gain - PENALTY * (self.number - 1)


def equal_share_factors(features: NDArray[np.float32], seed: int) -> list[Labels]:
    """Labels int64 [N] of factors that cross one another, the clearest first, from features [N,D]."""
    rest = _principal(features.astype(np.float64), KEPT)
    weights = np.ones(len(rest))
    found: list[Labels] = []
    spread = rest.var(axis=0).sum()
    for number in range(ROUNDS):
        if rest.var(axis=0).sum() <= 1e-6 * spread:
            break  # what is left after erasing is rounding
        clusters = _clearest(rest, weights, np.random.default_rng([seed, number]))
        if clusters is None or clusters.gain < LEAST_GAIN * (clusters.number - 1):
            break
        rest = erase(rest, _evened(weights, clusters.label), clusters.label)
        if all(_cross(clusters.label, other) for other in found):
            found.append(clusters.label)
            weights = raked(found)
        if len(found) == MOST_FACTORS:
            break
    return found


def erase(features: Floats, weights: Floats, label: Labels) -> Floats:
    """Features [N,D] without what a linear map can tell of `label` [N] under `weights` [N] (LEACE)."""
    share = weights / weights.sum()
    centred = features - share @ features
    values, vectors = np.linalg.eigh((centred * share[:, None]).T @ centred)
    kept = values > 1e-8 * values.max()
    whiten, back = vectors[:, kept] / np.sqrt(values[kept]), vectors[:, kept] * np.sqrt(values[kept])
    one_hot = np.eye(label.max() + 1)[label]
    left, strength, _ = np.linalg.svd(
        (centred @ whiten * share[:, None]).T @ (one_hot - share @ one_hot), full_matrices=False
    )
    left = left[:, strength > 1e-6 * max(strength.max(), _EPS)]
    known: Floats = centred @ whiten @ left @ left.T @ back.T
    erased: Floats = features - known
    return erased


def _principal(features: Floats, dimensions: int) -> Floats:
    """Principal components [N, dimensions], with their variances."""
    left, values, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    scaled: Floats = left[:, :dimensions] * (values[:dimensions] / max(values[0], _EPS))
    return scaled


def _whitened(features: Floats, weights: Floats, dimensions: int) -> Floats:
    """The first principal components under `weights`, of mean 0 and variance 1."""
    share = weights / weights.sum()
    centred = features - share @ features
    values, vectors = np.linalg.eigh((centred * share[:, None]).T @ centred)
    order = [i for i in np.argsort(-values)[:dimensions] if values[i] > 1e-10 * values.max()]
    white: Floats = centred @ (vectors[:, order] / np.sqrt(values[order]))
    return white


def _evened(weights: Floats, label: Labels) -> Floats:
    """`weights` scaled so that each cluster has the same sum."""
    sums: Floats = np.maximum(np.bincount(label, weights=weights), _EPS)
    even: Floats = weights / sums[label]
    return even


def _cross(label: Labels, other: Labels, share: float = 0.01, count: int = 2) -> bool:
    """Whether each value of one occurs with each value of the other."""
    table = np.zeros((other.max() + 1, label.max() + 1))
    np.add.at(table, (other, label), 1)
    return bool((table / table.sum(axis=1, keepdims=True)).min() >= share and table.min() >= count)


def _clearest(features: Floats, weights: Floats, rng: np.random.Generator) -> Clusters | None:
    """The clusters of the best score, from several starting weights: fit, even the clusters out, fit again."""
    found = []
    for start in _starting_weights(features, weights, rng):
        present, last = start, None
        for _ in range(3):
            white = _whitened(features, present, DIMENSIONS)
            best = _best_number(white, weights, present, last, rng)
            if best is None:
                break
            found.append(best)
            if last is not None and adjusted_rand_score(last.label, best.label) > 0.97:
                break
            present, last = _evened(weights, best.label), best
    return max(found, key=lambda clusters: clusters.score, default=None)


def _starting_weights(features: Floats, weights: Floats, rng: np.random.Generator) -> list[Floats]:
    """As they are, by the inverse of density, and evened out over the two best splits in two."""
    white = _whitened(features, weights, DIMENSIONS)
    low = white[:, :4]
    distance, _ = NearestNeighbors(n_neighbors=min(11, len(low))).fit(low).kneighbors(low)
    sparse = distance[:, -1] ** low.shape[1]
    flat = weights * np.minimum(sparse / max(sparse.mean(), _EPS), 8)
    return [weights, flat, *(_evened(weights, split) for split in _splits_in_two(white, 120, 2, rng))]


def _best_number(
    white: Floats, base: Floats, weights: Floats, last: Clusters | None, rng: np.random.Generator
) -> Clusters | None:
    """Of 2 to MOST_CLUSTERS clusters, the number with the best score; `weights` are those of the starts."""
    best: Clusters | None = None
    fewer: Clusters | None = None
    for k in range(2, MOST_CLUSTERS + 1):
        starts = [] if fewer is None else _with_one_more(white, fewer.label, rng)
        if last is not None and last.number == k:
            starts.append(last.label)
        fitted = _fit(white, base, weights, k, 6 if k == 2 else 2, starts, rng)
        if fitted is None:
            break
        fewer = fitted
        if best is not None and fitted.score < best.score - 0.6:
            break
        sizes = np.bincount(fitted.label, minlength=k)
        if k > 2 and (sizes.min() < 8 or _least_pair_gain(white, base, fitted.label) < VALLEY):
            continue
        if best is None or fitted.score > best.score:
            best = fitted
    return best


def _fit(
    white: Floats,
    base: Floats,
    weights: Floats,
    k: int,
    draws: int,
    starts: Sequence[Labels],
    rng: np.random.Generator,
) -> Clusters | None:
    """Expectation-maximisation from several starts; the within-cluster scatter is the mean over clusters."""
    share = base / base.sum()
    best: Clusters | None = None
    begun = [_drawn_start(white, weights, k, number, rng) for number in range(draws)]
    for label in (*begun, *starts):
        fitted = _maximise(white, share, k, label)
        if fitted is not None and (best is None or fitted.gain > best.gain):
            best = fitted
    return best


def _maximise(white: Floats, share: Floats, k: int, label: Labels) -> Clusters | None:
    d = white.shape[1]
    resp = _SOFT * np.eye(k)[label] + (1 - _SOFT) / k  # [N, k]
    before = -np.inf
    for _ in range(25):
        joint = resp * share[:, None]
        mass = joint.sum(axis=0) + _EPS
        within = joint / mass  # each column sums to 1
        means = within.T @ white  # [k, d]
        each = within.mean(axis=1)  # every cluster has the same sum
        middle = each @ white
        spread = white - middle
        total = (spread * each[:, None]).T @ spread + _RIDGE * np.eye(d)
        apart = means - middle
        scatter = total - apart.T @ apart / k + 1e-4 * np.eye(d)
        inverse, log_det = np.linalg.inv(scatter), np.linalg.slogdet(scatter)[1]
        distance = (
            (white @ inverse * white).sum(axis=1)[:, None]
            - 2 * white @ inverse @ means.T
            + ((means @ inverse) * means).sum(axis=1)
        )
        density = -0.5 * distance - 0.5 * log_det  # [N, k], but for a constant
        posterior = density + np.log(mass / mass.sum())
        resp = np.exp(posterior - posterior.max(axis=1, keepdims=True))
        resp /= resp.sum(axis=1, keepdims=True)
        single = -0.5 * (spread @ np.linalg.inv(total) * spread).sum(axis=1) - 0.5 * np.linalg.slogdet(total)[1]
        gain = float(each @ (np.logaddexp.reduce(density - np.log(k), axis=1) - single))
        if abs(gain - before) < 1e-4:
            break
        before = gain
    if mass.min() < LEAST_SHARE:
        return None
    final = resp.argmax(axis=1)
    return Clusters(gain, final) if len(np.unique(final)) == k else None


def _drawn_start(white: Floats, weights: Floats, k: int, number: int, rng: np.random.Generator) -> Labels:
    """k-means on few directions, drawn ones or the first."""
    n, d = white.shape
    if number % 4:
        few = min(d, int(rng.integers(1, 5)))
        seen = white @ np.linalg.qr(rng.standard_normal((d, few)))[0]
    else:
        seen = white[:, : min(d, 3)]
    chance = weights / weights.sum()
    chosen = [int(rng.choice(n, p=chance))]
    nearest = ((seen - seen[chosen[0]]) ** 2).sum(axis=1)
    for _ in range(k - 1):
        odds = chance * nearest
        chosen.append(int(rng.choice(n, p=odds / odds.sum() if odds.sum() > 0 else chance)))
        nearest = np.minimum(nearest, ((seen - seen[chosen[-1]]) ** 2).sum(axis=1))
    centres = seen[chosen]
    for _ in range(6):
        label: Labels = ((seen[:, None] - centres[None]) ** 2).sum(axis=2).argmin(axis=1).astype(np.int64)
        for a in range(k):
            if weights[member := label == a].sum() > 0:
                centres[a] = np.average(seen[member], axis=0, weights=weights[member])
    return label


def _with_one_more(white: Floats, label: Labels, rng: np.random.Generator) -> list[Labels]:
    """Starts with one cluster more: each cluster split in two where it can be."""
    found = []
    for a in range(int(label.max()) + 1):
        member = np.flatnonzero(label == a)
        if len(member) < 40:
            continue
        own = white[member] - white[member].mean(axis=0)
        values, vectors = np.linalg.eigh(own.T @ own / len(own))
        own = own @ (vectors / np.sqrt(values.clip(1e-9))) @ vectors.T
        for half in _splits_in_two(own, 16, 2, rng):
            split = label.copy()
            split[member[half == 1]] = label.max() + 1
            found.append(split)
    return found


def _splits_in_two(white: Floats, draws: int, most: int, rng: np.random.Generator) -> list[Labels]:
    """Up to `most` different local optima of a mixture of two Gaussians with one covariance, by their gain.

    `white` [N,d] has mean 0 and covariance 1. All starts are fitted side by side.
    """
    n, d = white.shape
    directions = rng.standard_normal((d, draws))
    directions /= np.linalg.norm(directions, axis=0)
    seen = white @ directions
    at = rng.choice([0.15, 0.3, 0.5, 0.7, 0.85], draws)
    resp = (seen > [np.quantile(seen[:, j], at[j]) for j in range(draws)]).astype(float)  # [N, draws]
    for _ in range(80):
        p = resp.mean(axis=0).clip(1e-4, 1 - 1e-4)
        one = white.T @ resp / (n * p)
        other = -one * p / (1 - p)
        line = one - other
        length = (line**2).sum(axis=0)
        spread = (1 - p * (1 - p) * length).clip(1e-3)
        centre = ((one + other) * line).sum(axis=0) / 2
        resp = 1 / (1 + np.exp(-(np.log(p / (1 - p)) + (white @ line - centre) / spread).clip(-40, 40)))
    norm = np.sqrt(length)
    t = white @ line / norm
    parts = [
        np.log(q) - (t - (mean * line).sum(axis=0) / norm) ** 2 / 2 / spread - 0.5 * np.log(spread)
        for q, mean in ((p, one), (1 - p, other))
    ]
    gain = (np.logaddexp(*parts) + t**2 / 2).mean(axis=0)
    kept: list[int] = []
    for j in np.argsort(-gain):
        if min(p[j], 1 - p[j]) < 0.05 or gain[j] < 0.01:
            continue
        if all(abs(line[:, j] @ line[:, k]) < 0.7 * norm[j] * norm[k] for k in kept):
            kept.append(int(j))
        if len(kept) == most:
            break
    return [(resp[:, j] > 0.5).astype(np.int64) for j in kept]


def _least_pair_gain(white: Floats, base: Floats, label: Labels) -> float:
    """The least gain of two clusters over one, over pairs of clusters on their own discriminant: 0 for a continuum."""
    k, d = int(label.max()) + 1, white.shape[1]
    members = [label == a for a in range(k)]
    within = sum(np.cov(white[m].T, aweights=base[m]).reshape(d, d) for m in members) / k + 1e-3 * np.eye(d)
    means = [np.average(white[m], axis=0, weights=base[m]) for m in members]
    least = np.inf
    for a in range(k):
        for c in range(a):
            line = np.linalg.solve(within, means[a] - means[c])
            sides = [(white[members[i]] @ line, base[members[i]]) for i in (a, c)]
            centres = [np.average(values, weights=w) for values, w in sides]
            spread = np.mean([np.average((v - m) ** 2, weights=w) for (v, w), m in zip(sides, centres, strict=True)])
            between = (centres[0] - centres[1]) ** 2 / 4
            least = min(least, 0.5 * np.log(1 + between / spread) - np.log(2))
    return float(least)
