"""`ddm-rt discover`: ways in which the training images differ, for a person to name and accept."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

from rich.table import Table
from typer import Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import console, errors, makes_models, say, tell
from ddm_rt.cli.train import Set
from ddm_rt.errors import DdmError
from ddm_rt.presets import PRESETS


@makes_models(Images="preset image_size channels features", Choice="accept name cells")
def discover(
    out: Annotated[Path, Option(help="Folder of the page and of factors.json.")],
    data: Annotated[str | None, Option(help="Training images: a folder, or digits:CLASSES@RATIO.")] = None,
    features: Annotated[
        Path | None,
        Option(help="One view more: an encoder (ONNX file, or folder with CLIP's), or a .npy file of features."),
    ] = None,
    accept: Annotated[
        str | None,
        Option(help="Candidates to balance: numbers with commas. The shares of the first are kept most closely."),
    ] = None,
    name: Annotated[
        list[str] | None, Option(metavar="N=NAME:A,B", help="Name of candidate N and of its sides. Repeatable.")
    ] = None,
    cells: Annotated[
        Literal["auto", "product", "margins"],
        Option(
            help="How accepted candidates are balanced together. product: each combination gets the same share. "
            "margins: each candidate is even, and rare combinations stay rarer. auto: product, unless an image would "
            "count over 8 times."
        ),
    ] = "auto",
    preset: Annotated[str, Option(help=f"Set of defaults: {', '.join(PRESETS)}.")] = "digits",
    image_size: Annotated[int | None, Option(help="Width and height of the images that are looked at.")] = None,
    channels: Annotated[int | None, Option(help="1 for grey images, 3 for colour.")] = None,
    seed: Annotated[int, Option(help="Seed of all that is drawn. The same seed gives the same candidates.")] = 0,
    set_: Set = None,
) -> None:
    """Show ways to split the training images. You name the splits that you mean, and training balances those.

    Open index.html in --out: each candidate has images of its sides. No label is read. Then accept candidates, with the
    command that the page makes, and give factors.json to ddm-rt train. Nothing is balanced that you don't accept.

    Examples:

        ddm-rt discover --data photos/ --image-size 32 --channels 3 --out splits/
        ddm-rt discover --data photos/ --channels 3 --features checkpoints/clip --out splits/
        ddm-rt discover --out splits/ --accept 2 --name 2=kind:boot,sandal
        ddm-rt discover --out splits/ --accept 1,3 --name 1=heel:flat,high --name 3=colour:dark,light
        ddm-rt train --data photos/ --channels 3 --codes splits/factors.json --out runs/photos
    """
    from ddm_rt.workflows import discover as workflow

    if data is None and accept is None:
        raise DdmError("--data: missing; expected training images, or --accept with a folder that was made before")
    if accept is None:
        options.refuse({"--name": name}, "it goes with --accept, which says what is accepted")
    if data is None:
        of_images = {"--features": features, "--image-size": image_size, "--channels": channels, "--set": set_}
        options.refuse(of_images, "it goes with --data, which is looked at anew")
    if data is not None:
        fields = options.assignments(set_) | options.given({"data.image_size": image_size, "data.channels": channels})
        with display.progress(errors) as bars:
            progress = {
                "features": display.step_callback(bars, "learning features"),
                "splits": display.step_callback(bars, "looking for splits"),
            }
            found = workflow.discover(data, out, fields, preset=preset, features=features, seed=seed, progress=progress)
        table = Table("candidate", "images of the sides", "found in", "agreement", "stability", title="ways to split")
        for factor in found.factors:
            sizes = " / ".join(map(str, factor.sizes))
            table.add_row(
                str(factor.number),
                sizes,
                factor.view,
                f"{factor.agreement:.2f}",
                "–" if factor.stability is None else f"{factor.stability:.2f}",
            )
        console.print(table)
        say(f"look at {out / 'index.html'}; it makes the command that accepts what you choose")
    if accept is not None:
        chosen = workflow.accept(out, _numbers(accept), _names(name or ()), cells)
        for factor in chosen.chosen:
            sides = ", ".join(f"{value} ({size})" for value, size in zip(factor.values, factor.sizes, strict=True))
            tell(f"accepted {factor.number}: {factor.name}: {sides}")
        source, path = shlex.quote(chosen.data.source), shlex.quote(str(out / "factors.json"))
        size = f"--image-size {chosen.data.image_size} --channels {chosen.data.channels}"
        say(f"train with: ddm-rt train --data {source} {size} --codes {path} --out RUN")


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise DdmError(f"--accept {text!r}: expected numbers of candidates with commas, for example 1,3")
    return [int(part) for part in parts]


def _names(texts: list[str] | tuple[()]) -> dict[int, tuple[str, tuple[str, ...]]]:
    found = [_named(text) for text in texts]
    if len(dict(found)) != len(found):
        raise DdmError("--name: a candidate is named twice")
    return dict(found)


def _named(text: str) -> tuple[int, tuple[str, tuple[str, ...]]]:
    number, sign, rest = text.partition("=")
    name, colon, values = rest.partition(":")
    if not (sign and colon and number.strip().isascii() and number.strip().isdigit()):
        raise DdmError(f"--name {text!r}: expected N=NAME:A,B, for example 1=heel:flat,high")
    return int(number), (name.strip(), tuple(value.strip() for value in values.split(",")))
