"""`ddm-rt calibrate`: which groups the codes of a bundle give."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import console, errors, makes_images, say
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.report.columns import Columns
from ddm_rt.sample.request import FILES, SETTINGS, Request

if TYPE_CHECKING:
    from ddm_rt.sample.calibration.calibration import Settings
    from ddm_rt.sample.calibration.hold import Held
    from ddm_rt.workflows.calibrate import Calibrated


@makes_images(Other_options="name scope")
@options.asks(*SETTINGS, *FILES)
def calibrate(
    bundle: Annotated[str, Argument(help="A bundle directory. With --out also digits, the shipped bundle.")],
    *,
    audit: Annotated[list[Path] | None, Option(help="A filled audit.csv, beside its images. May be repeated.")] = None,
    judge: Annotated[
        list[str] | None,
        Option(metavar="[ATTRIBUTE=]FILE", help="Classifier that labels the images: digits or an ONNX file."),
    ] = None,
    groups: Annotated[str | None, Option(help="Groups to tell apart, e.g. female,male.")] = None,
    target: Annotated[str | None, Option(help="Shares of the groups, e.g. female=.5,male=.5. Even by default.")] = None,
    hold: Annotated[
        str | None,
        Option(
            metavar="ATTRIBUTE[<=BOUND]",
            help="Attribute that the target must not move by more than the bound, .05 by default. Quote it.",
        ),
    ] = None,
    n: Annotated[
        int, Option("-n", "--n", help="Number of audited images in all. 16 are few; 256 allow 32 codes.")
    ] = 64,
    images: Annotated[Path | None, Option(help="Directory for images to label. This calibrates nothing yet.")] = None,
    out: Annotated[Path | None, Option(help="Copy the bundle into this directory and calibrate the copy.")] = None,
    name: Annotated[str, Option(help="Name of the calibration. It replaces one of the same name.")] = "default",
    scope: Annotated[str | None, Option(help="Scope whose requests it holds for, whatever their prompts.")] = None,
    seed: Annotated[int | None, Option(help="Seed of the audited images.")] = None,
    request: Request,
    backend: options.BackendName = "auto",
    threads: options.Threads = None,
) -> None:
    """Learn from audited images which groups the codes give, so that `sample --target` can name groups.

    With a judge, one command does it:

        ddm-rt calibrate bundles/ours --judge digits --groups 3,8 -n 64 --target 3=.5,8=.5

    By hand, the first command writes half of the images. Label them. The second command draws the other half by what
    it has learnt. Label these, too. The third command calibrates:

        ddm-rt calibrate bundles/ours --groups female,male --images audit1/
        ddm-rt calibrate bundles/ours --audit audit1/audit.csv --target female=.5,male=.5 --images audit2/
        ddm-rt calibrate bundles/ours --audit audit1/audit.csv --audit audit2/audit.csv --target female=.5,male=.5

    With several attributes, --groups is "gender:female,male;race:asian,black,white". --target is then
    "gender:uniform;race:uniform", or it names combinations: "female&asian=.2,...".

    A target for one attribute moves the others, and the command says by how much. --hold keeps one of them where the
    uniform target has it. Where both can't be had, it prints the compromises and calibrates nothing:

        ddm-rt calibrate bundles/faces --judge gender=gender.onnx --judge race=race.onnx
            --groups "gender:f,m;race:a,b,w" --target gender:uniform --hold "race<=.05"

    The bound is the distance between the shares of its groups: the root of the sum of squared differences. With
    --hold "race:uniform<=.05" they are held at even shares instead.

    A calibration holds for the sampler, steps, guidance, size and precision that made the images. Where there are
    prompts, it holds for those prompts, the negative prompt and the guidance on them. With --scope it holds for all
    prompts of that scope.
    """
    from ddm_rt.sample.calibration.groups import parse_attributes
    from ddm_rt.sample.calibration.hold import NotBoth, parse_hold
    from ddm_rt.workflows import calibrate as work

    attributes = None if groups is None else parse_attributes(groups)
    if audit and judge:
        raise DdmError("--audit and --judge: give one of them, not both")
    if audit and (scope is not None or request != Request()):
        raise DdmError(
            "--audit: its images were made with settings of their own; leave out --scope, --steps and the like"
        )
    if judge and images is not None:
        raise DdmError("--images: this directory is for images that a person labels; --judge needs none")
    if not audit and attributes is None:
        raise DdmError("--groups: name the groups to tell apart, for example --groups female,male")
    if hold is not None and attributes is not None:
        parse_hold(hold, attributes)
    with display.progress(errors) as bars:
        run: dict[str, Any] = {
            "backend": backend,
            "threads": threads,
            "on_step": display.step_callback(bars, "generating"),
        }
        if images is not None or not (audit or judge):
            _images(bundle, audit or [], attributes, target, hold, n, seed, images, scope, request, run)
            return
        try:
            if audit:
                shown = work.from_audits(bundle, audit, attributes, target, hold=hold, name=name, out=out)
            else:
                assert attributes is not None
                shown = work.from_judges(
                    bundle,
                    [_named(text, attributes[0].name) for text in judge or []],
                    attributes,
                    target,
                    n,
                    1_000_000 if seed is None else seed,
                    hold=hold,
                    name=name,
                    out=out,
                    scope=scope,
                    settings=request,
                    **run,
                )
        except NotBoth as error:
            console.print(_curve(error.held))
            raise
    for table in _tables(shown):
        console.print(table)
    say(_describe(shown))


def _images(
    bundle: str,
    audits: list[Path],
    attributes: Any,
    target: str | None,
    hold: str | None,
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
        raise DdmError("--images: name a directory for the images to label (or give --judge, or --audit)")
    seed = 1_000_000 + len(audits) if seed is None else seed
    if audits:
        path, rows = work.next_set(bundle, audits, attributes, images, n, seed, target, hold=hold, **run)
    else:
        path, rows = work.first_set(bundle, attributes, images, n, seed, scope=scope, settings=request, **run)
    given = " ".join(f"--audit {one}" for one in [*audits, path])
    wanted = (f" --target {target!r}" if target else "") + (f" --hold {hold!r}" if hold else "")
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


def _tables(shown: "Calibrated") -> Iterator[Columns]:
    """What the codes give, and what the target does to every audited attribute."""
    from ddm_rt.sample.calibration import posterior
    from ddm_rt.sample.calibration.calibration import base_weights
    from ddm_rt.sample.calibration.groups import cells

    record, base = shown.record, base_weights(shown.bundle.codes)
    for attribute in record.attributes:
        counts = record.table([attribute])
        low, high = posterior.bounds(counts)
        shares = [
            (group, [f"{a:.2f}-{b:.2f}" for a, b in zip(low[:, k], high[:, k], strict=True)])
            for k, group in enumerate(attribute.groups)
        ]
        shares.append(("weight", [f"{weight:.3f}" for weight in shown.after.code_weights[: len(counts)]]))
        names = {"code": list(map(str, range(len(counts)))), "audited": [str(row.sum()) for row in counts]}
        yield Columns(names, shares, title=f"share of each {attribute.name}, by code")
        reach, groups = record.reachable([attribute], base), cells([attribute])
        expected = [
            (name, ["{:.3f} ± {:.3f}".format(*one.shares[attribute.name][group]) for group in groups])
            for name, one in (("uniform target", shown.before), ("calibrated", shown.after))
        ]
        expected.append(("reachable", ["{:.3f}-{:.3f}".format(*reach[group][:2]) for group in groups]))
        yield Columns({attribute.name: groups}, expected, title="expected shares, 90 % bounds")
    if shown.held is not None and shown.held.bound < shown.held.curve[-1].held:
        yield _curve(shown.held)


def _curve(held: "Held") -> Columns:
    """The compromises between a target and a hold."""
    points = held.curve
    figures = [
        ("off the target by", [f"{point.missed:.3f}" for point in points]),
        *((group, [f"{point.shares[group]:.3f}" for point in points]) for group in points[0].shares),
        ("codes", [f"{point.effective_codes:.1f}" for point in points]),
        ("images", [f"{point.effective_images:.0f}" for point in points]),
    ]
    return Columns(
        {f"{held.attribute} off by": [f"{point.held:.3f}" for point in points]},
        figures,
        title=f"{held.target} against {held.attribute}; codes and images are effective numbers",
    )


def _describe(shown: "Calibrated") -> str:
    """What was stored, in a few lines."""
    record, after, before = shown.record, shown.after, shown.before
    unsure = f", {sum(record.unsure)} more can't be told" if sum(record.unsure) else ""
    return (
        f"calibrated with {record.audited} images{unsure}: {after.target}\n"
        f"behind the samples: {after.effective_codes:.1f} codes, {after.effective_images:.0f} training images "
        f"(effective numbers; with the uniform target {before.effective_codes:.1f} and "
        f"{before.effective_images:.0f})\n"
        f"{_moved(shown)}{_validity(record.settings)}bundle: {shown.bundle.path}\n"
        f"calibration: {after.name}, id {after.calibration_id}"
    )


def _moved(shown: "Calibrated") -> str:
    """What became of the attributes that the target doesn't name, a line for each."""
    from ddm_rt.sample.calibration.groups import parse_target
    from ddm_rt.sample.calibration.hold import moved

    aimed = {one.name for part in parse_target(shown.after.target, shown.record.attributes) for one in part.attributes}
    lines = ""
    for attribute in shown.record.attributes:
        if attribute.name in aimed:
            continue
        by = moved(shown.before, shown.after, attribute.name)
        lines += (
            f"{attribute.name}: {shown.held.distance:.3f} off the shares to hold, bound {shown.held.bound:g}\n"
            if shown.held is not None and shown.held.attribute == attribute.name
            else f"{attribute.name}: its shares moved by {by:.3f} (--hold keeps one attribute within a bound)\n"
        )
    return lines


def _validity(settings: "Settings") -> str:
    """Which prompts a calibration holds for, as a line; nothing for bundles that take none."""
    if settings.prompt is None:
        return ""
    if settings.scope is not None:
        return f"holds for: scope {settings.scope!r}, whatever its prompts\n"
    prompts = settings.prompt if isinstance(settings.prompt, tuple) else (settings.prompt,)
    against = "" if settings.negative_prompt is None else f", against {settings.negative_prompt!r}"
    return f"holds for: {', '.join(map(repr, prompts))}{against}\n"
