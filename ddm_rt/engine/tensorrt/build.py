"""Plans for a bundle: each engine is built in a process of its own, and a plan appears whole or not at all."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddm_rt.bundle import Bundle, add_directory
from ddm_rt.engine.tensorrt import build_process, cuda, flavours, graph_header, plans
from ddm_rt.engine.tensorrt.build_worker import Request
from ddm_rt.engine.tensorrt.flavours import PLUGIN_GRAPH, Flavour
from ddm_rt.errors import BackendUnavailable, DdmError
from ddm_rt.files import sha256
from ddm_rt.kernels.pack import STEP_OPS, PackError, read_pack
from ddm_rt.runtime import RuntimeConfig

Progress = Callable[[str], None]  # one line: what is being built, and which phase it is in

_MARGIN_BYTES = 64 * 2**20  # a plan holds code beside its weights
_TIMING_CACHE = "timing.cache"
# Of one call: a VAE's norm over 32 images of 512x512 pixels alone would hold 8 GiB.
DECODER_ROWS = 4


@dataclass(frozen=True)
class Target:
    """What a plan is built for."""

    architecture: str
    gpu: str  # the present device's name, or "none" where the build needs no device


@dataclass(frozen=True)
class Built:
    """A plan of `bundle` (whose index lists it), and whether it was made just now."""

    bundle: Bundle
    plan: plans.Plan
    fresh: bool


def default_batch(flavour: Flavour) -> plans.Ranges:
    """Batch ranges of a denoiser's profiles, where nobody names one."""
    return tuple(plans.Range(min=low, opt=best, max=high) for low, best, high in flavour.batches)


