"""`ddm-rt train-judge` and `evaluate`: the classifier that measures groups, and what it finds in several methods."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import console, measures, say
from ddm_rt.cli.audit import audit_of, is_audit
from ddm_rt.sample.request import Request


@measures("train-judge")
def train_judge(
    out: Annotated[Path, Option(help="ONNX file to write.")],
    data: Annotated[str, Option(help="Labelled images that no generator sees: digits, or a folder.")] = "digits",
    held_out: Annotated[str | None, Option(help="Labelled images that measure the judge. digits has its own.")] = None,
    steps: Annotated[int, Option(help="Number of optimizer steps.")] = 1200,
    seed: Annotated[int, Option(help="Seed of the training.")] = 0,
    image_size: Annotated[int, Option(help="Width and height of the images that the judge sees.")] = 32,
    channels: Annotated[int, Option(help="1 for grey images, 3 for colour.")] = 1,
) -> None:
    """Train the classifier that measures groups. No generator is trained or sampled with it.

    Example: ddm-rt train-judge --data digits --out judge.onnx
    """
    from ddm_rt.workflows.train_judge import make_judge

    with display.bar("judge") as update:
        accuracy = make_judge(
            data, held_out, out, steps=steps, seed=seed, image_size=image_size, channels=channels, progress=update
        )
    say(f"judge: {out}\nheld-out accuracy: {accuracy:.4f}")


_MORE = "training min_per_group attribute asked"
_AUDIT = "rule about ledger group by outcome cross target preprocessing skip_unreadable threads"  # of an audit alone


@measures(More_measurements=_MORE, Audits=_AUDIT)
@options.prompts
def evaluate(
    methods: Annotated[
        list[str],
        Argument(metavar="[NAME=]PATH...", help="Any folder of images, directories of ddm-rt sample, or bundles."),
    ],
    out: options.Out,
    *,
    judge: Annotated[
        list[str] | None,
        Option(
            metavar="[ATTRIBUTE=]JUDGE",
            help="Who tells the groups apart: digits, an ONNX file, a transformers folder, clip:FOLDER, or "
            "people:FILE.csv. Several make an audit.",
        ),
    ] = None,
    groups: Annotated[
        str | None,
        Option(help="Groups to measure, e.g. 3,8 or gender:female,male;race:asian,black. An audit takes all classes."),
    ] = None,
    reference: Annotated[
        str | None, Option(help="Real images for quality, which an audit can do without: a folder, or digits:CLASSES.")
    ] = None,
    n: Annotated[int, Option("-n", help="Number of images that each bundle makes.")] = 1000,
    seed: options.Seed = 0,
    rule: Annotated[
        list[str] | None, Option(help='What must hold, e.g. "FD_ddm[gender]<=.05". Checked before any image is read.')
    ] = None,
    about: Annotated[Path | None, Option(help="TOML file: provider, intended_use, next_audit and so on.")] = None,
    ledger: Annotated[Path | None, Option(help="Ledger in use: the report says what it handed out.")] = None,
    group: Annotated[
        list[str] | None,
        Option(metavar="[GROUP=]PROMPT", help="A group of a CLIP judge, e.g. woman=a photo of a woman."),
    ] = None,
    by: Annotated[
        list[str] | None, Option(metavar="COLUMN", help="Sensitive feature: prompt, or a column of metadata.csv.")
    ] = None,
    outcome: Annotated[
        list[str] | None, Option(metavar="ATTRIBUTE=GROUP", help="Outcome to compare over features and attributes.")
    ] = None,
    cross: Annotated[
        list[str] | None,
        Option(metavar="A&B", help="Attributes to take together, or none. By default each two of them."),
    ] = None,
    target: Annotated[
        str | None, Option(help="Wanted shares, e.g. gender:female=.5,male=.5;race:uniform. Even by default.")
    ] = None,
    preprocessing: Annotated[
        list[str] | None,
        Option(metavar="[ATTRIBUTE=]FILE", help="preprocessor_config.json of an ONNX judge whose file states none."),
    ] = None,
    skip_unreadable: Annotated[bool, Option(help="Leave out files that can't be read, and say which.")] = False,
    threads: options.Threads = None,
    training: Annotated[str | None, Option(help="Training images, to look for nearest neighbours in.")] = None,
    min_per_group: Annotated[int, Option(help="Images per group for quality. Bundles make enough.")] = 400,
    classes: options.Classes = None,
    attribute: Annotated[
        list[str] | None, Option(help="Attribute to compare, too: slant, skin_luminance or MODULE:FUNCTION.")
    ] = None,
    asked: Annotated[str | None, Option(help="Group of each top code, code:0=3,code:1=8, for the SPD.")] = None,
    request: Request,
) -> None:
    """Measure group shares with judges, and write a report. Its page is index.html in --out.

    An audit measures one folder of images, whoever made them, or the images of one bundle. Name the attribute of each
    judge. It writes audit.json and a model card (README.md), too:

        ddm-rt evaluate images/ --judge gender=gender.onnx --out audit/
        ddm-rt evaluate images/ --judge gender=gender.onnx --judge age=age-folder/ --rule "FD_ddm[gender]<=.05"
            --out audit/
        ddm-rt evaluate images/ --judge gender=clip:clip-folder/ --group "woman=a photo of a woman"
            --group "man=a photo of a man" --by prompt --about about.toml --out audit/
        ddm-rt evaluate images/ --judge gender=people:labels.csv --out audit/

    The exit code of an audit is 0 if every --rule passes (or there is none), 1 if one fails, and 3 if none fails and
    one is undecided. The output then says how many more images would decide.

    Without names of attributes, bundles and directories of ddm-rt sample are compared by one judge (digits, with the
    groups 3,8, by default). Prompts are for bundles, which make images:

        ddm-rt evaluate vanilla=bundles/vanilla ours=bundles/ours --training digits:3,8@4:1 --out report/
        ddm-rt evaluate sd --prompt "a nurse" --judge gender.onnx --groups female,male --reference photos/ --out report/
    """
    from ddm_rt.evaluate.run import text_of

    told = {
        "rule": rule,
        "about": about,
        "ledger": ledger,
        "group": group,
        "by": by,
        "outcome": outcome,
        "cross": cross,
        "target": target,
        "preprocessing": preprocessing,
        "skip_unreadable": skip_unreadable or None,
        "threads": threads,
    }
    compared = {"training": training, "attribute": attribute, "asked": asked}
    if is_audit(methods, judge or (), any(value is not None for value in told.values())):
        options.refuse(compared, "an audit doesn't take it; it is for bundles that are compared by one judge")
        audit_of(
            methods,
            out,
            judge=judge or (),
            groups=groups,
            reference=reference,
            n=n,
            seed=seed,
            min_per_group=min_per_group,
            classes=classes,
            text=text_of(request),
            **told,
        )
        return
    from ddm_rt.evaluate.run import evaluate_methods

    with display.bar("generating") as update:
        page, table = evaluate_methods(
            [options.named(text) for text in methods],
            out,
            judge=judge[0] if judge else "digits",
            classes=options.names(classes),
            groups=(groups or "3,8").split(","),
            reference=reference or "digits:3,8",
            training=training,
            n=n,
            seed=seed,
            min_per_group=min_per_group,
            attributes=attribute or (),
            asked=asked,
            text=text_of(request),
            on_step=update,
        )
    console.print(table)
    say(f"report: {page}")
