"""From bundles or sampled directories to figures: generate, judge, measure, report."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddm_rt import data
from ddm_rt.bundle import INDEX, Bundle
from ddm_rt.config import NULL_CODE, DataConfig, parse
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.continuous import attribute
from ddm_rt.evaluate.evaluation import Evaluation, LabelledImages, evaluate
from ddm_rt.evaluate.judge import Judge
from ddm_rt.evaluate.report.columns import Columns
from ddm_rt.evaluate.report.evaluation_page import GRID_IMAGES, CodeCard, MethodResult, Report, terminal_table, write
from ddm_rt.files import check_free
from ddm_rt.progress import OnStep
from ddm_rt.runtime import Codes
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request

_log = logging.getLogger(__name__)
Text = Mapping[str, Any]  # arguments of `Pipeline.generate` about prompts; those that aren't given aren't in it
NO_TEXT: Text = {}
MAX_IMAGES = 20_000  # where a group is so rare that filling it would take more, quality says how many are missing


@dataclass(frozen=True)
class Sampled:
    """Images uint8 [N,H,W,3] of one method, and their codes [N] (None for a sampler without codes)."""

    images: NDArray[np.uint8]
    codes: NDArray[np.int64] | None
    top_codes: tuple[int, ...] = ()  # where a manifest told them


def text_of(request: Request) -> Text:
    """What of the request is about prompts, as far as it is given."""
    told = {name: getattr(request, name) for name in ("prompt", "negative_prompt", "guidance_scale")}
    return {name: value for name, value in told.items() if value is not None}


def check_prompts(bundle: Bundle, text: Text) -> None:
    """Raises DdmError naming the argument in `text` that the bundle doesn't take, before anything is generated."""
    Request(**text).check_text(bundle.config)


def generate_until(
    pipeline: Pipeline,
    judge: Judge,
    groups: Sequence[str],
    n: int,
    seed: int,
    min_per_group: int,
    on_step: OnStep | None = None,
    text: Text = NO_TEXT,
) -> Sampled:
    """n images, then more in requests of n until each group has `min_per_group` by the judge, or MAX_IMAGES.

    The figures on balance use the first n alone, so that the stopping rule can't touch them.
    """
    images: list[NDArray[np.uint8]] = []
    codes: list[NDArray[np.int64]] = []
    counts = dict.fromkeys(groups, 0)
    while not images or (min(counts.values()) < min_per_group and n * len(images) < MAX_IMAGES):
        part = pipeline.generate(n=n, seed=seed + len(images), on_step=on_step, **text)
        images.append(part.images)
        codes.append(np.asarray(part.codes, np.int64))
        labels = judge.predict(part.images).labels
        for group in groups:
            counts[group] += int((labels == group).sum())
        if len(images) >= 3 and min(counts.values()) * MAX_IMAGES < min_per_group * n * len(images):
            break  # at this rate the limit comes first
    joined = np.concatenate(codes)
    return Sampled(np.concatenate(images), None if (joined == NULL_CODE).all() else joined)


