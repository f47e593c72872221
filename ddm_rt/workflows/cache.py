"""`ddm-rt cache`: find steps that need no call of the model, judge what that changes, and record it in the bundle."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddm_rt.bundle import Bundle, check_name, check_writable, copy_bundle
from ddm_rt.config import Balance
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.comparison.compare import check_groups, check_ratio
from ddm_rt.evaluate.comparison.kept import Ratio, decision, ratios
from ddm_rt.evaluate.comparison.paired import Decision, Paired, paired
from ddm_rt.evaluate.judge import Judge, Verdicts
from ddm_rt.evaluate.run import labelled
from ddm_rt.files import check_free
from ddm_rt.progress import OnStage, OnStep
from ddm_rt.sample.cache.fit import Fitter
from ddm_rt.sample.cache.record import Cache, CacheSettings, Fit, Judged, store
from ddm_rt.sample.loop.noise import MAX_SEED
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request


@dataclass(frozen=True)
class Tried:
    """One number of calls: the cache that was found, and what changed with it. Without a judge nothing is known."""

    cache: Cache
    shares: Paired | None = None
    kept: tuple[Ratio, ...] = ()


def find(
    source: str,
    calls: Sequence[int],
    *,
    judge: str | None,
    classes: Sequence[str] | None = None,
    groups: Sequence[str],
    reference: str,
    request: Request,
    n: int,
    fitted_on: int,
    margin: float,
    frechet_ratio: float,
    name: str | None = None,
    out: Path | None = None,
    backend: str = "auto",
    threads: int | None = None,
    on_stage: OnStage | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Tried]:
    """Try these numbers of calls, in their order, until one changes nothing; the last that was tried is recorded.

    Each is judged on n images of `request` against the same without a cache, as `ddm-rt compare` does; without a judge
    the first is recorded as it is. It is found on `fitted_on` images of another seed. The name is CALLS-of-STEPS by
    default. With `out` the bundle is copied there first, and the copy gets the record.

    Raises DdmError for numbers of calls that don't fit the steps, a bundle that can't be written to, and as `generate`.
    """
    bundle = Bundle.load(source)
    if out is None:
        check_writable(bundle, "finds the cache for")
    else:
        check_free(out)
    if request.cache is not None:
        raise DdmError("cache is given; this command finds one for requests without")
    if not calls:
        raise DdmError("calls: expected at least one number")
    if name is not None:
        check_name("cache", name)
    if judge is not None:
        check_ratio(frechet_ratio)
        if reference == "none":
            raise DdmError('reference is "none", but quality and diversity need real images; or leave out the judge')
    known = None if judge is None else Judge.load(judge, classes=classes)
    if known is not None:
        check_groups(known, groups, margin)
    pipeline = Pipeline.load(bundle, backend=backend, threads=threads)
    resolved = request.resolve(bundle)
    most = resolved.num_steps - 1
    for number in calls:
        if not 2 <= number <= most:
            raise DdmError(f"calls has {number}; expected 2 to {most}, fewer than the {most + 1} steps")
    settings = CacheSettings.of(resolved.request, resolved.table.sampler, resolved.num_steps)
    judged = None if known is None else _Judge(pipeline, known, groups, reference, request, n, margin, frechet_ratio)
    other = (request.seed + 1) % (MAX_SEED + 1)
    with pipeline.prepare(replace(request, n=fitted_on, seed=other, codes=None, scope=None)) as asked:
        fitter = Fitter(pipeline, asked, on_step)
    tried: Tried | None = None
    for place, number in enumerate(calls):
        if on_stage is not None:
            on_stage(place, len(calls), f"{number} calls")
        found = fitter.fit(number, on_step)
        cache = Cache(
            bundle_id=bundle.bundle_id,
            settings=settings,
            reuse=found.reuse,
            fit=Fit(n=fitted_on, seed=other, error=found.error, spread=found.spread),
        )
        tried = Tried(cache) if judged is None else judged.of(cache, on_step)
        yield tried
        if tried.cache.judged is None or tried.cache.judged.passed:
            break
    assert tried is not None
    name = name or f"{tried.cache.calls}-of-{settings.num_steps}"
    if out is None:
        store(bundle, tried.cache, name)
        return
    try:
        store(copy_bundle(bundle, out), tried.cache, name)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


_BALANCE: dict[Decision, Literal["equivalent", "drift", "undecided"]] = {
    Decision.EQUIVALENT: "equivalent",
    Decision.DRIFT: "drift",
    Decision.UNDECIDED: "undecided",
}


class _Judge:
    """Images without a cache, made once, and those with one held against them."""

    def __init__(
        self,
        pipeline: Pipeline,
        judge: Judge,
        groups: Sequence[str],
        reference: str,
        request: Request,
        n: int,
        margin: float,
        frechet_ratio: float,
    ) -> None:
        self._pipeline, self._judge, self._groups, self._reference = pipeline, judge, tuple(groups), reference
        self._margin, self._frechet_ratio = margin, frechet_ratio
        self._request = replace(request, n=n)
        real = labelled(reference, "reference", pipeline.bundle.training.run.data).balanced(groups)
        self._real, self._labels = judge.predict(real.images).features, np.array(real.labels)
        self._without: Verdicts | None = None

    def of(self, cache: Cache, on_step: OnStep | None) -> Tried:
        if self._without is None:
            made = self._pipeline.generate(self._request, on_step=on_step)
            self._without = self._judge.predict(made.images)
            plain: dict[str, Any] = {"target": "uniform", "scope": None, "shuffle": False, "leave_alone": None}
            self._request = replace(self._request, codes=made.codes, balance=Balance.AUTO, **plain)
        made = self._pipeline.generate(replace(self._request, cache=cache.reuse), on_step=on_step)
        verdicts = self._without, self._judge.predict(made.images)
        shares = paired(verdicts[0].labels, verdicts[1].labels, self._groups, margin=self._margin)
        strata = [(image.get("prompt"), image["code"]) for image in made.manifest["images"]]
        kept = ratios(verdicts, strata, self._real, self._labels, self._groups, self._frechet_ratio)
        judged = Judged(
            judge=self._judge.sha256,
            groups=self._groups,
            reference=self._reference,
            n=self._request.n,
            seed=self._request.seed,
            margin=self._margin,
            frechet_ratio=self._frechet_ratio,
            balance=_BALANCE[shares.decision],
            quality=decision(kept, "quality"),
            diversity=decision(kept, "diversity"),
        )
        return Tried(cache.model_copy(update={"judged": judged}), shares, kept)
