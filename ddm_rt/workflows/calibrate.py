"""`ddm-rt calibrate`: audit sets to label, and calibrations from labels or from a judge."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ddm_rt
from ddm_rt.bundle import Bundle, check_writable, copy_bundle
from ddm_rt.errors import DdmError
from ddm_rt.files import check_free, sha256
from ddm_rt.progress import OnStep
from ddm_rt.sample.balance.assignment import shuffled
from ddm_rt.sample.calibration import audit
from ddm_rt.sample.calibration.calibration import (
    Calibration,
    Settings,
    Weighted,
    base_weights,
    calibration,
    solve,
    store,
    weighted,
    with_target,
    with_weights,
)
from ddm_rt.sample.calibration.groups import Attribute, parse_target, uniform
from ddm_rt.sample.calibration.hold import Held, parse_hold, parts_beside, solve_held
from ddm_rt.sample.manifest import Manifest, read_manifest
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request

Labelled = list[tuple[int, tuple[str, ...] | None]]  # (code, group in each attribute)

MIN_PER_CODE = 1  # of the audits drawn evenly over the codes, before the other half follows the weights


@dataclass(frozen=True)
class Calibrated:
    """The bundle with the calibration, and what it expects of samples."""

    bundle: Bundle
    record: Calibration
    before: Weighted  # under the uniform target
    after: Weighted
    held: Held | None = None


def first_share(n: int, num_codes: int) -> int:
    """How many of n audits are drawn evenly over the codes; the others follow the weights calibrated with these.

    Half, or as many as give every code MIN_PER_CODE: a code that was never seen counts as even, and weights made with
    such codes miss (16 audits of the 16 shipped digit codes, half by weights: error .12 at target .5; all evenly: .01).
    """
    return min(n, max(n - n // 2, MIN_PER_CODE * num_codes))


def first_set(
    source: str,
    attributes: Sequence[Attribute],
    out: Path,
    n: int,
    seed: int,
    *,
    scope: str | None,
    backend: str,
    threads: int | None,
    on_step: OnStep | None,
    settings: Request,
) -> tuple[Path, int]:
    """Write the evenly drawn part of n audits into `out`; returns the audit.csv to fill in, and its rows."""
    check_free(out)
    bundle = Bundle.load(source)
    base = base_weights(bundle.codes)
    codes = _in_turn(audit.stratified(base, first_share(_checked(n), len(base))), settings.prompt, seed)
    pipeline = Pipeline.load(bundle, backend=backend, threads=threads)
    made = pipeline.generate(settings, n=len(codes), seed=seed, codes=codes, on_step=on_step)
    return audit.write(made, attributes, out, scope), len(codes)


def next_set(
    source: str,
    audits: Sequence[Path],
    attributes: Sequence[Attribute] | None,
    out: Path,
    n: int,
    seed: int,
    target: str | None,
    *,
    hold: str | None = None,
    backend: str,
    threads: int | None,
    on_step: OnStep | None,
) -> tuple[Path, int]:
    """Write the rest of n audits into `out`, drawn by the weights that the filled `audits` give so far."""
    check_free(out)
    bundle = Bundle.load(source)
    sets = _read(bundle, audits, attributes)
    if len(taken := {one.manifest.request.seed for one in sets} & {seed}):
        raise DdmError(f"--seed is {seed}, which made an earlier set; choose another than {', '.join(map(str, taken))}")
    record = _from_audits(bundle, sets)
    left = _checked(n) - record.audited
    if left < 1:
        raise DdmError(f"--n is {n}, and {record.audited} images are audited already; expected more")
    first = sets[0].manifest
    codes = _in_turn(audit.by_weights(_so_far(record, target, hold, bundle), left), first.request.prompt, seed)
    pipeline = Pipeline.load(bundle, backend=backend, threads=threads)
    made = pipeline.generate(first.again(), n=left, seed=seed, codes=codes, on_step=on_step)
    return audit.write(made, record.attributes, out, sets[0].scope), left


def from_audits(
    source: str,
    audits: Sequence[Path],
    attributes: Sequence[Attribute] | None,
    target: str | None,
    *,
    hold: str | None = None,
    name: str,
    out: Path | None,
) -> Calibrated:
    """Store the calibration that the filled `audits` give in the bundle, or in its copy at `out`."""
    bundle = _writable(source, out)
    record = _from_audits(bundle, _read(bundle, audits, attributes))
    return _stored(bundle, record, target, hold, name, out)


def from_judges(
    source: str,
    judges: Sequence[tuple[str, str]],
    attributes: Sequence[Attribute],
    target: str | None,
    n: int,
    seed: int,
    *,
    hold: str | None = None,
    name: str,
    out: Path | None,
    scope: str | None,
    backend: str,
    threads: int | None,
    on_step: OnStep | None,
    settings: Request,
) -> Calibrated:
    """Generate n images, let a judge label each attribute ((attribute, judge) in `judges`), and store what comes out.

    Images that a judge takes for a class outside the attribute's groups count as unsure.
    """
    from ddm_rt.evaluate.judge import Judge

    bundle = _writable(source, out)
    loaded = {attribute: Judge.load(judge) for attribute, judge in judges}
    if set(loaded) != {attribute.name for attribute in attributes} or len(loaded) != len(judges):
        raise DdmError(
            f"--judge: judges of {', '.join(attribute for attribute, _ in judges)}; "
            f"expected one for each of {', '.join(attribute.name for attribute in attributes)} (ATTRIBUTE=FILE)"
        )
    for attribute in attributes:
        if unknown := [group for group in attribute.groups if group not in loaded[attribute.name].classes]:
            raise DdmError(
                f"--groups: {unknown[0]} is unknown to the judge of {attribute.name}; "
                f"its classes: {', '.join(loaded[attribute.name].classes)}"
            )
    if hold is not None:
        parts_beside(parse_hold(hold, attributes), target, attributes)
    elif target is not None:
        parse_target(target, attributes)
    base = base_weights(bundle.codes)
    pipeline = Pipeline.load(bundle, backend=backend, threads=threads)
    labelled: Labelled = []
    made: list[Manifest] = []
    provenance = {
        "method": "judge",
        "judges": {key: {"name": judge.name, "sha256": judge.sha256} for key, judge in loaded.items()},
    }

    def add(codes: list[int], seed: int) -> Calibration:
        codes = _in_turn(codes, settings.prompt, seed)
        generation = pipeline.generate(settings, n=len(codes), seed=seed, codes=codes, on_step=on_step)
        verdicts = [loaded[attribute.name].predict(generation.images).labels for attribute in attributes]
        for code, *groups in zip(codes, *verdicts, strict=True):
            told = all(group in attribute.groups for group, attribute in zip(groups, attributes, strict=True))
            labelled.append((code, tuple(map(str, groups)) if told else None))
        made.append(read_manifest(generation.manifest))
        origin = _provenance(made) | provenance
        return calibration(bundle, attributes, labelled, _settings(made[0], scope), origin)

    first = first_share(_checked(n), len(base))
    record = add(audit.stratified(base, first), seed)
    if n > first:
        record = add(audit.by_weights(_so_far(record, target, hold, bundle), n - first), seed + 1)
    return _stored(bundle, record, target, hold, name, out)


def _in_turn(codes: list[int], prompt: str | Sequence[str] | None, seed: int) -> list[int]:
    """The codes in the order of their images: shuffled where several prompts take turns.

    Codes take turns too; two rhythms that divide each other would give a prompt some of the codes alone, and a code the
    groups of its prompts.
    """
    if prompt is None or isinstance(prompt, str) or len(set(prompt)) < 2:
        return codes
    return [codes[i] for i in shuffled(seed, len(codes))]


def _stored(
    bundle: Bundle, record: Calibration, target: str | None, hold: str | None, name: str, out: Path | None
) -> Calibrated:
    held = None
    if hold is None:
        record, found = with_target(record, target, bundle.codes)
    else:
        kept = parse_hold(hold, record.attributes)
        weights, held = solve_held(record, parts_beside(kept, target, record.attributes), kept, bundle.codes)
        # Under provenance, where programs that know nothing of holds pass over it.
        record = record.model_copy(update={"provenance": {**record.provenance, "hold": held.model_dump(mode="json")}})
        record, found = with_weights(record, held.target, weights, bundle.codes)
    bundle = bundle if out is None else copy_bundle(bundle, out)
    try:
        bundle, calibration_id = store(bundle, record, name)
    except BaseException:
        if out is not None:
            shutil.rmtree(out)
        raise
    before = weighted(record, "uniform", base_weights(bundle.codes), bundle.codes)
    after = weighted(record, found.target, np.array(found.code_weights), bundle.codes, calibration_id, name)
    return Calibrated(bundle, record, before, after, held)


def _writable(source: str, out: Path | None) -> Bundle:
    """The bundle; refused before any work where the calibration couldn't be written."""
    bundle = Bundle.load(source)
    if out is not None:
        check_free(out)
    else:
        check_writable(bundle, "calibrates")
    return bundle


