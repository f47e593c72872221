"""Labels that people gave: a CSV file with the columns image, label and, where there are several people, rater."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.audit.record import Agreement
from ddm_rt.evaluate.intervals import RESAMPLES, percentile, wilson
from ddm_rt.sample.calibration.audit import UNSURE

_COLUMNS = "expected the columns image and label, and rater where several people labelled"


@dataclass(frozen=True)
class People:
    """Labels [N] by rater; "" where this rater gave none, or can't tell."""

    by_rater: dict[str, NDArray[np.str_]]

    @property
    def groups(self) -> tuple[str, ...]:
        """All labels that occur, in the order of the alphabet."""
        return tuple(sorted({str(label) for labels in self.by_rater.values() for label in labels if label}))

    @property
    def labels(self) -> NDArray[np.str_]:
        """What most raters of an image say, [N]; "" where no label has more voices than every other."""
        return np.array([_most(voices) for voices in zip(*self.by_rater.values(), strict=True)])


def read_people(path: Path, attribute: str, names: Sequence[str]) -> People:
    """Labels of the images `names`, which the file calls by name, or by its last part where that is nobody else's.

    The column of labels is `label` or the attribute's name; "?" and nothing mean that it can't be told. Raises DdmError
    naming the line of an image that isn't there or that a rater labelled twice, and a file that isn't such a CSV.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DdmError(f"{path}: cannot be read ({error.strerror}); {_COLUMNS}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DdmError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    column = next((name for name in ("label", attribute) if rows and name in rows[0]), None)
    if column is None or "image" not in rows[0]:
        raise DdmError(f"{path}: {_COLUMNS}")
    places = _places(names)
    found: dict[str, NDArray[np.str_]] = {}
    seen = set()
    for line, row in enumerate(rows, start=2):
        image, rater = (row["image"] or "").strip(), (row.get("rater") or "").strip() or "rater"
        label = (row[column] or "").strip()
        at = places.get(image)
        if at is None:
            raise DdmError(f"{path}: line {line}: {image!r} is no image of the folder (or the name of several)")
        if (rater, at) in seen:
            raise DdmError(f"{path}: line {line}: {rater} labels {image!r} twice")
        seen.add((rater, at))
        labels = found.setdefault(rater, np.full(len(names), "", dtype=object))
        labels[at] = "" if label == UNSURE else label
    return People({rater: labels.astype(np.str_) for rater, labels in found.items()})


def _places(names: Sequence[str]) -> dict[str, int]:
    last = Counter(PurePosixPath(name).name for name in names)
    places = {PurePosixPath(name).name: i for i, name in enumerate(names) if last[PurePosixPath(name).name] == 1}
    return places | {name: i for i, name in enumerate(names)}


def _most(voices: Sequence[str]) -> str:
    counts = Counter(voice for voice in voices if voice).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return ""
    return str(counts[0][0])


def agreements(
    attribute: str, people: People, kept: Sequence[int] | None = None, *, seed: int
) -> tuple[Agreement, ...]:
    """Cohen's kappa of each two raters over the images `kept` (all by default), with an interval.

    The interval is a bootstrap's over images. Of raters who never differ it is that of their agreement (Wilson's).
    """
    chosen = slice(None) if kept is None else list(kept)
    return tuple(
        _agreement(attribute, pair, *(people.by_rater[rater][chosen] for rater in pair), seed=seed)
        for pair in combinations(people.by_rater, 2)
    )


def _agreement(
    attribute: str, raters: tuple[str, str], a: NDArray[np.str_], b: NDArray[np.str_], *, seed: int
) -> Agreement:
    both = (a != "") & (b != "")
    n = int(both.sum())
    names, index = np.unique(np.concatenate([a[both], b[both]]), return_inverse=True)
    table = np.zeros((len(names), len(names)))
    np.add.at(table, (index[:n], index[n:]), 1)
    agreed = float(np.trace(table) / n) if n else 0.0
    point = kappa(table[None])[0] if n else np.nan
    interval, reason = None, None
    if not np.isfinite(point):
        reason = "no image has labels of both" if not n else "both gave every image the same label"
    elif np.count_nonzero(table) == 1:
        reason = "all images have the same two labels, which says nothing of others"
    elif np.trace(table) == n:
        expected = float(table.sum(axis=0) @ table.sum(axis=1)) / n**2
        interval = max(-1.0, 1 - (1 - wilson(n, n)[0]) / (1 - expected)), 1.0
    else:
        drawn = np.random.default_rng(seed).multinomial(n, (table / n).ravel(), size=RESAMPLES)
        values = kappa(drawn.reshape(-1, *table.shape).astype(np.float64))
        interval = percentile(values[np.isfinite(values), None])[0]
    return Agreement(
        attribute=attribute,
        raters=raters,
        n=n,
        agreed=agreed,
        kappa=float(point) if np.isfinite(point) else None,
        interval=interval,
        reason=reason,
    )


def kappa(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cohen's kappa (1960), 1 − (1 − p_o)/(1 − p_e), of counts [R,K,K]; NaN where both raters only gave one label.

    scikit-learn's `cohen_kappa_score` is the oracle; this one takes thousands of tables at once.
    """
    shares = tables / tables.sum(axis=(1, 2), keepdims=True)
    observed = np.trace(shares, axis1=1, axis2=2)
    expected = (shares.sum(axis=1) * shares.sum(axis=2)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isclose(expected, 1), np.nan, 1 - (1 - observed) / (1 - expected))
