"""Rules that are set before anything is measured, and what they come to.

A rule is METRIC[WHAT]<=NUMBER, or with >=. WHAT is an attribute ("gender"), several together ("gender&race"), or an
outcome against a sensitive feature ("gender=female|prompt"). Without it the rule is about each attribute that has the
metric. `share:GROUP` is a metric, too.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.audit import measures
from ddm_rt.evaluate.audit.record import AttributeAudit, Figure, ParityAudit, Verdict
from ddm_rt.evaluate.intervals import Interval

_RULE = re.compile(r"(?P<metric>[^\[\]<>=]+?)\s*(?:\[(?P<what>[^\[\]]+)\])?\s*(?P<sign><=|>=)\s*(?P<bound>\S+)")
_SHARE = "share:"
_SAME = 1e-9  # two figures that differ by rounding alone
_EXAMPLE = "expected METRIC[ATTRIBUTE]<=NUMBER, for example FD_ddm[gender]<=.05"


@dataclass(frozen=True)
class Rule:
    text: str
    metric: str
    what: str | None
    at_most: bool  # rather than at least
    bound: float

    def holds(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


def parse_rule(text: str) -> Rule:
    """Raises DdmError quoting a rule that isn't one."""
    match = _RULE.fullmatch(text.strip())
    if match is None:
        raise DdmError(f"--rule {text!r}: {_EXAMPLE}")
    metric = match["metric"].strip()
    if metric not in measures.LIBRARIES and not metric.startswith(_SHARE):
        known = ", ".join([*measures.LIBRARIES, f"{_SHARE}GROUP"])
        raise DdmError(f"--rule {text!r}: the metric {metric!r} is unknown; known: {known}")
    try:
        bound = float(match["bound"])
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise DdmError(f"--rule {text!r}: the bound {match['bound']!r} is no number; {_EXAMPLE}")
    what = None if match["what"] is None else match["what"].strip()
    return Rule(text.strip(), metric, what, match["sign"] == "<=", bound)


def check(rules: Sequence[Rule], offered: Mapping[str, Sequence[str]]) -> None:
    """Raises DdmError naming a rule about something that isn't measured. `offered`: names of metrics by WHAT."""
    for rule in rules:
        if rule.what is not None and rule.what not in offered:
            raise DdmError(f"--rule {rule.text!r}: {rule.what!r} isn't measured; measured: {', '.join(offered)}")
        places = [rule.what] if rule.what is not None else [name for name in offered if _plain(name)]
        if not any(rule.metric in offered[place] for place in places):
            where = f" of {rule.what}" if rule.what is not None else ""
            known = ", ".join(dict.fromkeys(metric for place in places for metric in offered[place]))
            more = "; FD_ddm is for two groups with an even target" if rule.metric == measures.FD_DDM else ""
            raise DdmError(f"--rule {rule.text!r}: no {rule.metric}{where} is measured; there are: {known}{more}")


def metrics_of(labels: measures.Labels) -> list[str]:
    """Names of the metrics that an attribute will have."""
    pair = len(labels.groups) == 2 and all(math.isclose(share, 0.5) for share in labels.target)
    own = [name for name in measures.LIBRARIES if pair or name != measures.FD_DDM]
    return [*own, *(_SHARE + group for group in labels.groups)]


def judge(
    rules: Sequence[Rule], attributes: Sequence[AttributeAudit], parities: Sequence[ParityAudit]
) -> tuple[Verdict, ...]:
    """A verdict for each rule and everything that it is about."""
    measured: list[AttributeAudit | ParityAudit] = [*attributes, *parities]
    verdicts: list[Verdict] = []
    for rule in rules:
        about = [found for found in measured if rule.what == found.name or (rule.what is None and _plain(found.name))]
        pairs = [(found, _judged(found, e)) for found in about for e in _all_figures(found) if e.name == rule.metric]
        sign = "<=" if rule.at_most else ">="
        for found, figure in pairs:
            n = found.inside if isinstance(found, AttributeAudit) else found.n
            text = f"{rule.metric}[{found.name}]{sign}{rule.bound:g}"
            verdicts.append(_verdict(rule, text, n, figure, _ends(found, rule.metric)))
        if not pairs:
            why = "no image shows what it is about"
            nothing = Figure(name=rule.metric, library="", value=None, interval=None, reason=why)
            verdicts.append(_verdict(rule, rule.text, 0, nothing))
    return tuple(verdicts)


