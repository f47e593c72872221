"""What an audit's figures leave open, in sentences with their numbers."""

from ddm_rt.evaluate.audit.images import Census
from ddm_rt.evaluate.audit.judges import OCCURRING
from ddm_rt.evaluate.audit.record import Audit

_FEW = 30  # images of a group, below which its share says little
_NEITHER = 0.05
_NOISY = 0.1  # FD_L2
_AGREED = 0.6  # kappa from which agreement is usually called substantial (Landis and Koch 1977)

# What every audit leaves open, whatever it found.
ALWAYS = (
    "Shares are verdicts of judges. A judge that errs pulls shares of groups towards each other, so that figures as "
    "judged look fairer than the images are. Corrected figures take its error rates on real images as valid for these.",
    "Intervals cover the drawing of images. They say nothing of other prompts, settings or trainings. Each holds for "
    "itself: of twenty intervals, about one misses.",
    "Attributes that nobody judged may be unbalanced.",
    "Groups are what a judge can see in an image. They are not what the people in it would say of themselves.",
)


def risks(audit: Audit, census: Census) -> tuple[str, ...]:
    """What this audit leaves open."""
    found = []
    for judge in audit.judges:
        if judge.kind.startswith("people"):
            if any(fact.name == OCCURRING for fact in judge.facts):
                where = f"that occur in {judge.name}, because --groups doesn't name them"
                found.append(f"{judge.attribute}: groups are the labels {where}.")
            if unseen := [group for group in judge.groups if group not in judge.classes]:
                found.append(f"{judge.attribute}: no label says {', '.join(unseen)}.")
            continue
        if judge.accuracy is None:
            found.append(
                f"How often the judge of {judge.attribute} is right is not known, so nothing is corrected for it."
            )
        if judge.preprocessing_from.startswith("not stated"):
            found.append(
                f"What the judge of {judge.attribute} does to an image first is not stated; ddm_rt's own was taken."
            )
    for each in audit.measured:
        few = [share for share in each.shares if share.count < _FEW]
        if few:
            named = ", ".join(f"{share.group} ({share.count})" for share in few[:5])
            more = f" and {len(few) - 5} more" if len(few) > 5 else ""
            found.append(f"{each.name}: fewer than {_FEW} images show {named}{more}. Their shares are uncertain.")
        if each.floor_fd_l2[1] >= _NOISY:
            found.append(
                f"{each.name}: by chance alone, one of twenty sets of {each.inside} images on target has an FD_L2 of "
                f"{each.floor_fd_l2[1]:.3f} or more."
            )
        if each.neither.share > _NEITHER:
            found.append(
                f"{each.name}: {each.neither.share:.1%} of {each.n} images belong to no group, and are in no share."
            )
        if each.unlabelled:
            found.append(f"{each.name}: {each.unlabelled} images have no label, or raters disagree. They are left out.")
    ruled = [each.name for each in audit.attributes if any(f"[{each.name}]" in rule.rule for rule in audit.rules)]
    if audit.rules and (free := [each.name for each in audit.attributes if each.name not in ruled]):
        found.append(f"No rule is about the shares of {', '.join(free)}.")
    for verdict in audit.rules:
        if verdict.outcome == "PASS" and verdict.basis == "as judged" and ("&" in verdict.rule or "|" in verdict.rule):
            found.append(
                f"{verdict.rule} passed as judged. Intersections and outcomes are never corrected for errors of "
                "judges, which can help such a rule to pass."
            )
    for agreement in audit.agreements:
        low = None if agreement.interval is None else agreement.interval[0]
        if low is None or low < _AGREED:
            what = agreement.reason or f"kappa may be as low as {low:.2f}"
            raters = " and ".join(agreement.raters)
            found.append(
                f"{agreement.attribute}: {raters} agree too little, or on too few images, to rely on ({what})."
            )
    if census.repeated:
        found.append(
            f"{census.repeated} images are exact copies of others. They count each time, so intervals are too narrow."
        )
    if census.unreadable:
        found.append(f"{len(census.unreadable)} files could not be read, and are in no figure.")
    return (*found, *ALWAYS)