def _read(bundle: Bundle, audits: Sequence[Path], attributes: Sequence[Attribute] | None) -> list[audit.Audit]:
    """The audits, checked against the bundle and against each other."""
    sets = [audit.read(path, attributes) for path in audits]
    seen: dict[tuple[int, int], Path] = {}
    for one in sets:
        if not bundle.is_of(one.manifest.bundle_id):
            found = one.manifest.bundle_id[:12]
            raise DdmError(f"{one.path}: its images are of bundle {found}; this one is {bundle.bundle_id[:12]}")
        if one.attributes != sets[0].attributes:
            raise DdmError(f"{one.path}: its groups differ from those of {sets[0].path}; expected the same")
        differ = _settings(sets[0].manifest, sets[0].scope).differences(_settings(one.manifest, one.scope))
        if differ or one.scope != sets[0].scope:
            raise DdmError(f"{one.path}: made otherwise than {sets[0].path}: {', '.join(differ) or 'another scope'}")
        for seed, code, _ in one.images:
            if (seed, code) in seen:
                raise DdmError(f"{one.path}: the image of seed {seed} and code {code} stands in {seen[seed, code]} too")
            seen[seed, code] = one.path
    return sets


def _from_audits(bundle: Bundle, sets: Sequence[audit.Audit]) -> Calibration:
    labelled = [(code, groups) for one in sets for _, code, groups in one.images]
    origin = _provenance([one.manifest for one in sets]) | {
        "method": "audit",
        "files": [{"name": one.path.name, "sha256": sha256(one.path)} for one in sets],
    }
    return calibration(bundle, sets[0].attributes, labelled, _settings(sets[0].manifest, sets[0].scope), origin)


def _so_far(
    record: Calibration, target: str | None, hold: str | None, bundle: Bundle
) -> np.ndarray[Any, np.dtype[np.float64]]:
    if hold is not None:
        kept = parse_hold(hold, record.attributes)
        parts = parts_beside(kept, target, record.attributes)
        return solve_held(record, parts, kept, bundle.codes, approximate=True)[0]
    parts = uniform(record.attributes) if target is None else parse_target(target, record.attributes)
    return solve(record, parts, base_weights(bundle.codes), nearest=True)


def _provenance(made: Sequence[Manifest]) -> dict[str, Any]:
    return {
        "ddm_rt": ddm_rt.__version__,
        "backend": made[0].backend,
        "versions": made[0].versions,
        "sets": [{"n": len(one.images), "seed": one.request.seed} for one in made],
    }


def _settings(manifest: Manifest, scope: str | None) -> Settings:
    return Settings.of(manifest.request, manifest.sampler, manifest.num_steps, manifest.precision, scope)


def _checked(n: int) -> int:
    if n < 1:
        raise DdmError(f"--n is {n}; expected at least 1, better 64")
    return n
