"""From a row of the table and a subject to the rival's output function, with all that it learns before sampling."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ddm_rt import data
from ddm_rt.train.codes.contrastive import contrastive_features
from rivals import (
    apg,
    cads,
    distribution,
    equisteer,
    fairimagen,
    hspace,
    interval,
    named,
    regularised,
    sampling,
    selfdebias,
    weak,
)
from rivals.sampling import Output
from rivals.subjects import Subject, contexts
from rivals.table import Rival

LABELS, SEED = 64, 0
UNSEEN = 200  # training images that tell how good a classifier is
MODES_SEED = 900_000  # of the images that SelfDebias finds modes in; no row's images have it
CALIBRATED = 1 / 3  # of the labels, for the calibration


@dataclass
class Made:
    """An output function, and what was learned for it, for the row."""

    output: Output
    learned: dict[str, Any] = field(default_factory=dict)


def make(rival: Rival, subject: Subject, strength: float | None) -> Made:
    """`strength` is of rivals with a grid. Of several strengths on one subject, what is learned is learned once."""
    if rival.kind == "plain":
        return Made(sampling.plain(subject.context))
    if rival.kind == "modes":
        assert strength is not None
        modes, learned = _learned(subject, "modes", lambda: _modes(subject))
        return Made(selfdebias.make(subject.context, modes, strength), learned)
    if rival.kind == "labels":
        assert strength is not None
        if rival.name == "distribution guidance":
            heads, learned = _learned(subject, "heads", lambda: _heads(subject, calibrate=False))
            return Made(distribution.make(subject.context, heads, strength), learned)
        heads, learned = _learned(subject, "calibrated heads", lambda: _heads(subject, calibrate=True))
        return Made(regularised.make(subject.context, heads, strength), learned)
    return _with_prompt(rival, subject)


def _with_prompt(rival: Rival, subject: Subject) -> Made:
    words = subject.words
    assert words is not None
    (null,), scale, context = contexts(subject, [""]), words.scale, subject.context
    if rival.name == "vanilla, guided":
        return Made(sampling.guided(context, null, scale))
    if rival.kind == "text":
        of_name = {"CADS": cads, "interval guidance": interval, "APG": apg}
        return Made(of_name[rival.name].make(context, null, scale))
    spoken = [contexts(subject, words.named[group]) for group in subject.groups]
    if rival.name == "group named in the prompt":
        return Made(named.make([prompts[0] for prompts in spoken], null, scale))
    if rival.name.startswith("EquiSteer"):
        neutral = contexts(subject, words.neutral)
        found, _ = _learned(
            subject, "steering", lambda: (equisteer.prepare(subject.model, spoken, neutral, null, scale), {})
        )
        return Made(equisteer.make(context, found, null, scale, equisteer.STEPS if rival.name == "EquiSteer" else 1.0))
    ends = [_ends(subject, words.named[group]) for group in subject.groups]
    if rival.name == "weak guidance":
        directions = weak.directions(ends, _ends(subject, words.neutral))
        return Made(weak.make(context, subject.end(words.neutral[0]), directions, null, scale))
    group = np.repeat([0, 1], [len(part) for part in ends])
    fair = fairimagen.fit(torch.cat(ends).double().numpy(), group)
    return Made(fairimagen.make(context, fair, null, scale))


def _ends(subject: Subject, prompts: tuple[str, ...]) -> torch.Tensor:
    """Embeddings [N,D] of the token that ends each prompt: what CLIP calls pooled."""
    found = zip(contexts(subject, prompts), prompts, strict=True)
    return torch.stack([context[0, subject.end(text)] for context, text in found])


_kept: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {}


def _learned(subject: Subject, what: str, learn: Any) -> Any:
    key = subject.name, what
    if key not in _kept:
        _kept[key] = learn()
    return _kept[key]


def _modes(subject: Subject) -> tuple[selfdebias.Modes, dict[str, Any]]:
    seeds = np.arange(MODES_SEED, MODES_SEED + selfdebias.IMAGES, dtype=np.uint64)
    images, h = selfdebias.trajectories(subject.model, subject.context, seeds, selfdebias.BATCH)
    config = subject.features.model_copy(update={"steps": selfdebias.FEATURE_STEPS})
    shown = data.to_model(images)[:, : subject.pixels.shape[1]]
    features = torch.from_numpy(contrastive_features(shown, config, SEED))
    projection = selfdebias.project(h, features, SEED)
    modes, mode_of = selfdebias.find(h, projection, SEED)
    # For the reader, by the judge: nothing of the rival saw it.
    verdicts = subject.judge.predict(images).labels
    of_groups = [[int(((mode_of == k) & (verdicts == group)).sum()) for group in subject.groups] for k in set(mode_of)]
    return modes, {"images_of_each_group_in_each_mode": of_groups}


def _heads(subject: Subject, *, calibrate: bool) -> tuple[hspace.Heads, dict[str, Any]]:
    index, others, h, unseen = _learned(subject, "h", lambda: _recorded(subject))
    y = torch.from_numpy(np.tile(subject.labels[index], hspace.DRAWS))
    held = torch.zeros(len(index), dtype=torch.bool)
    if calibrate:
        held[torch.from_numpy(np.random.default_rng(SEED).permutation(len(index))[: round(LABELS * CALIBRATED)])] = True
    of_rows = held.repeat(hspace.DRAWS)
    heads = hspace.fit(h[:, ~of_rows], y[~of_rows])
    # How good they are, on training images whose labels they weren't given: for the reader.
    truth = torch.from_numpy(subject.labels[others]).expand(len(unseen), -1)
    learned: dict[str, Any] = {"labels_of_each_group": np.bincount(subject.labels[index], minlength=2).tolist()}
    if calibrate:
        before = hspace.expected_error(heads.every(unseen), truth)
        heads = hspace.calibrate(heads, h[:, of_rows], y[of_rows])
        learned["calibration_error"] = [before, hspace.expected_error(heads.every(unseen), truth)]
    return heads, learned | {"unseen_accuracy": _accuracy(heads, unseen, truth)}


def _recorded(subject: Subject) -> tuple[Any, ...]:
    """Which images have a label, others, and the h of both."""
    drawn = np.random.default_rng(SEED).permutation(len(subject.labels))
    index, others = drawn[:LABELS], drawn[LABELS : LABELS + UNSEEN]
    h, unseen = (
        hspace.record(subject.model, subject.latents[part], subject.context, draws, SEED)
        for part, draws in ((index, hspace.DRAWS), (others, 1))
    )
    return index, others, h, unseen


def _accuracy(heads: hspace.Heads, h: torch.Tensor, y: torch.Tensor) -> list[float]:
    """Over the classes alike, at the first, middle and last step."""
    said = heads.every(h).argmax(-1)
    at = (0, len(h) // 2, len(h) - 1)
    return [float(np.mean([(said[i][y[i] == k] == k).float().mean() for k in (0, 1)])) for i in at]
