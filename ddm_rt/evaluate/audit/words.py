"""How an audit's figures are written and explained: page and card take both from here."""

from ddm_rt.evaluate.audit.record import Audit, QualityAudit, Verdict
from ddm_rt.evaluate.intervals import Interval

PLAIN = {
    "shares": (
        "A share is the part of the images of some group that show this group. fairlearn calls it selection_rate. "
        "Each image is a place, each group is a candidate for it, and a group is selected where the image shows it."
    ),
    "figures": (
        "FD_L2 is the distance of the shares from the target. FD_ddm is how far one of two shares is from .5. "
        "demographic_parity_difference and demographic_parity_ratio are fairlearn's: the largest share less the "
        "smallest, and the smallest over the largest (the impact ratio). statistical_parity_difference and "
        "disparate_impact are aif360's, with the smallest group as the unprivileged one and the largest as the "
        "privileged one."
    ),
    "parity": (
        "Here an image is selected where it shows the outcome. The sensitive feature is the prompt, another column, or "
        "another attribute. The selection rate is the part of the images with one value of the feature that show the "
        "outcome."
    ),
    "crossings": "A cell holds the images that show all of its groups. An image that lacks one of them is in no cell.",
    "rules": (
        "Rules were given with the command. Nothing stops a second run with another rule, so it matters who approved "
        "them and when. A rule passes where the whole 95 % "
        "interval keeps to it, and fails where none of the interval does. Otherwise it is undecided. It then takes "
        "about n·((w/d)² − 1) more images, if the estimate stays. Here d is the distance from the estimate to the "
        "bound, and w is how far the interval reaches to the bound's side. Where the error rates of an attribute's "
        "judge are known, the corrected figure is judged, because a judge's errors help a rule to pass. If there is no "
        "correction then, the rule is undecided. Intersections and outcomes are never corrected."
    ),
}


def number(value: float | None) -> str:
    """Three places, on every page and card alike; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def interval_text(interval: Interval | None) -> str:
    return "" if interval is None else f"[{number(interval[0])}, {number(interval[1])}]"


def verdict_text(audit: Audit) -> str:
    """The outcome of all rules in one sentence."""
    if audit.outcome is None:
        return "No rule was set, so nothing passed or failed."
    counts = {name: sum(verdict.outcome == name for verdict in audit.rules) for name in ("PASS", "FAIL", "UNDECIDED")}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{audit.outcome}: {told}, of {len(audit.rules)} rule{'s' * (len(audit.rules) != 1)}."


def line(verdict: Verdict) -> str:
    """One verdict for a terminal."""
    return f"{verdict.outcome} {verdict.rule}: {number(verdict.value)} ({verdict.basis}); {verdict.reason}"


QUALITY = ("images", "n", "Frechet distance", "KID", "precision", "recall", "coverage")


def quality_rows(audit: QualityAudit) -> list[list[str]]:
    """Cells under QUALITY, of all images and of each group."""
    rows = [("all", audit.found, None), *((each.group, each.quality, each.reason) for each in audit.per_group)]
    return [
        [f"{name} ({reason})" if reason else name, *["–"] * 6]
        if found is None
        else [name, str(found.n), f"{found.frechet:.1f}", f"{found.kid:.4g}"]
        + [number(value) for value in (found.precision, found.recall, found.coverage)]
        for name, found, reason in rows
    ]
