"""`ddm-rt export-judge` and `card`, and what `evaluate` does with a folder of anybody's images."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import console, errors, measures, say, tell
from ddm_rt.errors import DdmError


def is_audit(methods: Sequence[str], judges: Sequence[str], asked: bool) -> bool:
    """Rather than a comparison by one judge: where something of an audit is asked, a judge has the name of its
    attribute or is no ONNX file, or the only path is a folder of images that `ddm-rt sample` didn't write.
    """
    named = any("=" in text or text.startswith(("clip:", "people:")) or Path(text).is_dir() for text in judges)
    only = Path(methods[0].partition("=")[2] or methods[0]) if len(methods) == 1 else None
    foreign = only is not None and only.is_dir() and not any((only / name).is_file() for name in _OURS)
    return asked or named or len(judges) > 1 or foreign


_OURS = ("manifest.json", "bundle.json")


def audit_of(methods: Sequence[str], out: Path, *, judge: Sequence[str], **asked: Any) -> None:
    """Measure, write, print; the exit code is that of the rules."""
    from ddm_rt.evaluate.audit.judges import parse_source
    from ddm_rt.evaluate.audit.run import Asked
    from ddm_rt.evaluate.audit.words import line, verdict_text
    from ddm_rt.evaluate.report.audit_page import terminal_tables
    from ddm_rt.workflows.audit import audit

    if len(methods) != 1:
        raise DdmError(f"an audit measures one folder or bundle; {len(methods)} were given: {', '.join(methods)}")
    if not judge:
        raise DdmError("--judge: an audit needs at least one, for example --judge gender=gender.onnx")
    sources = [parse_source(text) for text in judge]
    if asked["group"] and not any(source.kind == "clip" for source in sources):
        raise DdmError("--group: is for a CLIP judge (--judge clip:FOLDER); --groups names the groups of others")
    if sum(source.kind == "clip" for source in sources) > 1:
        raise DdmError("--group: of which CLIP judge? Export each with ddm-rt export-judge, and name the ONNX files")
    stated = [text.rpartition("=") for text in asked["preprocessing"] or ()]
    if any(not name for name, _, _ in stated) and len(sources) > 1:
        raise DdmError("--preprocessing: expected ATTRIBUTE=FILE, because there are several judges")
    plan = Asked(
        judges=sources,
        rules=asked["rule"] or (),
        groups=asked["groups"],
        target=asked["target"],
        classes=asked["classes"],
        preprocessing={name or sources[0].attribute: Path(file) for name, _, file in stated},
        by=asked["by"] or (),
        outcomes=asked["outcome"] or (),
        crossings=asked["cross"],
        reference=None if asked["reference"] is None else Path(asked["reference"]),
        min_per_group=asked["min_per_group"],
        skip_unreadable=bool(asked["skip_unreadable"]),
        threads=asked["threads"],
    )
    with display.progress(errors) as bars:
        found, page = audit(
            options.named(methods[0])[1],
            out,
            plan,
            about=asked["about"],
            ledger=asked["ledger"],
            prompts=asked["group"] or (),
            command=shlex.join(["ddm-rt", *sys.argv[1:]]),
            n=asked["n"],
            seed=asked["seed"],
            text=asked["text"],
            on_generated=display.step_callback(bars, "generating"),
            on_judged=display.step_callback(bars, "judging"),
        )
    for table in terminal_tables(found):
        console.print(table)
    for verdict in found.rules:
        tell(line(verdict))
    if found.rules:
        tell(verdict_text(found))
    say(f"report: {page}")
    raise typer.Exit({"FAIL": 1, "UNDECIDED": 3}.get(found.outcome or "", 0))


@measures("export-judge")
def export_judge(
    folder: Annotated[Path, Argument(help="Folder of transformers: image classification, or CLIP.")],
    *,
    out: Annotated[Path, Option(help="ONNX file to write.")],
    group: Annotated[
        list[str] | None, Option(metavar="[GROUP=]PROMPT", help="CLIP: a group and the words that describe it.")
    ] = None,
) -> None:
    """Write a judge of transformers as one ONNX file, so that measuring needs no torch.

    The file holds the classes, what is done to an image first, the licence, and for CLIP the prompts. Prompts of one
    group are averaged. Weights must be safetensors. Nothing is downloaded.

    Examples:

        ddm-rt export-judge age-folder/ --out age.onnx
        ddm-rt export-judge clip-folder/ --group "woman=a photo of a woman" --group "man=a photo of a man"
            --out gender.onnx
        ddm-rt evaluate images/ --judge gender=gender.onnx --out audit/
    """
    from ddm_rt.workflows.export_judge import export_judge as export

    if out.is_dir():
        raise DdmError(f"{out}: is a directory; expected the name of an ONNX file")
    with display.status() as update:
        update("exporting")
        error = export(folder, out, group or ())
    say(f"judge: {out}\nlargest difference to torch: {error:.2g}")


@measures()
def card(
    bundle: Annotated[str, Argument(help="A bundle directory, or digits, which comes with ddm-rt.")],
    *,
    audit: Annotated[
        Path | None, Option(help="Report of an audit of this bundle: its directory or audit.json.")
    ] = None,
    about: Annotated[Path | None, Option(help="TOML file: provider, intended_use, next_audit and so on.")] = None,
    out: Annotated[Path | None, Option(help="File to write, e.g. README.md. By default the card is printed.")] = None,
) -> None:
    """Write a model card of a bundle, in Markdown with the fields that Hugging Face reads.

    Examples:

        ddm-rt evaluate digits --judge digit=digits --groups digit:3,8 -n 1000 --out audit/
        ddm-rt card digits --audit audit/ --about about.toml --out README.md
    """
    from ddm_rt.files import write_atomic
    from ddm_rt.workflows.audit import card_of

    text = card_of(bundle, audit, about)
    if out is None:
        print(text, end="")
        return
    if out.exists():
        raise DdmError(f"{out} exists; choose another --out")
    write_atomic(out, text)
    say(f"card: {out}")
