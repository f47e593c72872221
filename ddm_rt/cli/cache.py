"""`ddm-rt cache`: steps that need no call of the model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import console, errors, makes_images, say, tell
from ddm_rt.evaluate.report.columns import Columns
from ddm_rt.sample.request import SETTINGS, Request

if TYPE_CHECKING:
    from ddm_rt.workflows.cache import Tried

_SETTINGS = tuple(name for name in SETTINGS if name != "cache")


@makes_images(Judging="judge groups reference classes margin frechet_ratio", Other_options="name seed fitted_on")
@options.asks(*_SETTINGS)
def cache(
    bundle: Annotated[str, Argument(help="A bundle directory. With --out also digits, the shipped bundle.")],
    *,
    calls: Annotated[str, Option(help="Numbers of calls to try, with commas. The first that passes is recorded.")] = (
        "5,6,8,10,12"
    ),
    n: Annotated[int, Option("-n", min=1, help="Number of images to judge, with a cache and without.")] = 1000,
    judge: Annotated[str, Option(help="Classifier that tells the groups apart: digits, an ONNX file, or none.")] = (
        "digits"
    ),
    groups: options.Groups = "3,8",
    reference: Annotated[str, Option(help="Labelled images for quality: digits:CLASSES, or a folder.")] = "digits:3,8",
    classes: options.Classes = None,
    margin: Annotated[float, Option(help="Largest difference of a share that still counts as none.")] = 0.03,
    frechet_ratio: Annotated[
        float, Option(help="Largest ratio of the Frechet distances that still counts as kept.")
    ] = 1.05,
    out: Annotated[Path | None, Option(help="Copy the bundle into this directory, and record the cache there.")] = None,
    name: Annotated[str | None, Option(help="Name of the cache: CALLS-of-STEPS by default. One is replaced.")] = None,
    seed: options.Seed = 0,
    fitted_on: Annotated[int, Option(min=2, help="Number of images that a cache is found on.")] = 96,
    request: Request,
    backend: options.BackendName = "auto",
    threads: options.Threads = None,
) -> None:
    """Find steps that need no call of the model, and record them in the bundle for `sample --cache`.

    Between two calls the model's output changes little, and what it changes can be foreseen. A cache says which steps
    call the model, and how each goes on to the next of them. It is found on a few images without training: the steps
    and their coefficients are those with the least squared error.

    Each number of calls is judged on other images, against the same seeds and codes without a cache: by group shares,
    quality and diversity, as in ddm-rt compare. The first that changes none of them is recorded, or the last. `sample
    --cache auto` takes what passed. `--cache 8` takes any.

    The exit code is 0 if the recorded cache passed, 1 if it changes something, and 3 if that is undecided. With --judge
    none, nothing is judged.

    A cache holds for the sampler, steps, guidance and size that it was found for. Samplers that add noise have none.

    Examples:

        ddm-rt cache bundles/ours --groups 3,8 --reference digits:3,8
        ddm-rt cache digits --out bundles/digits --calls 6
        ddm-rt cache bundles/faces --judge gender.onnx --groups female,male --reference faces/
        ddm-rt cache bundles/sd --prompt "a doctor" --judge none --calls 10 --fitted-on 8
    """
    from dataclasses import replace

    from ddm_rt.evaluate.report import comparison_page
    from ddm_rt.sample.cache.record import MOST_FRECHET_RATIO, MOST_MARGIN
    from ddm_rt.workflows import cache as work

    tried: list[Tried] = []
    with display.progress(errors) as bars:
        for each in work.find(
            bundle,
            [options.number("--calls", part) for part in calls.split(",")],
            judge=None if judge == "none" else judge,
            classes=options.names(classes),
            groups=groups.split(","),
            reference=reference,
            request=replace(request, seed=seed),
            n=n,
            fitted_on=fitted_on,
            margin=margin,
            frechet_ratio=frechet_ratio,
            name=name,
            out=out,
            backend=backend,
            threads=threads,
            on_stage=display.step_callback(bars, "trying"),
            on_step=display.step_callback(bars, "generating"),
        ):
            tried.append(each)
    console.print(_table(tried))
    last = tried[-1].cache
    say(f"recorded in {bundle if out is None else out}: {last.calls} of {last.settings.num_steps} steps call the model")
    tell(f"they are the steps {', '.join(map(str, last.reuse.steps))}")
    for line in comparison_page.kept_sentences(tried[-1].kept, "the whole walk", "the cache"):
        tell(line)
    if last.judged is not None and last.judged.passed and not last.judged.convinces:
        say(f"auto does not take it: margin and ratio may be {MOST_MARGIN:g} and {MOST_FRECHET_RATIO:g} at most")
    raise typer.Exit(_verdict(tried[-1]))


def _table(tried: "list[Tried]") -> Columns:
    judged = [each.cache.judged for each in tried]
    columns = [
        ("rms error", [f"{each.cache.fit.error:.4f}" for each in tried]),
        ("of the spread", [f"{each.cache.fit.error / max(each.cache.fit.spread, 1e-12):.1%}" for each in tried]),
    ]
    if judged[0] is not None:
        columns += [
            ("shares", [one.balance if one else "" for one in judged]),
            ("quality", [(one.quality or "not judged") if one else "" for one in judged]),
            ("diversity", [(one.diversity or "not judged") if one else "" for one in judged]),
        ]
    return Columns({"calls": [str(each.cache.calls) for each in tried]}, columns)


def _verdict(tried: "Tried") -> int:
    judged = tried.cache.judged
    if judged is None or judged.passed:
        return 0
    return 1 if {"drift", "changed"} & {judged.balance, judged.quality, judged.diversity} else 3
