"""The audit as a Markdown model card, with the fields that Hugging Face reads before it."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ddm_rt.evaluate.audit.about import NOT_STATED
from ddm_rt.evaluate.audit.record import AttributeAudit, Audit, Fact, Figure
from ddm_rt.evaluate.audit.words import PLAIN, QUALITY, interval_text, number, quality_rows, verdict_text

_TAGS = ("fairness", "bias", "image-generation", "ddm_rt")
_LICENCE = re.compile(r"[a-z0-9.+-]+")  # an identifier as the Hub has them; other words are for the text alone
_NO_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufffe\uffff]")  # characters that JSON allows in a text
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def card(audit: Audit) -> str:
    """YAML front matter and Markdown."""
    about = audit.about
    parts = [
        f"# {_text(audit.title)}",
        _table(("what", "value"), about.told("version", "provider", "licence", "base_model", "contact")),
        "## Intended use",
        _table(("what", "value"), about.told("intended_use", "excluded_use", "people_affected")),
        "## Identity",
        _facts(audit.identity),
        "## Training data",
        _table(("what", "value"), about.told("training_data", "labelling", "representativeness", "gaps", "mitigation")),
        "## Evaluation",
    ]
    if not audit.attributes:
        parts.append(
            f"{verdict_text(audit)} No images were measured. `ddm-rt evaluate` does, and its report has a card."
        )
    else:
        parts += _evaluation(audit)
    parts += ["## Residual risk", f"As its provider states it: {_text(about.residual_risk or NOT_STATED)}"]
    parts.append("\n".join(f"- {_text(risk)}" for risk in audit.risks))
    parts += ["## Monitoring", _table(("what", "value"), monitoring(audit))]
    return _front_matter(audit) + "\n\n".join(part for part in parts if part) + "\n"


def monitoring(audit: Audit) -> list[tuple[str, str]]:
    """What is planned, and what a ledger says of the images that were made in use."""
    planned = audit.about.told("drift_policy", "next_audit")
    return [*planned, *((fact.name, fact.value) for fact in audit.ledger)]


def _evaluation(audit: Audit) -> list[str]:
    parts = [f"**{verdict_text(audit)}**", PLAIN["rules"]]
    parts.append(f"Rules were approved by: {_text(audit.about.rule_approved_by or NOT_STATED)}")
    if audit.rules:
        verdicts = [
            (each.rule, each.outcome, _figure(each.value, each.interval), each.basis, each.n, each.reason)
            for each in audit.rules
        ]
        parts.append(_table(("rule", "outcome", "value [95 %]", "basis", "n", "reason"), verdicts))
    parts += ["### Images", _facts(audit.data), "### Factors and judges"]
    parts.append(f"Groups were defined by: {_text(audit.about.groups_defined_by or NOT_STATED)}")
    heads = ("attribute", "judge", "kind", "licence", "accuracy on held-out real images", "preprocessing")
    parts.append(
        _table(
            heads,
            [
                (
                    each.attribute,
                    f"{each.name} {(each.sha256 or '')[:12]}".strip(),
                    each.kind,
                    each.licence or NOT_STATED,
                    "; ".join(
                        f"{row.group}: {_figure(row.accuracy, row.interval)}, n = {row.n}" for row in each.per_group
                    )
                    or "not known",
                    f"{each.preprocessing} ({each.preprocessing_from})",
                )
                for each in audit.judges
            ],
        )
    )
    parts += ["### Group shares", PLAIN["shares"], PLAIN["figures"]]
    for each in audit.attributes:
        parts += _attribute(each)
    if audit.crossings:
        parts += ["### Intersections", PLAIN["crossings"]]
        for each in audit.crossings:
            parts += _attribute(each)
    if audit.parities:
        parts += ["### Outcomes by a sensitive feature", PLAIN["parity"]]
        for parity in audit.parities:
            parts.append(f"#### {_text(parity.name)}")
            rates = [(each.value, each.n, each.selected, _figure(each.rate, each.interval)) for each in parity.rates]
            parts.append(_table((_text(parity.by), "n", "with the outcome", "selection_rate [95 %]"), rates))
            parts.append(_figures(parity.figures))
    if audit.agreements:
        rows = [
            (
                row.attribute,
                " and ".join(row.raters),
                row.n,
                number(row.agreed),
                _figure(row.kappa, row.interval, row.reason),
            )
            for row in audit.agreements
        ]
        parts += ["### Agreement of raters", _table(("attribute", "raters", "n", "same label", "kappa [95 %]"), rows)]
    if audit.quality is not None:
        parts += [
            "### Quality",
            f"Against {audit.quality.found.n_reference} images of {_text(audit.quality.reference)}, in the "
            f"{audit.quality.feature_space} of the judge of {_text(audit.quality.judge)}. These distances are not FID.",
            _table(QUALITY, quality_rows(audit.quality)),
        ]
    return parts


def _attribute(each: AttributeAudit) -> list[str]:
    fixed = any(share.corrected is not None for share in each.shares)
    heads = ("group", "n", "share [95 %]", *(["corrected share [95 %]"] if fixed else []), "target")
    rows = [
        (
            share.group,
            share.count,
            _figure(share.share, share.interval),
            *([_figure(share.corrected, share.corrected_interval)] if fixed else []),
            number(share.target),
        )
        for share in each.shares
    ]
    neither = f"{each.neither.count} of {each.n} images belong to no group; {each.unlabelled} have no label."
    why = "" if each.not_corrected is None else f" Not corrected for the judge's errors: {_text(each.not_corrected)}."
    mean, most = map(number, each.floor_fd_l2)
    floor = f" Noise floor of FD_L2: {mean} on average, {most} at most in 95 %."
    return [f"#### {_text(each.name)}", neither + why + floor, _table(heads, rows), _figures(each.figures)]


def _figures(figures: Sequence[Figure]) -> str:
    fixed = any(figure.corrected is not None for figure in figures)
    rows = [
        (
            figure.name,
            figure.library,
            _figure(figure.value, figure.interval, figure.reason),
            *([_figure(figure.corrected, figure.corrected_interval)] if fixed else []),
        )
        for figure in figures
    ]
    return _table(("metric", "library", "value [95 %]", *(["corrected [95 %]"] if fixed else [])), rows)


def _figure(value: float | None, interval: tuple[float, float] | None, reason: str | None = None) -> str:
    if value is None and reason:
        return f"– ({reason})"
    return f"{number(value)} {interval_text(interval)}".strip()


def _facts(facts: Iterable[Fact]) -> str:
    rows = [(fact.name, fact.value) for fact in facts]
    return _table(("what", "value"), rows) if rows else "Nothing is known."


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads)]
    written = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    written += ["| " + " | ".join(_text(str(cell)) for cell in row) + " |" for row in rows]
    return "\n".join(written)


def _text(text: str) -> str:
    """What somebody else wrote, so that it is text in Markdown, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _front_matter(audit: Audit) -> str:
    """Each value is written as JSON, which YAML reads."""
    about = audit.about
    prompted = any(parity.by == "prompt" for parity in audit.parities)
    task = about.pipeline_tag or ("text-to-image" if prompted else "unconditional-image-generation")
    fields: dict[str, Any] = {}
    if about.licence is not None and _LICENCE.fullmatch(about.licence.lower()):
        fields["license"] = about.licence.lower()
    if about.base_model is not None:
        fields["base_model"] = about.base_model
    fields |= {"pipeline_tag": task, "tags": list(_TAGS)}
    results = [_result(audit, each, task) for each in audit.measured]
    if results:
        fields["model-index"] = [{"name": audit.title, "results": results}]
    lines = [f"{name}: {_NO_YAML.sub('', json.dumps(value, ensure_ascii=False))}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---", "", ""])


def _result(audit: Audit, each: AttributeAudit, task: str) -> dict[str, Any]:
    metrics = [
        {"type": figure.name, "name": f"{figure.name} of {each.name}", "value": float(number(figure.value))}
        for figure in each.figures
        if figure.value is not None
    ]
    metrics += [
        {"type": "selection_rate", "name": f"share of {share.group}", "value": float(number(share.share))}
        for share in each.shares
    ]
    dataset = {"type": "generated-images", "name": f"{audit.title}, {each.inside} images, {each.name}"}
    return {"task": {"type": task}, "dataset": dataset, "metrics": metrics}
