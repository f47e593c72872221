"""`ddm-rt build`: TensorRT plans for a bundle, or compiled networks for torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import of_machine, say
from ddm_rt.config import Backend, Precision

if TYPE_CHECKING:
    from ddm_rt.engine.tensorrt.build import Built
    from ddm_rt.engine.torch.packages import Package


@of_machine(Options="backend precision device", TensorRT="sm plain memory_gib timing_cache out")
def build(
    bundle: Annotated[str, Argument(help="A bundle directory, or digits, which comes with ddm-rt.")],
    backend: Annotated[str, Option(help="Backend to build for: torch, tensorrt or tensorrt-rtx.")],
    precision: Annotated[
        Precision | None, Option(help="Precision to compute an fp32 bundle in, for torch alone.")
    ] = None,
    device: options.DeviceName = None,
    sm: Annotated[str | None, Option(help="GPUs to build for, by capability, e.g. 86,89. By default this GPU.")] = None,
    batch: Annotated[
        str | None,
        Option(
            help="Batch sizes. For TensorRT MIN,OPT,MAX, by default 1,8,32 (tensorrt: tuned for 2, 8 and 32). "
            "For torch each one, by default 1,2,8,16."
        ),
    ] = None,
    size: Annotated[
        str | None,
        Option(help="Image size in pixels, by default as trained. For TensorRT MIN,OPT,MAX. For torch HEIGHTxWIDTH."),
    ] = None,
    plain: Annotated[
        bool, Option(help="Attention of plain operators in place of our plugin, for tensorrt alone.")
    ] = False,
    memory_gib: Annotated[
        float | None, Option(help="Memory in GiB that a build may hold. By default half of what is available.")
    ] = None,
    timing_cache: Annotated[Path | None, Option(help="File that keeps measured tactics, for tensorrt alone.")] = None,
    out: Annotated[Path | None, Option(help="Copy the bundle into this directory and build there.")] = None,
    force: Annotated[bool, Option(help="Build again what is up to date.")] = False,
) -> None:
    """Compile a bundle for this machine: networks for torch, or TensorRT plans.

    Networks for torch lie in your cache (DDM_RT_CACHE, by default ~/.cache/ddm_rt). --backend torch takes them from
    then on. They fit this kind of processor and this version of torch. Plans lie in the bundle.

    Examples:

        ddm-rt build digits --backend torch --precision bf16
        ddm-rt build bundles/sd --backend torch --precision bf16 --device cuda --batch 2,8,16 --size 512
        ddm-rt build digits --backend tensorrt-rtx --sm 89 --out bundles/digits
        ddm-rt build bundles/ours --backend tensorrt --batch 1,16,64
    """
    from ddm_rt.workflows.build import build_package, build_plans

    of_plans = {"--sm": sm, "--plain": plain, "--timing-cache": timing_cache, "--memory-gib": memory_gib, "--out": out}
    of_torch = {"--precision": precision, "--device": device}
    options.refuse(of_plans if backend == Backend.TORCH else of_torch, f"this option can't go with --backend {backend}")
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
            memory_gib=memory_gib,
            plain=plain,
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
