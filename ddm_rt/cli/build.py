"""`ddm-rt build`: TensorRT plans for a bundle, and compiled networks for torch."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_rt.cli import display
from ddm_rt.cli.app import DeviceName, app, errors, say
from ddm_rt.config import Backend, Precision


@app.command()
def build(
    bundle: Annotated[str, typer.Argument(help="A bundle directory, or with --out the shipped one: digits.")],
    backend: Annotated[str, typer.Option(help="torch, tensorrt or tensorrt-rtx.")],
    precision: Annotated[
        Precision | None,
        typer.Option(help="torch: what to compute an fp32 bundle in. The others take the bundle's own."),
    ] = None,
    device: DeviceName = None,
    sm: Annotated[str | None, typer.Option(help="Compute capabilities, by comma; by default this GPU's.")] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Batch sizes MIN,OPT,MAX; by default 1,8,32. torch: every one by comma; by default 1,2,8,16."
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Pixels a side, MIN,OPT,MAX; by default as trained. torch: HEIGHTxWIDTH, or one number."),
    ] = None,
    memory_gib: Annotated[
        float | None,
        typer.Option(help="Resident memory that a build may hold, by default 8; TensorRT's only."),
    ] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="File of measured tactics; tensorrt only.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Build into a copy of the bundle here.")] = None,
    force: Annotated[bool, typer.Option(help="Build again what is up to date.")] = False,
) -> None:
    """Build TensorRT plans for a bundle, each engine in a process of its own; or compile its networks for torch.

    What is compiled for torch lies in a cache of yours (DDM_RT_CACHE, by default ~/.cache/ddm_rt), is taken by
    --backend torch from then on, and runs on this kind of processor and this version of torch alone.

    Examples:

        ddm-rt build digits --backend torch --precision bf16

        ddm-rt build bundles/sd --backend torch --precision bf16 --device cuda --batch 2,8,16 --size 512

        ddm-rt build digits --backend tensorrt-rtx --sm 89 --out bundles/digits

        ddm-rt build bundles/ours --backend tensorrt --batch 1,16,64
    """
    from ddm_rt.workflows.build import MEMORY_GIB, build_package, build_plans, check_options, describe, describe_package

    given = {
        "--sm": sm,
        "--timing-cache": timing_cache,
        "--memory-gib": memory_gib,
        "--out": out,
        "--precision": precision,
        "--device": device,
    }
    check_options(backend, [name for name, value in given.items() if value is not None])
    if backend == Backend.TORCH:
        with display.progress(errors) as bars:
            update = display.callback(bars, "compiling")
            package = build_package(
                bundle,
                precision=precision,
                device=device,
                batch=batch,
                size=size,
                force=force,
                progress=lambda done, total, part: update(done, total, {}),
            )
        say(describe_package(package))
        return
    with display.status(errors) as show:
        made = build_plans(
            bundle,
            backend,
            architectures=sm.split(",") if sm else (),
            batch=batch,
            size=size,
            memory_gib=MEMORY_GIB if memory_gib is None else memory_gib,
            timing_cache=timing_cache,
            out=out,
            force=force,
            progress=show,
        )
    say("\n".join(map(describe, made)))
