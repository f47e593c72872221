"""Code discovery: modes of the data without labels. Micro-codes, a tree over them, top codes.

Features -> k-nearest-neighbour graph -> eigenvectors of its normalised Laplacian -> k-means into K micro-codes ->
Ward's tree over their centroids -> the top M branches. Codes are modes of the data; whether they follow a named
attribute is for an audit to say, never for this file.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.sparse.csgraph import laplacian
from scipy.sparse.linalg import eigsh
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import kneighbors_graph

from ddm_rt.config import CodesConfig
from ddm_rt.errors import DdmError
from ddm_rt.runtime import Codes, Leaf

EXEMPLARS = 8


def discover(features: NDArray[np.float32], config: CodesConfig, seed: int) -> tuple[Codes, NDArray[np.int64]]:
    """Codes of N images from unit features [N,D], and the code of each image, int64 [N].

    Raises DdmError when there are fewer images than micro-codes.
    """
    count = len(features)
    if count <= config.micro_codes:
        raise DdmError(f"codes.micro_codes is {config.micro_codes}, but there are only {count} images")
    embedding = spectral_embedding(features, config, seed)
    assignment, top_of, tree = _tree(embedding, config, seed)
    top = top_of[assignment]
    rule = config.model_dump(mode="json", exclude={"source"})
    described = describe(assignment, top_of, origin="discovered")
    codes = described.model_copy(
        update={
            "leaves": halved(described.leaves, tree) if config.halving else described.leaves,
            "tree": tuple((int(a), int(b), float(height)) for a, b, height, _ in tree),
            "exemplars": _exemplars(embedding, assignment, len(top_of)),
            "stability_ari": _stability(embedding, top, config, seed),
            "rule": rule,
        }
    )
    return codes, assignment


def spectral_embedding(features: NDArray[np.float32], config: CodesConfig, seed: int) -> NDArray[np.float64]:
    """Laplacian eigenmap [N, eigenvectors] of the neighbour graph; components that vary slowest weigh most."""
    return graph_embedding(neighbour_graph(features, config), config, seed)


def neighbour_graph(features: NDArray[np.float32], config: CodesConfig) -> Any:
    """The graph of nearest neighbours of N images, a sparse matrix [N,N]: 1 where one is a neighbour of the other."""
    graph = kneighbors_graph(features, min(config.neighbours, len(features) - 1))
    return graph.maximum(graph.T)


def graph_embedding(graph: Any, config: CodesConfig, seed: int) -> NDArray[np.float64]:
    """As `spectral_embedding`, of a graph [N,N] with weights that aren't negative."""
    count = graph.shape[0]
    normalised, scale = laplacian(graph, normed=True, return_diag=True)
    wanted = min(config.eigenvectors, count - 2)
    start = np.random.default_rng(seed).standard_normal(count)  # Lanczos' first vector, fixed
    values, vectors = eigsh(-normalised, k=wanted + 1, which="LA", v0=start)
    order = np.argsort(-values)[1:]  # the first is constant
    embedding = vectors[:, order] / scale[:, None]
    embedding /= np.sqrt((embedding**2).mean(axis=0))
    # An eigenvector's sign is arbitrary; fix it so that the codes' numbers don't depend on it.
    embedding *= np.sign(embedding[np.abs(embedding).argmax(axis=0), np.arange(wanted)])
    weighted: NDArray[np.float64] = embedding * np.clip(1 + values[order], 0, 1) ** 4
    return weighted


def describe(assignment: NDArray[np.int64], top_of: NDArray[np.int64], origin: str) -> Codes:
    """Codes with sizes and shares, from the code of each image [N] and the top code of each code [K]."""
    sizes = np.bincount(assignment, minlength=len(top_of))
    top_sizes = np.bincount(top_of, weights=sizes)
    leaves = tuple(
        Leaf(code=k, top_code=int(top), size=int(sizes[k]), share_in_top=float(sizes[k] / top_sizes[top]))
        for k, top in enumerate(top_of)
    )
    return Codes(origin=origin, leaves=leaves)


def halved(leaves: tuple[Leaf, ...], tree: NDArray[np.float64]) -> tuple[Leaf, ...]:
    """The leaves with shares by full tree halving: each split gives half to each side, down to the leaves.

    `tree` [K-1,4] are the merges (scipy's linkage). Shares are within the top code: where a branch of the tree belongs
    to two top codes, the leaves of each keep what the halving gave them, scaled to 1 in each top code.
    """
    weight = np.zeros(2 * len(leaves) - 1)
    weight[-1] = 1.0
    for merge in range(len(tree) - 1, -1, -1):
        left, right = tree[merge, :2].astype(int)
        weight[left] = weight[right] = weight[len(leaves) + merge] / 2
    totals = np.zeros(max(leaf.top_code for leaf in leaves) + 1)
    for leaf in leaves:
        totals[leaf.top_code] += weight[leaf.code]
    return tuple(
        leaf.model_copy(update={"share_in_top": float(weight[leaf.code] / totals[leaf.top_code])}) for leaf in leaves
    )


