"""Few-label codes: a linear probe on frozen features, fitted on some tens of labelled images, assigns the codes.

Its classes become the codes. This mode reads labels, and codes.json says so: its origin is "probe", and its rule holds
how many labels of which classes there were. Of several feature sets the probe takes the one that predicts labels it
wasn't fitted on best; which features know an attribute can't be told without labels (contrastive ones lose what their
augmentations change).
"""

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ddm_rt.data import ImageSet, Listing
from ddm_rt.errors import DdmError
from ddm_rt.files import sha256
from ddm_rt.runtime import Codes
from ddm_rt.train.codes.discover import describe

MIN_PER_CLASS = 2  # one to fit on and one to test on
FOLDS, REPEATS = 5, 2
STRENGTHS = (1e-2, 1e-1, 1.0)  # scikit-learn's C, from the strongest regularisation

Features = NDArray[np.float32]  # [N, D]


@dataclass(frozen=True)
class Labels:
    """Labels of some images of a set: `index` int64 [L] into the set, `y` int64 [L] into `classes`."""

    index: NDArray[np.int64]
    y: NDArray[np.int64]
    classes: tuple[str, ...]
    file_sha256: str

    @property
    def counts(self) -> dict[str, int]:
        return {name: int((self.y == k).sum()) for k, name in enumerate(self.classes)}


def read_labels(path: Path, images: ImageSet | Listing) -> Labels:
    """Labels of some of `images`: a CSV in UTF-8 with a header and the columns `image` (or `file_name`) and `label`.

    An image is named by its file in the folder (or by its number in the set, from 0). Raises DdmError naming the line
    for an unknown image, one that is listed twice or has no label; and for fewer than two classes, or a class with
    fewer than two images.
    """
    where = f"codes.labels {path}"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            columns = reader.fieldnames or []
    except OSError as error:
        raise DdmError(f"{where}: cannot be read ({error.strerror}); expected a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DdmError(f"{where}: not a CSV file in UTF-8 ({error})") from error
    named = next((column for column in ("image", "file_name") if column in columns), None)
    if named is None or "label" not in columns:
        raise DdmError(f"{where}: expected a header with the columns image and label; found {', '.join(columns)}")
    number_of = {name: i for i, name in enumerate(images.names)}
    labels: dict[int, str] = {}
    for line, row in enumerate(rows, start=2):
        name, label = (row[named] or "").strip(), (row["label"] or "").strip()
        number = number_of.get(name, int(name) if name.isascii() and name.isdigit() and len(name) < 10 else -1)
        if not 0 <= number < len(images):
            raise DdmError(f"{where}: line {line}: {name!r} is not one of the {len(images)} training images")
        if number in labels:
            raise DdmError(f"{where}: line {line}: {name!r} is listed twice")
        if not label:
            raise DdmError(f"{where}: line {line}: {name!r} has no label; leave out the row of an unlabelled image")
        labels[number] = label
    counts = Counter(labels.values())
    if len(counts) < 2:
        raise DdmError(f"{where}: {len(labels)} labels of {len(counts)} classes; expected two classes or more")
    rare, least = min(counts.items(), key=lambda item: (item[1], item[0]))
    if least < MIN_PER_CLASS:
        raise DdmError(f"{where}: class {rare!r} has {least} image; expected at least {MIN_PER_CLASS} of each class")
    classes = tuple(sorted(counts))
    index = np.array(sorted(labels), np.int64)
    y = np.array([classes.index(labels[int(i)]) for i in index], np.int64)
    return Labels(index, y, classes, sha256(path))


def probe(feature_sets: Mapping[str, Features], labels: Labels, seed: int) -> tuple[Codes, NDArray[np.int64]]:
    """Codes (one a class, each a top code of its own) and the code of each image, int64 [N].

    `feature_sets` are features [N,D] of the same N images. Labelled images keep their label. Feature set and
    regularisation are those with the least cross-validated loss. Classes weigh by their number: a code then rather
    misses images of a rare class than takes in those of another, and its purity is what balance depends on.
    """
    trials = {
        (name, strength): _cross_validated(features[labels.index], labels, strength, seed)
        for name, features in feature_sets.items()
        for strength in STRENGTHS
    }
    chosen, strength = min(trials, key=lambda trial: trials[trial][0])
    features = feature_sets[chosen]
    model = _classifier(strength).fit(features[labels.index], labels.y)
    assignment = np.asarray(model.predict(features), np.int64)
    assignment[labels.index] = labels.y
    found = describe(assignment, np.arange(len(labels.classes)), origin="probe")
    rule: dict[str, Any] = {
        "labels": len(labels.y),
        "labels_per_class": labels.counts,
        "classes": list(labels.classes),  # the class of each code
        "labels_sha256": labels.file_sha256,
        "features": chosen,
        "strength": strength,
        "cross_validation": {
            name: dict(zip(("loss", "accuracy"), min(trials[name, strength] for strength in STRENGTHS), strict=True))
            for name in feature_sets
        },
    }
    return found.model_copy(update={"rule": rule}), assignment


def _cross_validated(features: Features, labels: Labels, strength: float, seed: int) -> tuple[float, float]:
    """(log loss, accuracy) on labels not fitted on; every fold is fitted on each class."""
    losses, hits = np.zeros(len(labels.y)), np.zeros(len(labels.y))
    for repeat in range(REPEATS):
        fold = _folds(labels, np.random.default_rng([seed, repeat]))
        for k in range(FOLDS):
            held_out = fold == k
            if held_out.any():
                model = _classifier(strength).fit(features[~held_out], labels.y[~held_out])
                probabilities = model.predict_proba(features[held_out])
                truth = labels.y[held_out]
                losses[held_out] -= np.log(np.clip(probabilities[np.arange(len(truth)), truth], 1e-12, None))
                hits[held_out] += probabilities.argmax(axis=1) == truth
    return float(losses.mean() / REPEATS), float(hits.mean() / REPEATS)


def _folds(labels: Labels, rng: np.random.Generator) -> NDArray[np.int64]:
    """The fold [L] of each label: each class spread over the folds, so that none holds all of a class."""
    fold = np.empty(len(labels.y), np.int64)
    for k in range(len(labels.classes)):
        members = rng.permutation(np.flatnonzero(labels.y == k))
        fold[members] = (np.arange(len(members)) + k) % FOLDS
    return fold


def _classifier(strength: float) -> Any:
    """Logistic regression on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
