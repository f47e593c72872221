"""`ddm-rt build`: TensorRT plans for a bundle, or compiled networks for torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import app, say
from ddm_rt.config import Backend, Precision

if TYPE_CHECKING:
    from ddm_rt.engine.tensorrt.build import Built
    from ddm_rt.engine.torch.packages import Package


@app.command()
def build(
    bundle: Annotated[str, Argument(help="A bundle directory, or with --out the shipped one: digits.")],
    backend: Annotated[str, Option(help="torch, tensorrt or tensorrt-rtx.")],
    precision: Annotated[
        Precision | None, Option(help="torch: what to compute an fp32 bundle in. The others take the bundle's own.")
    ] = None,
    device: options.DeviceName = None,
    sm: Annotated[str | None, Option(help="Compute capabilities, by comma; by default this GPU's.")] = None,
    batch: Annotated[
        str | None,
        Option(help="Batch sizes MIN,OPT,MAX; by default 1,8,32. torch: every one by comma; by default 1,2,8,16."),
    ] = None,
    size: Annotated[
        str | None,
        Option(help="Pixels a side, MIN,OPT,MAX; by default as trained. torch: HEIGHTxWIDTH, or one number."),
    ] = None,
    memory_gib: Annotated[
        float | None, Option(help="Resident memory that a build may hold, by default 8; TensorRT's only.")
    ] = None,
    timing_cache: Annotated[Path | None, Option(help="File of measured tactics; tensorrt only.")] = None,
    out: Annotated[Path | None, Option("--out", help="Build into a copy of the bundle here.")] = None,
    force: Annotated[bool, Option(help="Build again what is up to date.")] = False,
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
    from ddm_rt.workflows.build import build_package, build_plans

    of_plans = {"--sm": sm, "--timing-cache": timing_cache, "--memory-gib": memory_gib, "--out": out}
    of_torch = {"--precision": precision, "--device": device}
    options.refuse(of_plans if backend == Backend.TORCH else of_torch, f"not with --backend {backend}")
    if backend == Backend.TORCH:
        batches = None if batch is None else [options.number("--batch", part) for part in batch.split(",")]
        sides = None if size is None else [options.number("--size", part) for part in size.split("x")]
        with display.bar("compiling") as update:
            package = build_package(
                bundle, precision=precision, device=device, batches=batches, size=sides, force=force, progress=update
            )
        say(_compiled(package))
        return
    with display.status() as show:
        made = build_plans(
            bundle,
            backend,
            architectures=sm.split(",") if sm else (),
            batch=None if batch is None else options.sizes("--batch", batch),
            size=None if size is None else options.sizes("--size", size),
            memory_gib=8.0 if memory_gib is None else memory_gib,
            timing_cache=timing_cache,
            out=out,
            force=force,
            progress=show,
        )
    say("\n".join(map(_built, made)))


def _compiled(package: "Package") -> str:
    lines = [f"compiled: {package.path}"]
    for code in package.record.codes:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in code.inputs.items())
        lines.append(f"  {code.file}: {code.dtype}, {shapes}; compiled in {code.seconds:.0f} s")
    return "\n".join(lines)


def _built(built: "Built") -> str:
    key = built.plan.key
    lines = [f"plan: {built.plan.path}{'' if built.fresh else ' (up to date)'}"]
    if built.fresh:
        for name, figures in key.build.items():
            lines.append(
                f"  {name}: {figures['plan_mib']:.1f} MiB, built in {figures['build_s']:.1f} s, "
                f"at most {figures['peak_rss_mib']:.0f} MiB resident"
            )
    if key.kernels is not None:
        lines.append(f"  without the guided_step kernels that a run needs: {key.kernels}")
    return "\n".join(lines)