def _tree(
    embedding: NDArray[np.float64], config: CodesConfig, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Micro-code of each image, top code of each micro-code, and Ward's merges. Largest top code first."""
    micro, centroids, tree = _micro_codes(embedding, config, seed)
    branch = cut(tree, np.bincount(micro, minlength=config.micro_codes), centroids, config)
    sizes = np.bincount(branch[micro], minlength=config.top_codes)
    rank = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")
    return micro, rank[branch].astype(np.int64), tree


def top_split(embedding: NDArray[np.float64], config: CodesConfig, seed: int) -> NDArray[np.int64]:
    """The side, int64 [N], of each image in the tree's highest split in two. Raises DdmError as `discover` does."""
    assignment, top_of, _ = _tree(embedding, config.model_copy(update={"top_codes": 2}), seed)
    side: NDArray[np.int64] = top_of[assignment]
    return side


def tree_of(
    embedding: NDArray[np.float64], config: CodesConfig, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The micro-code of each image, int64 [N], and Ward's merges of them [K-1,4] as scipy's linkage gives them.

    Raises DdmError where the images form fewer clusters than `codes.micro_codes`.
    """
    micro, _, tree = _micro_codes(embedding, config, seed)
    return micro, tree


def _micro_codes(
    embedding: NDArray[np.float64], config: CodesConfig, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Micro-code of each image, their centroids, and Ward's merges."""
    kmeans = KMeans(config.micro_codes, n_init=4, random_state=seed).fit(embedding)
    if (found := len(np.unique(kmeans.labels_))) < config.micro_codes:
        count = len(embedding)
        raise DdmError(f"codes.micro_codes is {config.micro_codes}, but the {count} images form only {found} clusters")
    return kmeans.labels_.astype(np.int64), kmeans.cluster_centers_, linkage(kmeans.cluster_centers_, "ward")


def cut(
    tree: NDArray[np.float64], sizes: NDArray[np.int64], centroids: NDArray[np.float64], config: CodesConfig
) -> NDArray[np.int64]:
    """The branch [K] of each micro-code: the tree's highest splits, of which outliers are none.

    A branch that holds less than `min_share` of the images would get the share of a whole mode, so such a split isn't
    counted; its micro-codes join the branch whose centroid is nearest. `sizes` [K] are the micro-codes' images.

    Raises DdmError when the tree has fewer branches of that size than `top_codes`.
    """
    leaves = len(sizes)
    members: list[list[int]] = [[k] for k in range(leaves)]
    for left, right in tree[:, :2].astype(int):
        members.append(members[left] + members[right])
    splittable = [len(members) - 1]  # nodes; a node's number grows with its height
    closed: list[int] = []
    while len(splittable) + len(closed) < config.top_codes:
        if not splittable:
            raise DdmError(
                f"codes.top_codes is {config.top_codes}, but the tree has only {len(closed)} branches of at least "
                f"{config.min_share:.0%} of the images; lower codes.top_codes or codes.min_share"
            )
        node = max(splittable)
        splittable.remove(node)
        children = tree[node - leaves, :2].astype(int).tolist() if node >= leaves else []
        large = [child for child in children if sizes[members[child]].sum() >= config.min_share * sizes.sum()]
        if large:
            splittable += large
        else:
            closed.append(node)
    branch_of = np.full(leaves, -1)
    for number, node in enumerate(splittable + closed):
        branch_of[members[node]] = number
    parts = [branch_of == number for number in range(config.top_codes)]
    means = np.stack([np.average(centroids[part], axis=0, weights=sizes[part]) for part in parts])
    for orphan in np.flatnonzero(branch_of < 0):
        branch_of[orphan] = np.linalg.norm(means - centroids[orphan], axis=1).argmin()
    return branch_of


def _exemplars(
    embedding: NDArray[np.float64], assignment: NDArray[np.int64], codes: int
) -> tuple[tuple[int, ...], ...]:
    """The images nearest to each code's centroid."""
    found = []
    for code in range(codes):
        members = np.flatnonzero(assignment == code)
        distance = np.linalg.norm(embedding[members] - embedding[members].mean(axis=0), axis=1)
        found.append(tuple(int(i) for i in members[np.argsort(distance, kind="stable")[:EXEMPLARS]]))
    return tuple(found)


def _stability(
    embedding: NDArray[np.float64], top: NDArray[np.int64], config: CodesConfig, seed: int
) -> tuple[float, ...]:
    """Adjusted Rand index between the top codes and those found again on each bootstrap sample."""
    scores = []
    for i in range(config.bootstraps):
        sample = np.random.default_rng([seed, i]).integers(0, len(embedding), len(embedding))
        if len(np.unique(embedding[sample], axis=0)) <= config.micro_codes:
            raise DdmError(f"codes.micro_codes is {config.micro_codes}: too many for {len(embedding)} images")
        try:
            assignment, top_of, _ = _tree(embedding[sample], config, seed)
        except DdmError:
            scores.append(0.0)  # this sample has no such branches: nothing was found again
            continue
        scores.append(float(adjusted_rand_score(top[sample], top_of[assignment])))
    return tuple(scores)
