"""What an audit found: the one source of page, audit.json and card."""

from typing import Literal

from ddm_rt.config import Frozen
from ddm_rt.evaluate.audit.about import About
from ddm_rt.evaluate.evaluation import Proportion
from ddm_rt.evaluate.intervals import Interval
from ddm_rt.evaluate.quality import GroupQuality, Quality

Outcome = Literal["PASS", "FAIL", "UNDECIDED"]


class Fact(Frozen):
    """One line of a table of facts."""

    name: str
    value: str


class Figure(Frozen):
    """A metric under the name that `library` gives it. Where it has no value, `reason` says why.

    `corrected` takes the judge's errors on held-out real images into account; None where its file doesn't tell them.
    """

    name: str
    library: str
    value: float | None
    interval: Interval | None
    corrected: float | None = None
    corrected_interval: Interval | None = None
    reason: str | None = None


class Share(Frozen):
    """One group among the images that belong to some group. `floor` is the 95th percentile of |share − target| of an
    independent sampler on target.
    """

    group: str
    count: int
    share: float
    interval: Interval
    target: float
    floor: float
    corrected: float | None = None
    corrected_interval: Interval | None = None


class AttributeAudit(Frozen):
    """The groups of an attribute, or the cells of several taken together (`of` names them)."""

    name: str
    of: tuple[str, ...]
    n: int  # images with a label, in some group or in none
    inside: int  # in some group
    neither: Proportion
    unlabelled: int
    strata: Literal["none", "code"]
    shares: tuple[Share, ...]
    figures: tuple[Figure, ...]
    floor_fd_l2: tuple[float, float]  # mean and 95th percentile
    errors_known: bool  # the judge's, on held-out real images; so a rule is about the corrected figure or about none
    not_corrected: str | None  # why there are no corrected figures


class Rate(Frozen):
    """How often the outcome came out among n images with one value of the sensitive feature."""

    value: str
    n: int
    selected: int
    rate: float
    interval: Interval


class ParityAudit(Frozen):
    """An outcome (`attribute` was judged as `group`) against the values of a sensitive feature."""

    name: str
    attribute: str
    group: str
    by: str
    n: int
    rates: tuple[Rate, ...]
    figures: tuple[Figure, ...]


class GroupAccuracy(Frozen):
    """How often a judge was right on held-out real images of one group."""

    group: str
    n: int
    accuracy: float
    interval: Interval


class JudgeFacts(Frozen):
    """Who said which group an image shows, and what was done to the image before."""

    attribute: str
    kind: str
    name: str
    sha256: str | None
    licence: str | None
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    preprocessing: str
    preprocessing_from: str
    accuracy: float | None
    per_group: tuple[GroupAccuracy, ...]
    facts: tuple[Fact, ...] = ()  # of its training, as the file tells it


class Agreement(Frozen):
    """Cohen's kappa of two raters over the images that both labelled."""

    attribute: str
    raters: tuple[str, str]
    n: int
    agreed: float
    kappa: float | None
    interval: Interval | None
    reason: str | None


class Verdict(Frozen):
    """What a rule came to. `basis` says whether the judge's errors were corrected for."""

    rule: str
    outcome: Outcome
    value: float | None
    interval: Interval | None
    basis: Literal["as judged", "corrected"]
    n: int
    more_images: int | None  # at which it would be decided, if the estimate stays
    reason: str


class QualityAudit(Frozen):
    """Quality against a reference folder, in a judge's features; per group where the folder has labels."""

    reference: str
    judge: str
    feature_space: str
    found: Quality
    min_per_group: int
    per_group: tuple[GroupQuality, ...]


class Audit(Frozen):
    """An audit of one set of images."""

    schema_version: Literal[1] = 1
    title: str
    n: int
    about: About
    identity: tuple[Fact, ...]
    data: tuple[Fact, ...]
    judges: tuple[JudgeFacts, ...]
    attributes: tuple[AttributeAudit, ...]
    crossings: tuple[AttributeAudit, ...]
    parities: tuple[ParityAudit, ...]
    agreements: tuple[Agreement, ...]
    rules: tuple[Verdict, ...]
    quality: QualityAudit | None
    confidence: float
    seed: int  # of bootstrap and Monte Carlo
    risks: tuple[str, ...]
    ledger: tuple[Fact, ...] = ()  # what was handed out in use, by the ledger

    @property
    def measured(self) -> tuple[AttributeAudit, ...]:
        return (*self.attributes, *self.crossings)

    @property
    def outcome(self) -> Outcome | None:
        """Of all rules together; None without rules."""
        found = {verdict.outcome for verdict in self.rules}
        return next((each for each in ("FAIL", "UNDECIDED", "PASS") if each in found), None)
