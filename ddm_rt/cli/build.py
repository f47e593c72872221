"""`ddm-rt build`: TensorRT plans for a bundle, in place or in a copy of it."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ddm_rt.bundle import INDEX, Bundle, check_writable, copy_bundle
from ddm_rt.cli.arguments import sizes
from ddm_rt.engine import build, flavours, plans
from ddm_rt.errors import BackendUnavailable, DdmError


def build_plans(
    source: str,
    backend: str,
    *,
    architectures: Sequence[str] = (),
    batch: str | None = None,
    size: str | None = None,
    memory_gib: float = 8,
    timing_cache: Path | None = None,
    out: Path | None = None,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[build.Built]:
    """Plans of the bundle `source` (or of its copy at `out`) for each architecture; the present GPU's without any.

    `batch` and `size` (pixels a side) are "MIN,OPT,MAX" or one number. Where a build fails, the plans before it stay,
    and a copy that was made for this is gone.

    Raises DdmError for bad input of any kind, BackendUnavailable where the flavour can't build here.
    """
    flavour = flavours.flavour(backend)
    if (reason := flavours.cannot_build(flavour)) is not None:
        others = [name for name, other in flavours.TABLE.items() if flavours.cannot_build(other) is None]
        raise BackendUnavailable(flavour.name, reason, others)
    if memory_gib <= 0:
        raise DdmError(f"--memory-gib: {memory_gib:g}; expected more than 0")
    bundle = Bundle.load(source)
    options = build.options(
        bundle.config,
        build.DEFAULT_BATCH if batch is None else _range("--batch", batch),
        None if size is None else _range("--size", size),
    )
    targets = build.targets(flavour, [flavours.architecture(name) for name in architectures])
    for target in targets:
        flavours.check_precision(flavour, options.precision, target.architecture)
    bundle, copied = _place(bundle, out)
    made: list[build.Built] = []
    try:
        for target in targets:
            made.append(
                build.build(
                    bundle,
                    flavour,
                    target,
                    options,
                    memory_gib=memory_gib,
                    timing_cache=timing_cache,
                    force=force,
                    progress=progress,
                )
            )
            bundle = made[-1].bundle
    except BaseException:
        if copied:
            shutil.rmtree(bundle.path)
        raise
    return made


def describe(built: build.Built) -> str:
    """What was built, in a few lines."""
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


def _place(bundle: Bundle, out: Path | None) -> tuple[Bundle, bool]:
    """The bundle that gets the plans, and whether it is a copy that was made just now."""
    if out is None:
        check_writable(bundle, "builds into")
        return bundle, False
    if (out / INDEX).is_file():
        existing = Bundle.load(out)
        if not existing.is_of(bundle.bundle_id):
            raise DdmError(f"--out {out}: holds another bundle, {existing.bundle_id[:12]}; choose another")
        return existing, False
    return copy_bundle(bundle, out), True


def _range(option: str, text: str) -> plans.Range:
    low, best, high = sizes(option, text)
    return plans.Range(min=low, opt=best, max=high)
