"""`ddm-rt build`: TensorRT plans for a bundle, in place or in a copy of it; and compiled networks for torch."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddm_rt.bundle import INDEX, Bundle, check_writable, copy_bundle
from ddm_rt.config import Backend, Precision
from ddm_rt.engine import backends
from ddm_rt.engine.devices import CPU, Device
from ddm_rt.engine.tensorrt import build, flavours, plans
from ddm_rt.errors import BackendUnavailable, DdmError
from ddm_rt.progress import OnStage
from ddm_rt.runtime import RuntimeConfig

if TYPE_CHECKING:
    from ddm_rt.engine.torch.packages import Package


def build_plans(
    source: str,
    backend: str,
    *,
    architectures: Sequence[str] = (),
    batch: tuple[int, int, int] | None = None,
    size: tuple[int, int, int] | None = None,
    memory_gib: float | None = None,
    plain: bool = False,
    timing_cache: Path | None = None,
    out: Path | None = None,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[build.Built]:
    """Plans of the bundle `source` (or of its copy at `out`) for each architecture; the present GPU's without any.

    `batch` and `size` (pixels a side) are the smallest, the best and the largest; by default the
    profiles are the flavour's. `plain` asks for attention of plain operators in place of our plugin. Where a
    build fails, the plans before it stay, and a copy that was made for this is gone.

    Raises DdmError for bad input of any kind, BackendUnavailable where the flavour can't build here.
    """
    flavour = flavours.flavour(backend)
    if (reason := flavours.cannot_build(flavour)) is not None:
        others = [name for name, other in flavours.TABLE.items() if flavours.cannot_build(other) is None]
        raise BackendUnavailable(flavour.name, reason, others)
    if memory_gib is not None and not memory_gib > 0:  # nor is it "not a number"
        raise DdmError(f"--memory-gib: {memory_gib:g}; expected more than 0")
    bundle = Bundle.load(source)
    options = build.options(
        bundle.config,
        build.default_batch(flavour) if batch is None else [_range(batch)],
        None if size is None else _range(size),
        plain,
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


def build_package(
    source: str,
    *,
    precision: Precision | None = None,
    device: str | None = None,
    batches: Sequence[int] | None = None,
    size: Sequence[int] | None = None,
    force: bool = False,
    progress: OnStage | None = None,
) -> "Package":
    """The compiled networks of the bundle `source`; those that are there already, where they are of these sizes, unless
    `force`.

    `size` is height and width in pixels, or one number for both. Raises DdmError for bad input of any kind, and
    BackendUnavailable where torch isn't there or can't compute so.
    """
    bundle = Bundle.load(source)
    where = Device.parse(device or CPU)
    chosen = precision or bundle.config.precision
    if (reason := backends.unavailable(Backend.TORCH, device=where)) is not None:
        raise BackendUnavailable(Backend.TORCH.value, reason, ())
    from ddm_rt.engine.torch import building, packages

    batches = tuple(batches or building.BATCHES)
    latents = bundle.config.latent_shape[1:] if size is None else _latents(bundle.config, size)
    if force and packages.spoilt(bundle, chosen, where):
        shutil.rmtree(packages.place(bundle, chosen, where))
    if (reason := backends.unavailable(Backend.TORCH, bundle, where, chosen)) is not None:
        raise BackendUnavailable(Backend.TORCH.value, reason, ())
    found = None if force else packages.find(bundle, chosen, where)
    if found is not None and (found.sizes, found.latents) == (tuple(sorted(set(batches))), latents):
        return found
    return building.build(bundle, chosen, where, batches=batches, size=latents, progress=progress)


def _latents(config: RuntimeConfig, sides: Sequence[int]) -> tuple[int, int]:
    if len(sides) > 2 or any(side % config.size_multiple for side in sides):
        text = "x".join(map(str, sides))
        raise DdmError(f"--size {text!r}: expected HEIGHTxWIDTH or one number, multiples of {config.size_multiple}")
    scale = config.patch
    return sides[0] // scale, sides[-1] // scale


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


def _range(sizes: tuple[int, int, int]) -> plans.Range:
    low, best, high = sizes
    return plans.Range(min=low, opt=best, max=high)
