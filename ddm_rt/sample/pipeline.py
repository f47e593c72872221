"""Pipeline: the public entry. A request becomes seeds, codes and settings per image; the loop does the rest."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.config import Balance, SamplerName
from ddm_rt.engine import backends
from ddm_rt.engine.contract import Array, Engine
from ddm_rt.errors import DdmError
from ddm_rt.progress import OnStep
from ddm_rt.sample.balance.assignment import (
    Weights,
    by_codes,
    by_top_codes,
    check_codes,
    code_tree,
    names_top_codes,
    plan,
)
from ddm_rt.sample.balance.leave_alone import Words
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.sample.balance.lending import Lender
from ddm_rt.sample.calibration.calibration import Settings, resolve
from ddm_rt.sample.generation import Generation
from ddm_rt.sample.jobs import Prepared, Shape, image_size, prepared
from ddm_rt.sample.loop.batch_probe import split
from ddm_rt.sample.loop.batch_sizes import BatchSizes, Mode
from ddm_rt.sample.loop.conditions import Conditions
from ddm_rt.sample.loop.noise import MAX_SEED, Stream, normal
from ddm_rt.sample.loop.slots import Slots
from ddm_rt.sample.loop.together import Cancelled, sample
from ddm_rt.sample.manifest import Manifest, Request, image_records, read_manifest
from ddm_rt.sample.request import choice, indicator_guidance, prompting, side
from ddm_rt.schedule import step_table

__all__ = ["Cancelled", "Generation", "Pipeline"]

Deliver = Callable[[Generation], object]
Cancel = Callable[[], bool]

_log = logging.getLogger(__name__)


class Pipeline:
    """A bundle on one backend. An image's bytes are a function of the bundle, the backend with its precision, versions
    and threads, the image's seed, its prompt, its code and the settings; of nothing else.

    What is balanced are the bundle's codes, and nothing else: modes of the training images. They stand for groups as
    far as the images of a code are of one group (`sample.calibration` finds out). An attribute that the codes don't
    follow, and whatever a prompt or a negative prompt asks for by name, stays as the model makes it.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, ledger: Lender | None = None, mode: Mode = Mode.THROUGHPUT
    ) -> None:
        self.bundle, self.engine = bundle, engine
        self.ledger: Lender = Ledger() if ledger is None else ledger
        self._tree = code_tree(bundle)
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
        """Open `bundle` (a directory, the name of a shipped one, or an opened Bundle) on `backend`.

        `threads` is the backend's CPU thread count; None leaves it to the backend. `device` is "cpu", "cuda" or
        "cuda:1"; None takes a GPU where there is one that the backend can use. `precision` is what torch computes an
        fp32 bundle in ("bf16", "fp16"); None is the bundle's own. `mode` matters where a backend's bits depend on the
        batch size: "latency" takes the smallest sizes, which make one image sooner, "throughput" the largest. `ledger`
        keeps the counts of scopes: a file, which other processes may use at the same time, or an opened Ledger; None
        counts in memory. Raises DdmError for a bad bundle or ledger, and BackendUnavailable, with the choices, for a
        backend that can't run here.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
        ledger.check_bundle(opened)
        engine = backends.load(opened, backend, threads, device, precision)
        return cls(opened, engine, ledger, choice(Mode, mode, "mode"))

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes in use at the bundle's own image size, ascending; see `sample.loop.batch_probe.probe`."""
        return self._buckets_for(self.bundle.config.latent_shape, self._sizes.bucket)

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | None = None,
        n: int = 1,
        seed: int = 0,
        codes: Sequence[int] | None = None,
        num_steps: int | None = None,
        sampler: str | SamplerName | None = None,
        guidance_scale: float | None = None,
        indicator_guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        target: str = "uniform",
        balance: Literal["on", "off", "auto"] | Balance = "auto",
        scope: str | None = None,
        shuffle: bool = False,
        allow_stale: bool = False,
        leave_alone: Words | None = None,
        on_step: OnStep | None = None,
        cancel: Cancel | None = None,
        deliver: Deliver | None = None,
    ) -> Generation:
        """`n` images. Image i has the seed `derive(seed, i)`; what is None takes the bundle's default.

        `prompt` is one text, or several: image i has `prompt[i % len(prompt)]`. `negative_prompt` takes the place of
        the empty one. `guidance_scale` is that of the text, `indicator_guidance_scale` that of the code. Where neither
        request nor bundle sets the second, or both are equal, text and code share two branches; where they differ there
        are three, half as much work again. See `sample.loop.guidance`.

        Codes: `codes` gives one per image (-1: null code); otherwise a quota over the bundle's code tree draws them, in
        the shares `target` of the top codes ("uniform", or "code:0=.3,code:1=.7"), so that every prefix of the request
        is off by less than one image per top code (where prompts differ: every prefix of the images of one prompt, by
        less than two); or of groups ("female=.5,male=.5"), where the bundle has a
        calibration for these settings, or `allow_stale` (see `sample.calibration`). `balance` "off" uses the null code,
        "on" insists on a bundle with codes, "auto" is "on" where the bundle has codes, but for the prompts that
        `leave_alone` is about: a list of words, or words by scope ("*": any). An image whose prompt has one of them as
        a whole word gets the null code and counts in no quota; the others are balanced among themselves. There is no
        list of our own (see `sample.balance.leave_alone`). `height` and `width` are pixels, multiples of the bundle's
        `size_multiple`.

        `scope` names a stream of requests: their codes go on where the last request with that scope and target stopped,
        so that the bound holds over all of them (`sample.balance`). Give each of them a seed of its own: equal seeds
        and codes are equal images. `shuffle` permutes the codes within the request by its seed; the bound then holds at
        the ends of requests.

        `on_step` is told the steps done and the steps in all; `cancel` is asked before each step, and Cancelled is
        raised once it returns true. `deliver` is called with the result before a scope's draws count as done: where it
        or anything before it raises, they are given back. Raises DdmError naming the argument that doesn't fit.
        """
        with self.prepare(
            prompt=prompt,
            negative_prompt=negative_prompt,
            n=n,
            seed=seed,
            codes=codes,
            num_steps=num_steps,
            sampler=sampler,
            guidance_scale=guidance_scale,
            indicator_guidance_scale=indicator_guidance_scale,
            height=height,
            width=width,
            target=target,
            balance=balance,
            scope=scope,
            shuffle=shuffle,
            allow_stale=allow_stale,
            leave_alone=leave_alone,
        ) as request:
            generation = self._render(request, on_step, cancel)
            if deliver is not None:
                deliver(generation)
        return generation

    @contextmanager
    def prepare(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | None = None,
        n: int = 1,
        seed: int = 0,
        codes: Sequence[int] | None = None,
        num_steps: int | None = None,
        sampler: str | SamplerName | None = None,
        guidance_scale: float | None = None,
        indicator_guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        target: str = "uniform",
        balance: Literal["on", "off", "auto"] | Balance = "auto",
        scope: str | None = None,
        shuffle: bool = False,
        allow_stale: bool = False,
        leave_alone: Words | None = None,
    ) -> Iterator[Prepared]:
        """The first half of `generate`, for who runs the sampling loop: the request is checked and its codes are drawn.

        A scope's draws are done when the block ends, and given back where it raises. Arguments and errors are those
        of `generate`.
        """
        config = self.bundle.config
        if n < 1:
            raise DdmError(f"n is {n}; expected at least 1")
        if not 0 <= seed <= MAX_SEED:
            raise DdmError(f"seed is {seed}; expected 0 to 2**64 - 1")
        balance = choice(Balance, balance, "balance")
        sampler = config.sampling.sampler if sampler is None else choice(SamplerName, sampler, "sampler")
        text = prompting(
            self.bundle,
            prompt=prompt,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            leave_alone=leave_alone,
            scope=scope,
            balance=balance,
            codes=codes,
            n=n,
        )
        planned = plan(
            self.bundle,
            n=n,
            codes=codes,
            target=target,
            balance=balance,
            scope=scope,
            shuffle=shuffle,
            left_alone=text.left_alone,
            prompts=len(text.prompt) if isinstance(text.prompt, tuple) else 1,
        )
        request = Request(
            prompt=text.prompt,
            negative_prompt=text.negative_prompt,
            n=int(n),
            seed=int(seed),
            codes=None if codes is None else planned.codes,
            balance=balance,
            leave_alone=text.words,
            scope=scope,
            shuffle=shuffle,
            height=side(config, "height", height),
            width=side(config, "width", width),
            guidance_scale=text.guidance_scale,
            indicator_guidance_scale=indicator_guidance(config, indicator_guidance_scale, text.guidance_scale),
            indicator_scale=config.sampling.indicator_scale,
            eta=config.sampling.eta if sampler is SamplerName.DDIM else 0.0,
            clip=config.sampling.clip,
        )
        num_steps = config.sampling.num_steps if num_steps is None else num_steps
        table = step_table(self.bundle.schedule, sampler, num_steps, eta=request.eta, clip=request.clip)
        weights = None
        if planned.codes is None:
            settings = Settings.of(request, sampler, table.num_steps, self.engine.precision)
            weights = self._weigh(target, settings, allow_stale)
        with planned.draw(weights, self.bundle.bundle_id, request.seed, self.ledger) as assigned:
            manifest = Manifest(
                bundle_id=self.bundle.bundle_id,
                calibration_id=None if weights is None else weights.calibration_id,
                request=request,
                target=None if weights is None else target,
                sampler=sampler,
                num_steps=table.num_steps,
                **self.made_by,
                bucket=self._sizes.bucket,
                images=image_records(request, self.bundle.codes.top_of, assigned.codes, positions=assigned.positions),
            )
            yield prepared(self.bundle, manifest, table)

    def replay(
        self,
        manifest: dict[str, Any] | str | Path,
        index: int | None = None,
        on_step: OnStep | None = None,
        cancel: Cancel | None = None,
    ) -> Generation:
        """The images of a manifest again, or only number `index`: the same bytes on the same backend and versions.

        The ledger isn't asked. Raises DdmError for a malformed manifest, one of another bundle, and an index or code
        that it hasn't got.
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
        """The fields of a manifest that say on what its images were made."""
        engine = self.engine
        return {
            "backend": engine.backend,
            "precision": engine.precision,
            "threads": engine.threads,
            "versions": self._versions,
        }

    def recorded(self, manifest: Manifest) -> Prepared:
        """What `prepare` gave for this manifest, or for one with some of its images. The ledger isn't asked.

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
        table = step_table(
            self.bundle.schedule, manifest.sampler, manifest.num_steps, eta=settings.eta, clip=settings.clip
        )
        manifest = manifest.model_copy(update={"bundle_id": self.bundle.bundle_id})
        return prepared(self.bundle, manifest, table)

    def first_states(self, request: Prepared, images: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Where the sampling of these images of the request starts, float32 [B, C, H, W]."""
        seeds = np.array([request.jobs[i].seed for i in images], np.uint64)
        states: NDArray[np.float32] = normal(seeds, 0, Stream.INITIAL, request.shape)
        return states * np.float32(request.table.init_scale)

    def _render(self, request: Prepared, on_step: OnStep | None, cancel: Cancel | None) -> Generation:
        needed = [job.branches for job in request.jobs]
        buckets = self._buckets_for(request.shape, request.manifest.bucket)
        batches = _batches([len(each.conditions) for each in needed], buckets[-1])
        height, width = request.size
        images = np.empty((len(needed), height, width, 3), np.uint8)
        total = len(batches) * request.table.num_steps
        for number, members in enumerate(batches):

            def progress(done: int, before: int = number * request.table.num_steps) -> None:
                if on_step is not None:
                    on_step(before + done, total)

            own = [needed[i] for i in members]
            x0 = sample(
                self.engine,
                request.table,
                self.first_states(request, members),
                [
                    self._conditions.gather(branch, request.indicator_scale, request.size)
                    for branch in zip(*(each.conditions for each in own), strict=True)
                ],
                np.array([each.scales for each in own], np.float32),
                np.array([request.jobs[i].seed for i in members], np.uint64),
                on_step=progress,
                cancel=cancel,
                buckets=buckets,
            )
            images[members] = self._decode(x0, len(members), buckets)
        manifest = request.manifest
        return Generation(images, tuple(image.code for image in manifest.images), manifest.tree())

    def decode(self, x0: Array, batch: int, shape: Shape) -> NDArray[np.uint8]:
        """Images uint8 [B, H, W, 3] of samples [B, *shape]; grey ones are repeated over the channels."""
        return self._decode(x0, batch, self._buckets_for(shape, self._sizes.bucket))

    def _decode(self, x0: Array, batch: int, buckets: tuple[int, ...]) -> NDArray[np.uint8]:
        calls = split(batch, buckets)
        pixels = np.concatenate([self.engine.images(self.engine.take(x0, index)) for index in calls])[:batch]
        return np.broadcast_to(pixels, (*pixels.shape[:3], 3))

    def slots(self, shape: Shape) -> Slots:
        """Room for images in flight whose latents have this shape, with this pipeline's conditions and batch sizes."""
        scale, size = self.bundle.config.sampling.indicator_scale, image_size(self.bundle, shape)
        buckets = self._buckets_for(shape, self._sizes.bucket)
        return Slots(self.engine, lambda wanted: self._conditions.gather(wanted, scale, size), buckets)

    def _buckets_for(self, shape: Shape, bucket: int | None) -> tuple[int, ...]:
        size, scale = image_size(self.bundle, shape), self.bundle.config.sampling.indicator_scale
        return self._sizes.of(shape, size, lambda: self._conditions.probe_rows(scale, size), bucket)

    def _weigh(self, target: str, settings: Settings, allow_stale: bool) -> Weights:
        if names_top_codes(target):
            return by_top_codes(self._tree, target)
        found = resolve(self.bundle, target, settings, allow_stale=allow_stale)
        return by_codes(self._tree, found.target, found.code_weights, found.calibration_id)


def _batches(counts: Sequence[int], rows: int) -> list[NDArray[np.int64]]:
    """Image numbers of each batch: equal numbers of branches, and no more than so many rows."""
    batches = []
    for count in sorted(set(counts)):
        members = np.flatnonzero(np.array(counts) == count)
        most = max(rows // count, 1)
        batches += [members[start : start + most] for start in range(0, len(members), most)]
    return batches