def options(
    config: RuntimeConfig,
    batch: Sequence[plans.Range],
    size: plans.Range | None = None,
    plain: bool = False,
) -> plans.Options:
    """Build options for images of `size` pixels a side (the training size by default), with a profile of the denoiser
    for each range of `batch`.

    Raises DdmError for a range whose sizes don't ascend, a size that isn't a multiple of the bundle's, and tokenizers
    of different lengths.
    """
    size = size or plans.Range(min=config.image_size, opt=config.image_size, max=config.image_size)
    for name, axis in (*(("batch", axis) for axis in batch), ("size", size)):
        if not axis.min <= axis.opt <= axis.max:
            raise DdmError(f"--{name}: min {axis.min}, opt {axis.opt}, max {axis.max}; expected min <= opt <= max")
    for side in (size.min, size.opt, size.max):
        if side % config.size_multiple:
            raise DdmError(f"--size: {side} pixels; this bundle's sides are multiples of {config.size_multiple}")
    factor = config.patch
    latent = plans.Range(min=size.min // factor, opt=size.opt // factor, max=size.max // factor)
    tokens = _tokens(config)
    return plans.Options(
        batch=tuple(batch),
        decoder_batch=decoder_batch(batch),
        height=latent,
        width=latent,
        tokens=plans.Range(min=tokens, opt=tokens, max=tokens),
        precision=config.precision,
        plain=plain,
    )


def decoder_batch(batch: Sequence[plans.Range]) -> plans.Ranges:
    """The decoder's ranges beside those of the denoiser: any number of rows up to `DECODER_ROWS`."""
    most = DECODER_ROWS
    return tuple(dict.fromkeys(plans.Range(min=1, opt=min(axis.opt, most), max=min(axis.max, most)) for axis in batch))


def _tokens(config: RuntimeConfig) -> int:
    """T of every context: prompts are padded to the tokenizers' length, a prompt-free model has one null token."""
    tokens, _ = config.context_shape
    if isinstance(tokens, int):
        return tokens
    lengths = {spec.max_length for spec in config.text} or {1}
    if len(lengths) > 1:
        raise DdmError(f"bundle: field text: lengths {sorted(lengths)}; expected one, as their states are joined")
    return lengths.pop()


def targets(flavour: Flavour, architectures: Sequence[str]) -> list[Target]:
    """What to build for: the named architectures, or the present device where none is named.

    Raises DdmError for an architecture that the flavour doesn't build for, or where it needs a device that isn't there.
    """
    for name in architectures:
        flavours.check_target(flavour, name)
    if architectures and not flavour.needs_device:
        return [Target(name, plans.NO_GPU) for name in dict.fromkeys(architectures)]
    if (reason := cuda.unavailable()) is not None:
        if flavour.needs_device:
            raise BackendUnavailable(flavour.name, f"{reason}, and its builds measure on the device they are for", ())
        raise DdmError(f"--sm: {reason}; expected architectures to build for: {', '.join(flavour.architectures)}")
    device = cuda.device_info()
    for name in architectures:
        if name != device.architecture:
            raise DdmError(
                f"architecture {name}: {flavour.name} builds for the present device alone: "
                f"{device.name}, {device.architecture}"
            )
    flavours.check_target(flavour, device.architecture)
    return [Target(device.architecture, device.name if flavour.needs_device else plans.NO_GPU)]


def build(
    bundle: Bundle,
    flavour: Flavour,
    target: Target,
    options: plans.Options,
    *,
    memory_gib: float | None = None,
    timing_cache: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Built:
    """The bundle's plan for `target`: the one that is there when nothing it was made from has changed, or a new one.

    A build may hold `memory_gib` GiB of resident memory, by default what `build_process.run` finds free. `timing_cache`
    is read and rewritten; by default the one that the plan keeps beside its engines is, where the flavour has any.

    Raises DdmError: the flavour is missing, the precision, opset or an operator isn't one it takes, weights are missing
    or moved, memory or disk don't suffice, or the builder crashed. The bundle is then as it was.
    """
    if (reason := flavours.cannot_build(flavour)) is not None:
        raise BackendUnavailable(flavour.name, reason, ())
    if timing_cache is not None and not flavour.timing_cache:
        raise DdmError(f"--timing-cache: {flavour.name} keeps none; its builds measure nothing")
    if options.plain and not flavour.plugins:
        raise DdmError(f"--plain: {flavour.name} has no plugin; its plans are of plain operators anyway")
    flavours.check_precision(flavour, options.precision, target.architecture)
    graphs = bundle.graphs | {"denoiser": bundle.path / flavour.denoiser(options.precision, options.plain)}
    parts = plans.Parts(
        bundle_id=bundle.bundle_id,
        graphs=plans.graph_files(bundle, flavour, options.plain),
        options=options,
        flavour=flavour.name,
        version=flavours.version(flavour),
        gpu=target.gpu,
        architecture=target.architecture,
    )
    relative = f"{plans.ROOT}/{plans.directory_name(flavour.name, target.architecture, target.gpu)}"
    if not force and (plan := _up_to_date(bundle, relative, parts)) is not None:
        return Built(bundle, plan, fresh=False)
    for graph in graphs.values():
        graph_header.check_graph(graph, flavour)
    _check_disk(bundle, parts)
    axes = {"height": options.height, "width": options.width, "tokens": options.tokens}
    if (ready := bundle.config.keys_values) is not None:
        keys = options.tokens.max + ready.indicator_tokens
        axes["keys"] = plans.Range(min=keys, opt=keys, max=keys)

    def fill(folder: Path) -> None:
        engines, figures = {}, {}
        cache = timing_cache or _seed_timing_cache(bundle, relative, folder, flavour)
        for name, graph in graphs.items():
            request = Request(
                module=flavour.module,
                graph=graph.absolute(),
                plan=(folder / f"{name}.plan").absolute(),
                architecture=None if flavour.needs_device else target.architecture,
                plugins_for=target.architecture if graph.name == PLUGIN_GRAPH else None,
                profiles=tuple(
                    {axis: (sizes.min, sizes.opt, sizes.max) for axis, sizes in (axes | {"batch": batch}).items()}
                    for batch in options.batches(name)
                ),
                timing_cache=None if cache is None else cache.absolute(),
            )
            result = build_process.run(
                request, flavour.name, memory_gib, _labelled(progress, f"{target.architecture} {name}")
            )
            engines[name] = plans.EngineFile(
                file=request.plan.name,
                sha256=sha256(request.plan),
                bytes=request.plan.stat().st_size,
                profiles=result.profiles,
            )
            figures[name] = result.figures
        say = _labelled(progress, f"{target.architecture} kernels")
        why = build_process.kernels(folder / plans.KERNELS, target.architecture, say)
        key = plans.Key(key=plans.digest(parts), parts=parts, engines=engines, kernels=why, build=figures)
        (folder / plans.KEY).write_text(key.model_dump_json(indent=1) + "\n")

    bundle = add_directory(bundle, relative, fill)
    path = bundle.path / relative
    return Built(bundle, plans.Plan(path, plans.read_key(path / plans.KEY)), fresh=True)


def _up_to_date(bundle: Bundle, relative: str, parts: plans.Parts) -> plans.Plan | None:
    path = bundle.path / relative
    if Path(relative).name not in plans.names(bundle):
        return None
    try:
        plan = plans.Plan(path, plans.read_key(path / plans.KEY))
        plans.check_files(bundle, plan)
        ops = (
            {kernel.op for kernel in read_pack(path / plans.KERNELS).kernels} if plan.key.kernels is None else STEP_OPS
        )
        if not {*STEP_OPS} <= {*ops}:
            return None  # made before a step had all of them
    except (DdmError, PackError):
        return None  # broken or altered: there is nothing to keep
    # A plan that was built before the bundle was upgraded is of the same graphs.
    known = plan.key.parts.bundle_id if bundle.is_of(plan.key.parts.bundle_id) else parts.bundle_id
    return plan if plan.key.parts == parts.model_copy(update={"bundle_id": known}) else None


def _check_disk(bundle: Bundle, parts: plans.Parts) -> None:
    needed = sum(bundle.index.files[name].bytes for name in parts.graphs) + _MARGIN_BYTES
    free = shutil.disk_usage(bundle.path).free
    if free < needed:
        raise DdmError(
            f"{bundle.path}: {free / 2**20:.0f} MiB are free on its disk; the plan needs about {needed / 2**20:.0f} MiB"
        )


def _seed_timing_cache(bundle: Bundle, relative: str, folder: Path, flavour: Flavour) -> Path | None:
    """The plan's own timing cache, with what the last build of its name measured."""
    if not flavour.timing_cache:
        return None
    own, last = folder / _TIMING_CACHE, bundle.path / relative / _TIMING_CACHE
    if last.is_file():
        shutil.copyfile(last, own)
    return own


def _labelled(progress: Progress | None, label: str) -> Progress:
    return lambda text: None if progress is None else progress(f"{label}: {text}")
