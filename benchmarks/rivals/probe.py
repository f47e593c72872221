"""EEGDM's score (arXiv 2508.20705) as a probe row: how much of the group a frozen latent tells a linear probe.

Its encoder's latent conditions a diffusion model and is scored by a frozen linear probe. Beside it stand what ours
conditions on, the codes, and the features that they are found in, and the vanilla model's h. No image is made, so there
is no balance to measure.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ddm_rt.config import CodesConfig
from ddm_rt.train.codes.contrastive import contrastive_features
from ddm_rt.train.codes.discover import discover
from rivals.hspace import record
from rivals.subjects import Subject

SEED, FOLDS = 0, 5
ABOUT = {
    "uses": "nothing",
    "source": "arXiv 2508.20705 (EEGDM)",
    "read": "abstract; the code of another method of this name is public, this one's was not found",
    "differs": "No model conditioned on a continuous latent is trained: the probe alone is taken over. Balanced "
    "accuracy of logistic regression over five folds of the training images, whose labels nothing else here saw.",
}


def probe(latent: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Balanced accuracy on labels [N] that it wasn't fitted on, of a linear probe on a latent [N,D]."""
    fold = np.random.default_rng(SEED).permutation(len(labels)) % FOLDS
    said = np.zeros_like(labels)
    for k in range(FOLDS):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced"))
        said[fold == k] = model.fit(latent[fold != k], labels[fold != k]).predict(latent[fold == k])
    return float(balanced_accuracy_score(labels, said))


def measure(subject: Subject) -> dict[str, Any]:
    """Balanced accuracy by latent; chance is one half."""
    features = contrastive_features(subject.pixels, subject.features, SEED)
    _, codes = discover(features, CodesConfig(), SEED)
    middle = subject.model.table.num_steps // 2
    h = record(subject.model, subject.latents, subject.context, 1, SEED)
    return {
        "features": probe(features, subject.labels),
        "16 codes": probe(np.eye(16, dtype=np.float32)[codes], subject.labels),
        "h, first step": probe(h[0].numpy(), subject.labels),
        "h, middle step": probe(h[middle].numpy(), subject.labels),
        "h, last step": probe(h[-1].numpy(), subject.labels),
    }