def read_sampled(directory: Path) -> Sampled:
    """Images and codes of a directory that `sample` wrote. Raises DdmError naming what is missing or damaged."""
    path = directory / "manifest.json"
    try:
        entries = json.loads(path.read_bytes())["images"]
        files, codes = [str(e["file"]) for e in entries], [int(e["code"]) for e in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DdmError(f"{path}: expected the manifest of `ddm-rt sample` ({error})") from error
    images = []
    for name in files:
        try:
            with Image.open(directory / Path(name).name) as image:
                images.append(np.asarray(image.convert("RGB")))
        except (OSError, SyntaxError) as error:
            raise DdmError(f"{directory / name}: not a readable image ({error})") from error
    if not images:
        raise DdmError(f"{path}: field images is empty; expected at least one image")
    for name, pixels in zip(files, images, strict=True):
        if pixels.shape != images[0].shape:
            found, first = ("x".join(map(str, array.shape[1::-1])) for array in (pixels, images[0]))
            raise DdmError(f"{directory / name}: is {found} pixels; {files[0]} is {first}, and all must be alike")
    array = np.array(codes, np.int64)
    tops = tuple(int(entry.get("top_code", NULL_CODE)) for entry in entries)
    return Sampled(np.stack(images), None if (array == NULL_CODE).all() else array, tops)


def parse_asked(text: str) -> dict[int, str]:
    """`code:0=3,code:1=8`: the group that the images of each top code were asked to be, for SPD of conditional use.

    Raises DdmError for anything else, and a top code given twice.
    """
    found: dict[int, str] = {}
    for part in text.split(","):
        code, _, group = (piece.strip() for piece in part.partition("="))
        kind, _, number = code.partition(":")
        if kind != "code" or not (number.isascii() and number.isdigit()) or not group:
            raise DdmError(
                f"asked {text!r}: {part.strip()!r}; expected code:NUMBER=GROUP, for example code:0=3,code:1=8"
            )
        if int(number) in found:
            raise DdmError(f"asked {text!r}: {code} is given twice")
        found[int(number)] = group
    return found


def conditions(asked: Mapping[int, str], top_codes: Sequence[int], groups: Sequence[str]) -> list[str]:
    """The group that each image was asked to be, by its top code. Raises DdmError where one of them has none."""
    if unknown := sorted(set(asked.values()) - set(groups)):
        raise DdmError(f"asked: {', '.join(unknown)}; expected groups among {', '.join(groups)}")
    if missing := sorted(set(top_codes) - asked.keys()):
        raise DdmError(f"asked: images have top codes {missing} (-1: none), for which no group was given")
    return [asked[top] for top in top_codes]


def _is_bundle(path: Path) -> bool:
    """Rather than a directory of images; a name without a directory is that of a shipped bundle."""
    return (path / INDEX).is_file() or not path.exists()


def labelled(source: str, split: str, config: DataConfig) -> LabelledImages:
    """Real images with labels, as three channels. Raises DdmError when the source has no labels."""
    images = data.load(config.model_copy(update={"source": source}), split)
    if images.labels is None:
        raise DdmError(f"{source}: labels are needed (metadata.csv: file_name,label)")
    return LabelledImages(three_channels(images.images), list(images.labels))


def three_channels(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N,H,W,1 or 3] -> [N,H,W,3]."""
    return images if images.shape[-1] == 3 else np.repeat(images, 3, axis=-1)


def code_cards(bundle: Bundle) -> list[CodeCard]:
    """The discovered codes with typical training images, where those images are on this machine."""
    training = bundle.training
    if not training.discovery.exemplars:
        return []
    try:
        images = three_channels(data.load(training.run.data).images)
    except DdmError as error:
        _log.info("no exemplars in the report: %s", error)
        return []
    if len(images) != sum(leaf.size for leaf in bundle.codes.leaves):
        _log.info("no exemplars in the report: %s has changed since training", training.run.data.source)
        return []
    return [
        CodeCard(leaf.code, leaf.top_code, leaf.size, images[list(exemplars)])
        for leaf, exemplars in zip(bundle.codes.leaves, training.discovery.exemplars, strict=True)
    ]


@dataclass(frozen=True)
class Yardstick:
    """What every method of a report is measured by: `evaluation.evaluate` says what these are."""

    judge: Judge
    groups: Sequence[str]
    reference: str
    training: str | None
    n: int  # images that a bundle generates
    seed: int
    min_per_group: int
    attributes: Sequence[str] = ()
    asked: Mapping[int, str] | None = None  # group of each top code
    text: Text = field(default_factory=dict)  # for bundles


def measure(path: Path, by: Yardstick, on_step: OnStep | None = None) -> tuple[Evaluation, NDArray[np.uint8]]:
    """Figures and the first images of a bundle (which generates n) or of a sampled directory."""
    pipeline, sampled, n = None, None, by.n
    if _is_bundle(path):
        pipeline = Pipeline.load(path)
        config = pipeline.bundle.training.run.data
    else:
        sampled = read_sampled(path)
        config = parse(DataConfig, {"image_size": sampled.images.shape[1], "channels": 3}, path)
        n = len(sampled.images)
    # Real images first: what can't be loaded shows before minutes are spent on sampling.
    real = labelled(by.reference, "reference", config)
    train_images = None
    if by.training is not None:
        train_images = three_channels(data.load(config.model_copy(update={"source": by.training})).images)
    if pipeline is not None:
        sampled = generate_until(pipeline, by.judge, by.groups, n, by.seed, by.min_per_group, on_step, by.text)
    assert sampled is not None
    tops: Sequence[int] = sampled.top_codes
    if pipeline is not None:
        top_of = pipeline.bundle.codes.top_of
        codes = [NULL_CODE] * len(sampled.images) if sampled.codes is None else sampled.codes.tolist()
        tops = [NULL_CODE if code == NULL_CODE else top_of[code] for code in codes]
    figures = evaluate(
        sampled.images,
        sampled.codes,
        by.judge,
        by.groups,
        real,
        train_images,
        min_per_group=by.min_per_group,
        n=n,
        conditions=None if by.asked is None else conditions(by.asked, tops, by.groups),
        attributes=by.attributes,
    )
    return figures, sampled.images[:GRID_IMAGES]


def evaluate_methods(
    methods: Sequence[tuple[str, Path]],
    out: Path,
    *,
    judge: str,
    classes: Sequence[str] | None,
    groups: Sequence[str],
    reference: str,
    training: str | None,
    n: int,
    seed: int,
    min_per_group: int,
    attributes: Sequence[str] = (),
    asked: str | None = None,
    text: Text = NO_TEXT,
    on_step: OnStep | None = None,
) -> tuple[Path, Columns]:
    """`ddm-rt evaluate`: the page it wrote and the table for the terminal.

    `attributes` and `asked` are as for `evaluation.evaluate` and `parse_asked`. `text` is for the bundles, which
    generate; images in a sampled directory keep the prompts that they were made with. Raises DdmError where a bundle
    takes no prompts, or no method is a bundle.
    """
    check_free(out)
    loaded = Judge.load(judge, classes=classes)
    for group in groups:
        if group not in loaded.classes:
            raise DdmError(f"groups: {group} is unknown to the judge; its classes: {', '.join(loaded.classes)}")
    if len(set(groups)) != len(groups) or len(groups) < 2:
        raise DdmError(f"groups are {', '.join(groups)}; expected two or more different classes of the judge")
    for name in attributes:
        attribute(name)  # one that isn't there shows before minutes are spent on sampling
    wanted = None if asked is None else parse_asked(asked)
    by = Yardstick(loaded, groups, reference, training, n, seed, min_per_group, attributes, wanted, text)
    bundles = [path for _, path in methods if _is_bundle(path)]
    if text and not bundles:
        raise DdmError(f"{next(iter(text))} is given, but no bundle to generate with it: all images are made already")
    for path in bundles if text else ():
        check_prompts(Bundle.load(path, verify=False), text)
    results: list[MethodResult] = []
    cards: list[CodeCard] = []
    stability: tuple[float, ...] = ()
    labels = 0
    for name, path in methods:
        figures, grid = measure(path, by, on_step)
        bundle = Bundle.load(path, verify=False) if _is_bundle(path) else None
        found = Codes(origin="none") if bundle is None else bundle.training.discovery
        used = int(found.rule["labels"]) if found.origin == "probe" else 0
        results.append(MethodResult(name, name, figures, grid, note=f"used {used} labels" if used else ""))
        if bundle is not None and found.exemplars:
            cards, stability, labels = code_cards(bundle), found.stability_ari, used
    provenance = {
        "n": n,
        "seed": seed,
        "judge": loaded.name,
        "reference": reference,
        "training": training or "not given",
        **text,
    }
    page = write(Report("Evaluation", results, cards, stability, provenance, code_labels=labels), out)
    return page, terminal_table(results)
