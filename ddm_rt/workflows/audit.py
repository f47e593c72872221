"""`ddm-rt evaluate` with judges of attributes, and `ddm-rt card`: from a folder, or from a bundle, to a report."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ddm_rt
from ddm_rt.bundle import INDEX, SHIPPED, Bundle
from ddm_rt.config import parse_json
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.audit import images
from ddm_rt.evaluate.audit.about import read_about
from ddm_rt.evaluate.audit.card import card
from ddm_rt.evaluate.audit.record import Audit, Fact
from ddm_rt.evaluate.audit.risks import ALWAYS
from ddm_rt.evaluate.audit.rules import parse_rule
from ddm_rt.evaluate.audit.run import Asked
from ddm_rt.evaluate.audit.run import audit as measure
from ddm_rt.evaluate.intervals import CONFIDENCE
from ddm_rt.files import check_free, read
from ddm_rt.progress import OnStep
from ddm_rt.runtime import Codes
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.workflows.export_judge import of_torch


def is_bundle(path: Path) -> bool:
    """Rather than a folder of images."""
    return (path / INDEX).is_file() or (str(path) in SHIPPED and not path.exists())


def audit(
    path: Path,
    out: Path,
    asked: Asked,
    *,
    about: Path | None = None,
    ledger: Path | None = None,
    prompts: Sequence[str] = (),
    command: str = "",
    n: int = 1000,
    seed: int = 0,
    text: Mapping[str, Any] | None = None,
    on_generated: OnStep | None = None,
    on_judged: OnStep | None = None,
) -> tuple[Audit, Path]:
    """Measure the images of a folder, or `n` images that a bundle makes with `seed` and `text` (what is asked about
    prompts), and write a report into `out`. `prompts` are the groups of CLIP judges, and `ledger` is the file whose
    counts the report shows.

    Returns the record and the page. Raises DdmError as `ddm_rt.evaluate.audit.run.audit`, and for an `out` that is
    occupied.
    """
    check_free(out)
    for text_of_rule in asked.rules:
        parse_rule(text_of_rule)  # before a bundle makes images
    stated, counted = read_about(about), () if ledger is None else ledger_extract(ledger)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = {"measured on": now, "ddm_rt": ddm_rt.__version__, "command": images.shown(command)}
    identity = [Fact(name=name, value=value) for name, value in facts.items() if value]
    if is_bundle(path):
        from ddm_rt.sample.pipeline import Pipeline

        pipeline = Pipeline.load(path)
        identity += of_bundle(pipeline.bundle)
        made = pipeline.generate(n=n, seed=seed, on_step=on_generated, **(text or {}))
        material = images.of_generation(made, pipeline.bundle.path.name)
    else:
        if text:
            raise DdmError(f"{next(iter(text))} is given, but {path} is no bundle: its images are made already")
        material = images.find(path)
    found, small = measure(
        material, asked, stated, identity, of_torch=lambda source: of_torch(source, prompts), on_step=on_judged
    )
    found = found.model_copy(update={"ledger": counted})
    from ddm_rt.evaluate.report import audit_page

    return found, audit_page.write(found, small, out)


def ledger_extract(path: Path) -> tuple[Fact, ...]:
    """Of each stream of a ledger: how many images of each code were handed out. Raises DdmError where there is none."""
    if not path.is_file():
        raise DdmError(f"{path}: is no file; expected a ledger, as --ledger of sample or serve writes it")
    with Ledger(path) as ledger:
        facts = [Fact(name="ledger", value=path.name)]
        for stream in ledger.streams(most=-1):
            counts = ledger.counts(stream, settle=False)  # a server that is starting anew goes on with its leases
            given = ", ".join(f"{code}: {count}" for code, count in sorted(counts.done.items()))
            standing = f"{counts.leased.total()} under way, {counts.pooled.total()} to be drawn again"
            total = f"{counts.done.total()} images, by code {given or 'none'}; {standing}"
            name = f"handed out in scope {stream.scope!r}, target {stream.target}, bundle {stream.bundle_id[:12]}"
            facts.append(Fact(name=name, value=total))
        return tuple(facts)


def of_bundle(bundle: Bundle) -> list[Fact]:
    """What a bundle says of itself."""
    run = bundle.training.run
    codes: Codes = bundle.training.discovery
    labels = f", by {codes.rule['labels']} labelled images" if codes.origin == "probe" else ""
    facts = {
        "trained on": run.data.source,
        "base checkpoint": None if run.base is None else f"{run.base.path.name}, sha256 {run.base.sha256}",
        "family": str(bundle.config.family),
        "codes": f"{len(bundle.codes.leaves)}, origin: {codes.origin}{labels}",
        "steps of training": str(run.train.steps),
    }
    return [Fact(name=name, value=value) for name, value in facts.items() if value is not None]


def card_of(source: str, audited: Path | None, about: Path | None) -> str:
    """A model card of a bundle, with the figures of an audit of it where one is given (audit.json, or its folder).

    Raises DdmError for an audit of another bundle's images, and for a file that is no audit.
    """
    bundle, stated = Bundle.load(source, verify=False), read_about(about)
    own = [Fact(name="bundle id", value=bundle.bundle_id), *of_bundle(bundle)]
    if audited is None:
        found = Audit(
            title=stated.model or bundle.path.name,
            n=0,
            about=stated,
            identity=tuple(own),
            data=(),
            judges=(),
            attributes=(),
            crossings=(),
            parities=(),
            agreements=(),
            rules=(),
            quality=None,
            confidence=CONFIDENCE,
            seed=0,
            risks=ALWAYS,
        )
        return card(found)
    file = audited / "audit.json" if audited.is_dir() else audited
    found = parse_json(Audit, read(file, "expected the audit.json of a report"), file)
    of = next((fact.value for fact in found.identity if fact.name == "bundle id"), None)
    if of is None or not bundle.is_of(of):
        whose = "images of which no bundle is known" if of is None else f"images of the bundle {of[:12]}"
        raise DdmError(f"{file}: measured {whose}; {source} is {bundle.bundle_id[:12]}")
    known = {fact.name for fact in found.identity}
    told = found.about if about is None else stated
    return card(
        found.model_copy(
            update={
                "title": told.model or found.title,
                "about": told,
                "identity": (*found.identity, *(fact for fact in own if fact.name not in known)),
            }
        )
    )
