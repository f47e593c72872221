"""Pipeline: the public entry. A request becomes seeds, codes and settings per image; the slots do the rest."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.config import NULL_CODE
from ddm_rt.engine import backends
from ddm_rt.engine.contract import Array, Engine
from ddm_rt.errors import DdmError
from ddm_rt.progress import OnStep
from ddm_rt.runtime import RuntimeConfig, Shape
from ddm_rt.sample.balance import assignment
from ddm_rt.sample.balance.assignment import Lender, Weights, check_codes
from ddm_rt.sample.balance.factors import names_factors
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.sample.calibration.calibration import Settings, resolve
from ddm_rt.sample.checks import choice, projection, side, token_noise
from ddm_rt.sample.generation import Cancelled, Generation
from ddm_rt.sample.loop.batch_sizes import BatchSizes, Mode, split
from ddm_rt.sample.loop.conditions import Conditions
from ddm_rt.sample.loop.guidance import Condition, TokenNoise, branches
from ddm_rt.sample.loop.noise import Stream, normal
from ddm_rt.sample.loop.slots import Job, Slots
from ddm_rt.sample.manifest import Manifest, image_records, read_manifest
from ddm_rt.sample.request import Request, Resolved, ResolvedRequest
from ddm_rt.schedule import StepTable

__all__ = ["Cancelled", "Generation", "Pipeline", "Request"]

Deliver = Callable[[Generation], object]
Cancel = Callable[[], bool]

_log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """A request whose codes are drawn: its manifest, and the jobs that make its images."""

    manifest: Manifest  # seed, prompt, code and settings of each image
    table: StepTable  # the coefficients of each step
    shape: Shape  # of each image's latents: C, H, W
    jobs: tuple[Job, ...]  # one for each image
    target: str | None = None  # as the ledger writes it; None where no quota drew the codes, or they are a manifest's


class Pipeline:
    """A bundle on one backend, ready to make images. `load` is how you get one.

    An image's bytes depend on the bundle, the backend with its precision, versions and threads, the image's seed, its
    prompt, its code and the settings. They depend on nothing else.

    A pipeline balances the codes of its bundle, and nothing else. Codes are modes of the training images. A code stands
    for a group as far as its images are of one group; `ddm-rt calibrate` measures that. An attribute that the codes
    don't follow stays as the model makes it. So does what a prompt or a negative prompt asks for by name.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, ledger: Lender | None = None, mode: Mode = Mode.THROUGHPUT
    ) -> None:
        self.bundle = bundle  # whose images it makes
        self.engine = engine  # the backend, with the bundle's graphs loaded
        self.ledger: Lender = Ledger() if ledger is None else ledger  # keeps the counts of scopes
        self._conditions = Conditions(bundle, engine)
        self._versions = engine.versions | self._conditions.versions
        self._sizes = BatchSizes(engine, bundle, mode)

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        backend: str = "auto",
        threads: int | None = None,
        ledger: str | Path | Ledger | None = None,
        device: str | None = None,
        precision: str | None = None,
        mode: str = Mode.THROUGHPUT,
    ) -> "Pipeline":
        """Open `bundle` on `backend`.

        `bundle` is a directory, the name of a shipped bundle ("digits"), or an opened Bundle. `backend` "auto" takes
        the fastest one that can run here and has passed its gates for this bundle.

        `threads` is the number of CPU threads; None leaves it to the backend. `device` is "cpu", "cuda" or "cuda:1";
        None takes a GPU where there is one that the backend can use. `precision` is what torch computes an fp32 bundle
        in ("bf16" or "fp16"); None is the bundle's own. `mode` matters where a backend's bits depend on the batch size:
        "latency" takes the smallest sizes, which make one image sooner, and "throughput" the largest.

        `ledger` keeps the counts of scopes. It is a file, which other processes may use at the same time, or an opened
        Ledger. None counts in memory, for as long as this pipeline lives.

        Raises DdmError for a bad bundle or ledger. Raises BackendUnavailable, which names the choices, for a backend
        that can't run here.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
        ledger.check_bundle(opened)
        engine = backends.load(opened, backend, threads, device, precision)
        return cls(opened, engine, ledger, choice(Mode, mode, "mode"))

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes in use at the bundle's own image size, ascending."""
        return self.batch_sizes(self.bundle.config.latent_shape)

    def generate(
        self,
        request: Request | str | Sequence[str] | None = None,
        *,
        on_step: OnStep | None = None,
        cancel: Cancel | None = None,
        deliver: Deliver | None = None,
        **fields: Any,
    ) -> Generation:
        """Make the images of a request.

        `request` is a `Request`, or a prompt, or a list of prompts. `fields` are fields of `Request`, and win over
        those of `request`.

        `on_step(done, total)` is told after each step how many steps are done, and how many there are in all. `cancel`
        is asked before each step; once it returns true, Cancelled is raised. `deliver` is called with the result before
        a scope's draws count as done. Where it or anything before it raises, the draws are given back.

        Raises DdmError naming the argument that doesn't fit the bundle.
        """
        asked = replace(request if isinstance(request, Request) else Request(prompt=request), **fields)
        with self.prepare(asked) as drawn:
            generation = self._render(drawn, on_step, cancel)
            if deliver is not None:
                deliver(generation)
        return generation

    @contextmanager
    def prepare(self, asked: Request) -> Iterator[Prepared]:
        """Check a request and draw its codes: the first half of `generate`, for programs that run the loop themselves.

        It is a context manager. A scope's draws count as done when the block ends, and are given back where it raises.
        Raises DdmError as `generate`.
        """
        resolved = asked.resolve(self.bundle)
        self._check_engine(resolved.request)
        request, table, bundle_id = resolved.request, resolved.table, self.bundle.bundle_id
        weights = None if resolved.codes.codes is not None else self._weigh(asked, resolved)
        with resolved.codes.draw(weights, bundle_id, request.seed, self.ledger) as assigned:
            manifest = Manifest(
                bundle_id=bundle_id,
                calibration_id=None if weights is None else weights.calibration_id,
                request=request,
                target=None if weights is None else self._written(asked.target, weights),
                sampler=table.sampler,
                num_steps=resolved.num_steps,
                **self.made_by,
                bucket=self._sizes.bucket,
                images=image_records(request, self.bundle.codes.top_of, assigned.codes, positions=assigned.positions),
            )
            drawn = prepared(self.bundle, manifest, table)
            yield drawn if weights is None else drawn._replace(target=weights.target)

    def replay(
        self,
        manifest: dict[str, Any] | str | Path,
        index: int | None = None,
        on_step: OnStep | None = None,
        cancel: Cancel | None = None,
    ) -> Generation:
        """Make the images of a manifest again, or only number `index`.

        `manifest` is a file, or its content as plain data. On the same backend, versions and threads the bytes are the
        same; where these differ, a warning is logged. The ledger isn't asked. `on_step` and `cancel` are as in
        `generate`.

        Raises DdmError for a malformed manifest, one of another bundle, and an index or code that it hasn't got.
        """
        recorded = read_manifest(manifest)
        if index is not None:
            if not 0 <= index < len(recorded.images):
                raise DdmError(f"index is {index}; the manifest has images 0 to {len(recorded.images) - 1}")
            recorded = recorded.model_copy(update={"images": (recorded.images[index],)})
        for name, value in self.made_by.items():
            if getattr(recorded, name) != value:
                _log.warning("replay: %s was %s, is %s: bytes may differ", name, getattr(recorded, name), value)
        return self._render(self.recorded(recorded.model_copy(update=self.made_by)), on_step, cancel)

    @property
    def made_by(self) -> dict[str, Any]:
        """The fields of a manifest that say on what its images are made: backend, precision, threads and versions."""
        engine = self.engine
        return {
            "backend": engine.backend,
            "precision": engine.precision,
            "threads": engine.threads,
            "versions": self._versions,
        }

    def recorded(self, manifest: Manifest) -> Prepared:
        """What `prepare` gave for this manifest, or for a manifest with some of its images. The ledger isn't asked.

        A manifest of a former id of the bundle becomes one of its present id. Raises DdmError for a manifest of another
        bundle, and a code or size that it hasn't got.
        """
        if not self.bundle.is_of(manifest.bundle_id):
            raise DdmError(
                f"manifest: bundle_id is {manifest.bundle_id[:12]}…; this bundle is {self.bundle.bundle_id[:12]}…"
            )
        check_codes(self.bundle, [image.code for image in manifest.images], "manifest: field images")
        settings = manifest.request
        for name, pixels in (("height", settings.height), ("width", settings.width)):
            side(self.bundle.config, f"manifest: field request.{name}", pixels)
        projection(settings.apg)  # a file may hold what no request could ask for
        token_noise(self.bundle.config, settings.cads)
        self._check_engine(settings)
        table = settings.table(self.bundle, manifest.sampler, manifest.num_steps)
        manifest = manifest.model_copy(update={"bundle_id": self.bundle.bundle_id})
        return prepared(self.bundle, manifest, table)

    def first_states(self, request: Prepared, images: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The noise from which sampling starts, float32 [B, C, H, W], for these images of the request."""
        seeds = np.array([request.jobs[i].seed for i in images], np.uint64)
        states: NDArray[np.float32] = normal(seeds, 0, Stream.INITIAL, request.shape, self.engine.threads)
        return states * np.float32(request.table.init_scale)

    def _render(self, request: Prepared, on_step: OnStep | None, cancel: Cancel | None) -> Generation:
        jobs, steps, manifest = request.jobs, request.table.num_steps, request.manifest
        slots = self.slots(request.shape, manifest)
        batches = _batches([len(job.branches.conditions) for job in jobs], slots.buckets[-1])
        images = np.empty((len(jobs), manifest.request.height, manifest.request.width, 3), np.uint8)
        for number, members in enumerate(batches):
            slots.admit(request.table, self.first_states(request, members), [jobs[i] for i in members])
            for step in range(number * steps, (number + 1) * steps):
                if cancel is not None and cancel():
                    raise Cancelled(f"cancelled before step {step + 1} of {len(batches) * steps}")
                _, x0 = slots.tick()
                if on_step is not None:
                    on_step(step + 1, len(batches) * steps)
            images[members] = self.decode(x0, len(members), slots.buckets)
        return Generation(images, tuple(image.code for image in manifest.images), manifest.tree())

    def decode(self, x0: Array, batch: int, buckets: Sequence[int]) -> NDArray[np.uint8]:
        """Images uint8 [B, H, W, 3] of samples [B, C, H', W']; grey ones are repeated over the channels."""
        calls = split(batch, buckets)
        pixels = np.concatenate([self.engine.images(self.engine.take(x0, index)) for index in calls])[:batch]
        return np.repeat(pixels, 3 // pixels.shape[3], axis=3)

    def slots(self, shape: Shape, manifest: Manifest | None = None) -> Slots:
        """The sampling loop, without images yet, for latents of this shape.

        With a manifest, its indicator scale and batch sizes are taken in place of the bundle's.
        """
        size, gather = self.bundle.config.size_of(shape), self._conditions.gather
        scale = (self.bundle.config.sampling if manifest is None else manifest.request).indicator_scale
        return Slots(self.engine, lambda wanted: gather(wanted, scale, size), self.batch_sizes(shape, manifest))

    def batch_sizes(self, shape: Shape, manifest: Manifest | None = None) -> tuple[int, ...]:
        """Batch sizes in use for latents of this shape, ascending: those of a manifest, or this pipeline's own."""
        size, scale = self.bundle.config.size_of(shape), self.bundle.config.sampling.indicator_scale
        bucket = self._sizes.bucket if manifest is None else manifest.bucket
        return self._sizes.of(shape, size, lambda: self._conditions.probe_rows(scale, size), bucket)

    def _check_engine(self, request: ResolvedRequest) -> None:
        """Raises DdmError for what this engine can't do: in the loop, it would be in the way of others' images."""
        if request.apg is not None and not self.engine.projects:
            raise DdmError(
                f"apg: the kernels of this {self.engine.backend} plan were made before there was projected guidance; "
                "`ddm-rt build` makes it again"
            )

    def _weigh(self, asked: Request, resolved: Resolved) -> Weights:
        if (named := assignment.by_names(self.bundle, asked.target)) is not None:
            return named
        settings = Settings.of(resolved.request, resolved.table.sampler, resolved.num_steps, self.engine.precision)
        try:
            found = resolve(self.bundle, asked.target, settings, allow_stale=asked.allow_stale)
        except DdmError as error:
            raise type(error)(f"{error}{assignment.other_names(self.bundle, asked.target)}") from error
        tree = assignment.code_tree(self.bundle)
        return assignment.by_codes(tree, found.target, found.code_weights, found.calibration_id)

    def _written(self, target: str, weights: Weights) -> str:
        """The target in a manifest: over factors there is one spelling, which the ledger has too."""
        return weights.target if names_factors(target, self.bundle.codes.factors) else target


def prepared(bundle: Bundle, manifest: Manifest, table: StepTable) -> Prepared:
    """Raises DdmError where the manifest's prompts and the bundle don't go together."""
    request = manifest.request
    texts = texts_of(bundle, request, [image.prompt for image in manifest.images])
    null = null_text(bundle.config, request.negative_prompt)
    noise = None if request.cads is None else TokenNoise(request.cads[0], Condition(null, NULL_CODE))
    jobs = tuple(
        Job(image.seed, branches(Condition(text, image.code), null, *request.scales), request.apg, noise)
        for text, image in zip(texts, manifest.images, strict=True)
    )
    return Prepared(manifest, table, bundle.config.latents_of((request.height, request.width)), jobs)


def texts_of(bundle: Bundle, request: ResolvedRequest, recorded: Sequence[str | None]) -> list[str | None]:
    """The prompt of each image of a manifest. Raises DdmError where request and bundle don't go together."""
    prompt_free = bundle.config.prompt_free
    for field, value in (("prompt", request.prompt), ("guidance_scale", request.guidance_scale)):
        if (value is None) != prompt_free:
            wanted = "none: the bundle is prompt-free" if prompt_free else "one: the bundle takes prompts"
            raise DdmError(f"manifest: field request.{field}: expected {wanted}")
    found: list[str | None] = []
    for number, own in enumerate(recorded):
        shared = None if isinstance(request.prompt, tuple) else request.prompt
        text = shared if own is None else own
        if (text is None) != prompt_free:
            raise DdmError(f"manifest: field images.{number}.prompt: expected {'none' if prompt_free else 'text'}")
        found.append(text)
    return found


def null_text(config: RuntimeConfig, negative_prompt: str | None) -> str | None:
    """What stands in for no prompt: the negative one, the empty one, or None where zeros do."""
    if negative_prompt is not None:
        return negative_prompt
    return None if config.prompt_free or config.empty_negative_is_zero else ""


def _batches(counts: Sequence[int], rows: int) -> list[NDArray[np.int64]]:
    """Image numbers of each batch: equal numbers of branches, and no more than so many rows."""
    batches = []
    for count in sorted(set(counts)):
        members = np.flatnonzero(np.array(counts) == count)
        most = max(rows // count, 1)
        batches += [members[start : start + most] for start in range(0, len(members), most)]
    return batches