def _plain(name: str) -> bool:
    """An attribute of its own, rather than a crossing or an outcome."""
    return "&" not in name and "|" not in name


def _judged(found: AttributeAudit | ParityAudit, figure: Figure) -> Figure:
    """The figure; without a value where the judge's errors are known and can't be corrected for."""
    if isinstance(found, AttributeAudit) and found.errors_known and figure.corrected is None:
        return figure.model_copy(update={"value": None, "interval": None, "reason": found.not_corrected})
    return figure


def _ends(found: AttributeAudit | ParityAudit, metric: str) -> list[float]:
    """Where the metric's range ends: an interval that ends there, too, would reach further."""
    if isinstance(found, ParityAudit):
        return [-1, 0, 1]
    target = np.array([share.target for share in found.shares])
    own = {
        measures.FD_DDM: 0.5,
        measures.FD_L2: float(np.linalg.norm(np.eye(len(target)) - target, axis=1).max()),
        measures.SMALLEST: 1 / len(target),
    }
    return [-1, 0, 1, *([own[metric]] if metric in own else [])]


def _all_figures(found: AttributeAudit | ParityAudit) -> list[Figure]:
    shares = found.shares if isinstance(found, AttributeAudit) else ()
    return [
        *found.figures,
        *(
            Figure(
                name=_SHARE + each.group,
                library="ddm_rt",
                value=each.share,
                interval=each.interval,
                corrected=each.corrected,
                corrected_interval=each.corrected_interval,
            )
            for each in shares
        ),
    ]


def _verdict(rule: Rule, text: str, n: int, figure: Figure, ends: Sequence[float] = ()) -> Verdict:
    """PASS where the whole interval keeps to the rule, FAIL where none of it does.

    A judge's errors pull shares towards each other, which helps a rule to pass. So where they are known, the corrected
    figure is judged.
    """
    fixed = figure.corrected is not None
    value, interval = (figure.corrected, figure.corrected_interval) if fixed else (figure.value, figure.interval)
    more, outcome = None, "UNDECIDED"
    if value is None or interval is None:
        reason = figure.reason or "no value"
    else:
        kept = [rule.holds(bound) for bound in interval]
        within = "{:.3f} to {:.3f}".format(*interval)
        if all(kept):
            outcome, reason = "PASS", f"the whole interval, {within}, keeps to the rule"
        elif not any(kept):
            outcome, reason = "FAIL", f"the whole interval, {within}, breaks the rule"
        else:
            more = more_images(rule, value, interval, n)
            reason = f"the interval, {within}, holds the bound {rule.bound:g}; "
            if more is None:
                reason += "the estimate is the bound, so that no number of images decides"
            else:
                # The judge's part of an interval stays. One that ends with the metric's range would reach further.
                end = interval[rule.bound > value]
                cut = any(math.isclose(end, each, rel_tol=0, abs_tol=_SAME) for each in (*ends, value))
                most = "at least" if fixed or cut else "about"
                reason += f"{most} {more} more image{'s' * (more != 1)} would decide if the estimate stays"
    return Verdict(
        rule=text,
        outcome=outcome,  # type: ignore[arg-type]
        value=value,
        interval=interval,
        basis="corrected" if fixed else "as judged",
        n=n,
        more_images=more,
        reason=reason,
    )


def more_images(rule: Rule, value: float, interval: Interval, n: int) -> int | None:
    """Beyond n, if the estimate stays and its interval narrows as 1/√n: n·((w/d)² − 1), rounded up.

    d is how far the bound lies from the estimate, w how far the interval reaches to the bound's side. None where d is
    0. The part of an interval that comes from the judge's errors doesn't narrow with n, so that it may take more.
    """
    distance = abs(rule.bound - value)
    width = interval[1] - value if rule.bound > value else value - interval[0]
    if math.isclose(distance, 0, rel_tol=0, abs_tol=_SAME):
        return None
    return max(1, math.ceil(n * ((width / distance) ** 2 - 1)))
