"""`ddm-rt calibrate`: which groups the codes of a bundle give."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import app, console, errors, say
from ddm_rt.errors import DdmError
from ddm_rt.sample.request import SETTINGS, Request

if TYPE_CHECKING:
    from ddm_rt.sample.calibration.calibration import Settings
    from ddm_rt.workflows.calibrate import Calibrated


@app.command()
@options.asks(*SETTINGS)
def calibrate(
    bundle: Annotated[str, Argument(help="A bundle directory, or with --out the shipped one: digits.")],
    *,
    audit: Annotated[
        list[Path] | None, Option("--audit", help="A filled audit.csv beside its images; more than one may be given.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        Option("--judge", metavar="[ATTRIBUTE=]FILE", help="digits, or an ONNX classifier; one per attribute."),
    ] = None,
    groups: Annotated[
        str | None,
        Option("--groups", help="female,male; several attributes: gender:female,male;race:asian,black,white."),
    ] = None,
    target: Annotated[
        str | None, Option(help="Shares of the groups, e.g. female=.5,male=.5; by default even in each attribute.")
    ] = None,
    n: Annotated[int, Option("-n", "--n", help="Audited images in all; 16 are few, 256 allow 32 codes.")] = 64,
    images: Annotated[
        Path | None, Option("--images", help="Write images to be labelled into this directory; nothing is stored.")
    ] = None,
    out: Annotated[Path | None, Option("--out", help="Calibrate a copy of the bundle, here.")] = None,
    name: Annotated[str, Option(help="The calibration's name in the bundle; replaces one of that name.")] = "default",
    scope: Annotated[str | None, Option(help="Holds for requests of this scope alone, whatever their prompts.")] = None,
    seed: Annotated[int | None, Option(help="Of the audited images.")] = None,
    request: Request,
    backend: options.BackendName = "auto",
    threads: options.Threads = None,
) -> None:
    """Learn from audited images which groups the codes give, so that `sample --target` can name groups.

    With a judge, in one go:

        ddm-rt calibrate bundles/ours --judge digits --groups 3,8 -n 64 --target 3=.5,8=.5

    By hand: images to label, half of them; then, drawn by what was learnt, the other half; then the calibration:

        ddm-rt calibrate bundles/ours --groups female,male --images audit1/

        ddm-rt calibrate bundles/ours --audit audit1/audit.csv --target female=.5,male=.5 --images audit2/

        ddm-rt calibrate bundles/ours --audit audit1/audit.csv --audit audit2/audit.csv --target female=.5,male=.5

    Several attributes: --groups "gender:female,male;race:asian,black,white", --target "gender:uniform;race:uniform",
    or combinations, --target "female&asian=.2,...". It holds for the sampler, steps, guidance, size and precision that
    made the images; with a bundle that takes prompts also for --prompt, --negative-prompt and --guidance-scale, or
    with --scope for whatever prompts that scope has.
    """
    from ddm_rt.sample.calibration.groups import parse_attributes
    from ddm_rt.workflows import calibrate as work

    attributes = None if groups is None else parse_attributes(groups)
    if audit and judge:
        raise DdmError("--audit and --judge: expected one of them")
    if audit and (scope is not None or request != Request()):
        raise DdmError("--audit: its images were made with settings of their own; give --steps and the like without it")
    if judge and images is not None:
        raise DdmError("--images: writes images for a person to label; a judge looks at them where they are made")
    if not audit and attributes is None:
        raise DdmError("--groups: which groups are to be told apart? for example --groups female,male")
    with display.progress(errors) as bars:
        run: dict[str, Any] = {
            "backend": backend,
            "threads": threads,
            "on_step": display.step_callback(bars, "generating"),
        }
        if images is not None or not (audit or judge):
            _images(bundle, audit or [], attributes, target, n, seed, images, scope, request, run)
            return
        if audit:
            shown = work.from_audits(bundle, audit, attributes, target, name=name, out=out)
        else:
            assert attributes is not None
            shown = work.from_judges(
                bundle,
                [_named(text, attributes[0].name) for text in judge or []],
                attributes,
                target,
                n,
                1_000_000 if seed is None else seed,
                name=name,
                out=out,
                scope=scope,
                settings=request,
                **run,
            )
    for table in _tables(shown):
        console.print(table)
    say(_describe(shown))


def _images(
    bundle: str,
    audits: list[Path],
    attributes: Any,
    target: str | None,
    n: int,
    seed: int | None,
    images: Path | None,
    scope: str | None,
    request: Request,
    run: dict[str, Any],
) -> None:
    """Writes an audit set and says how to go on."""
    from ddm_rt.workflows import calibrate as work

    if images is None:
        raise DdmError(
            "--images: a directory for the images to label is needed (or --judge, or filled ones by --audit)"
        )
    seed = 1_000_000 + len(audits) if seed is None else seed
    if audits:
        path, rows = work.next_set(bundle, audits, attributes, images, n, seed, target, **run)
    else:
        path, rows = work.first_set(bundle, attributes, images, n, seed, scope=scope, settings=request, **run)
    given = " ".join(f"--audit {one}" for one in [*audits, path])
    wanted = f" --target {target!r}" if target else ""
    say(
        f"{rows} images to label: {path}\nlook at: {images / 'contact_sheet_01.png'}\n"
        f"write a group into each row (? where it can't be told), then:"
    )
    if len(audits) == 0 and rows < n:
        say(f"ddm-rt calibrate {bundle} {given}{wanted} -n {n} --images DIR    # {n - rows} more, by what was learnt")
    say(f"ddm-rt calibrate {bundle} {given}{wanted}    # the calibration")


def _named(text: str, attribute: str) -> tuple[str, str]:
    """ATTRIBUTE=FILE, or a file for the first attribute."""
    name, equals, file = text.partition("=")
    return (name, file) if equals else (attribute, text)


def _tables(shown: "Calibrated") -> Iterator[Table]:
    """What the codes give, and what the target does to every audited attribute."""
    from ddm_rt.sample.calibration import posterior
    from ddm_rt.sample.calibration.calibration import base_weights
    from ddm_rt.sample.calibration.groups import cells

    record, base = shown.record, base_weights(shown.bundle.codes)
    for attribute in record.attributes:
        counts = record.table([attribute])
        low, high = posterior.bounds(counts)
        table = Table("code", "audited", *attribute.groups, "weight", title=f"share of each {attribute.name}, by code")
        for code, row in enumerate(counts):
            shares = [f"{a:.2f}-{b:.2f}" for a, b in zip(low[code], high[code], strict=True)]
            table.add_row(str(code), str(row.sum()), *shares, f"{shown.after.code_weights[code]:.3f}")
        yield table
        table = Table(attribute.name, "uniform target", "calibrated", "reachable", title="expected shares, 90 % bounds")
        reach = record.reachable([attribute], base)
        for group in cells([attribute]):
            figures = [
                f"{share:.3f} ± {half:.3f}"
                for share, half in (one.shares[attribute.name][group] for one in (shown.before, shown.after))
            ]
            table.add_row(group, *figures, f"{reach[group][0]:.3f}-{reach[group][1]:.3f}")
        yield table


def _describe(shown: "Calibrated") -> str:
    """What was stored, in a few lines."""
    record, after, before = shown.record, shown.after, shown.before
    unsure = f", {sum(record.unsure)} more can't be told" if sum(record.unsure) else ""
    return (
        f"calibrated with {record.audited} images{unsure}: {after.target}\n"
        f"behind the samples: {after.effective_codes:.1f} codes, {after.effective_images:.0f} training images "
        f"(effective numbers; with the uniform target {before.effective_codes:.1f} and "
        f"{before.effective_images:.0f})\n"
        f"{_validity(record.settings)}bundle: {shown.bundle.path}\ncalibration: {after.name}, id {after.calibration_id}"
    )


def _validity(settings: "Settings") -> str:
    """Which prompts a calibration holds for, as a line; nothing for bundles that take none."""
    if settings.prompt is None:
        return ""
    if settings.scope is not None:
        return f"holds for: scope {settings.scope!r}, whatever its prompts\n"
    prompts = settings.prompt if isinstance(settings.prompt, tuple) else (settings.prompt,)
    against = "" if settings.negative_prompt is None else f", against {settings.negative_prompt!r}"
    return f"holds for: {', '.join(map(repr, prompts))}{against}\n"
