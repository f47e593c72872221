"""Pipeline: the public entry. A request becomes seeds, codes and settings per image; the loop does the rest."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.config import NULL_CODE, Balance, SamplerName
from ddm_rt.engine import backends
from ddm_rt.engine.contract import Array, Cond, Engine
from ddm_rt.errors import DdmError
from ddm_rt.sample.assignment import Weights, by_codes, by_top_codes, check_codes, code_tree, names_top_codes, plan
from ddm_rt.sample.buckets import concat, probe, split, take
from ddm_rt.sample.calibrate import Settings, resolve
from ddm_rt.sample.generation import Generation
from ddm_rt.sample.ledger import Ledger
from ddm_rt.sample.loop import Cancelled, sample
from ddm_rt.sample.manifest import ImageRecord, Manifest, Request, read_manifest
from ddm_rt.sample.rng import MAX_SEED, Stream, derive, normal
from ddm_rt.schedule import StepTable, step_table

__all__ = ["Cancelled", "Generation", "Pipeline"]

Choice = TypeVar("Choice", bound=StrEnum)
Shape = tuple[int, int, int]  # C, H, W of the latents
OnStep = Callable[[int, int], None]
Deliver = Callable[[Generation], object]
Cancel = Callable[[], bool]

_PROBE_CODES = 8  # distinct conditions among the probe's rows
_log = logging.getLogger(__name__)


class Pipeline:
    """A bundle on one backend. An image's bytes are a function of the bundle, the backend with its precision, versions
    and threads, the image's seed, its code and the settings; of nothing else.
    """

    def __init__(self, bundle: Bundle, engine: Engine, ledger: Ledger | None = None) -> None:
        self.bundle, self.engine = bundle, engine
        self.ledger = Ledger() if ledger is None else ledger
        self._tree = code_tree(bundle)
        self._cond: dict[tuple[int, float], Cond] = {}  # (code, indicator_scale) -> one row
        self._buckets: dict[Shape, tuple[int, ...]] = {}

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        backend: str = "auto",
        threads: int | None = None,
        ledger: str | Path | Ledger | None = None,
    ) -> "Pipeline":
        """Open `bundle` (a directory, the name of a shipped one, or an opened Bundle) on `backend`.

        `threads` is the backend's CPU thread count; None leaves it to the backend. `ledger` keeps the counts of scopes:
        a file, which other processes may use at the same time, or an opened Ledger; None counts in memory. Raises
        DdmError for a bad bundle or ledger, and BackendUnavailable, with the choices, for a backend that can't run
        here.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
        ledger.check_bundle(opened.bundle_id)
        return cls(opened, backends.load(opened, backend, threads), ledger)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes in use at the bundle's own image size, ascending; see `sample.buckets.probe`."""
        return self._buckets_for(self.bundle.config.latent_shape)

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
        on_step: OnStep | None = None,
        cancel: Cancel | None = None,
        deliver: Deliver | None = None,
    ) -> Generation:
        """`n` images. Image i has the seed `derive(seed, i)`; what is None takes the bundle's default.

        Codes: `codes` gives one per image (-1: null code); otherwise a quota over the bundle's code tree draws them, in
        the shares `target` of the top codes ("uniform", or "code:0=.3,code:1=.7"), so that every prefix of the request
        is off by less than one image per top code; or of groups ("female=.5,male=.5"), where the bundle has a
        calibration for these settings, or `allow_stale` (see `sample.calibrate`). `balance` "off" uses the null code,
        "on" insists on a bundle with codes, "auto" is "on" where the bundle has codes. `height` and `width` are pixels,
        multiples of the bundle's `size_multiple`.

        `scope` names a stream of requests: their codes go on where the last request with that scope and target stopped,
        so that the bound holds over all of them (see `sample.ledger`). Give each of them a seed of its own: equal seeds
        and codes are equal images. `shuffle` permutes the codes within the request by its seed; the bound then holds at
        the ends of requests.

        `on_step` is told the steps done and the steps in all; `cancel` is asked before each step, and Cancelled is
        raised once it returns true. `deliver` is called with the result before a scope's draws count as done: where it
        or anything before it raises, they are given back. Raises DdmError naming the argument that doesn't fit.
        """
        config = self.bundle.config
        self._check_prompt(prompt, negative_prompt, guidance_scale)
        if n < 1:
            raise DdmError(f"n is {n}; expected at least 1")
        if not 0 <= seed <= MAX_SEED:
            raise DdmError(f"seed is {seed}; expected 0 to 2**64 - 1")
        balance = _choice(Balance, balance, "balance")
        sampler = config.sampling.sampler if sampler is None else _choice(SamplerName, sampler, "sampler")
        planned = plan(self.bundle, n=n, codes=codes, target=target, balance=balance, scope=scope, shuffle=shuffle)
        request = Request(
            n=int(n),
            seed=int(seed),
            codes=None if codes is None else planned.codes,
            balance=balance,
            scope=scope,
            shuffle=shuffle,
            height=self._side("height", height),
            width=self._side("width", width),
            indicator_guidance_scale=_scale(
                "indicator_guidance_scale", indicator_guidance_scale, config.sampling.indicator_guidance_scale
            ),
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
        top_of = self.bundle.codes.top_of
        with planned.draw(weights, self.bundle.bundle_id, request.seed, self.ledger) as assigned:
            manifest = Manifest(
                bundle_id=self.bundle.bundle_id,
                calibration_id=None if weights is None else weights.calibration_id,
                request=request,
                target=None if weights is None else target,
                sampler=sampler,
                num_steps=table.num_steps,
                backend=self.engine.backend,
                precision=self.engine.precision,
                threads=self.engine.threads,
                versions=self.engine.versions,
                images=tuple(
                    ImageRecord(
                        file=f"{i:05d}.png",
                        seed=derive(request.seed, i),
                        code=code,
                        top_code=NULL_CODE if code == NULL_CODE else top_of[code],
                        position=None if assigned.positions is None else assigned.positions[i],
                    )
                    for i, code in enumerate(assigned.codes)
                ),
            )
            generation = self._render(manifest, table, on_step, cancel)
            if deliver is not None:
                deliver(generation)
        return generation

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
        if recorded.bundle_id != self.bundle.bundle_id:
            raise DdmError(
                f"manifest: bundle_id is {recorded.bundle_id[:12]}…; this bundle is {self.bundle.bundle_id[:12]}…"
            )
        if index is not None:
            if not 0 <= index < len(recorded.images):
                raise DdmError(f"index is {index}; the manifest has images 0 to {len(recorded.images) - 1}")
            recorded = recorded.model_copy(update={"images": (recorded.images[index],)})
        check_codes(self.bundle, [image.code for image in recorded.images], "manifest: field images")
        for side, pixels in (("height", recorded.request.height), ("width", recorded.request.width)):
            self._side(f"manifest: field request.{side}", pixels)
        engine = self.engine
        here = {"backend": engine.backend, "precision": engine.precision, "threads": engine.threads}
        for name, value in (here | {"versions": engine.versions}).items():
            if getattr(recorded, name) != value:
                _log.warning("replay: %s was %s, is %s: bytes may differ", name, getattr(recorded, name), value)
        current = recorded.model_copy(update=here | {"versions": engine.versions})
        settings = recorded.request
        table = step_table(
            self.bundle.schedule, recorded.sampler, recorded.num_steps, eta=settings.eta, clip=settings.clip
        )
        return self._render(current, table, on_step, cancel)

    def _render(
        self, manifest: Manifest, table: StepTable, on_step: OnStep | None, cancel: Cancel | None
    ) -> Generation:
        """The images that `manifest` describes."""
        request, config = manifest.request, self.bundle.config
        channels, latent_height, latent_width = config.latent_shape
        shape = (
            channels,
            request.height * latent_height // config.image_size,
            request.width * latent_width // config.image_size,
        )
        codes = np.array([image.code for image in manifest.images], np.int64)
        seeds = np.array([image.seed for image in manifest.images], np.uint64)
        branches = {int(code): _branches(int(code), request.indicator_guidance_scale) for code in np.unique(codes)}
        batches = self._batches([len(branches[int(code)]) for code in codes], shape)

        images = np.empty((len(codes), request.height, request.width, 3), np.uint8)
        total = len(batches) * table.num_steps
        for number, members in enumerate(batches):

            def progress(done: int, before: int = number * table.num_steps) -> None:
                if on_step is not None:
                    on_step(before + done, total)

            wanted = np.array([branches[int(code)] for code in codes[members]])  # [B, branches]
            x = normal(seeds[members], 0, Stream.INITIAL, shape) * np.float32(table.init_scale)
            x0 = sample(
                self.engine,
                table,
                x,
                [self._gather(wanted[:, k], request.indicator_scale) for k in range(wanted.shape[1])],
                np.full((len(members), wanted.shape[1] - 1), request.indicator_guidance_scale, np.float32),
                seeds[members],
                on_step=progress,
                cancel=cancel,
                buckets=self._buckets_for(shape),
            )
            images[members] = self._decode(x0, len(members), shape)
        return Generation(images, tuple(int(code) for code in codes), manifest.tree())

    def _batches(self, branches: Sequence[int], shape: Shape) -> list[NDArray[np.int64]]:
        """Image numbers of each batch: equal numbers of branches, and no more rows than the largest bucket."""
        batches = []
        for count in sorted(set(branches)):
            members = np.flatnonzero(np.array(branches) == count)
            most = max(self._buckets_for(shape)[-1] // count, 1)
            batches += [members[start : start + most] for start in range(0, len(members), most)]
        return batches

    def _decode(self, x0: Array, batch: int, shape: Shape) -> NDArray[np.uint8]:
        """Images [B, H, W, 3]; grey ones are repeated over the channels."""
        calls = split(batch, self._buckets_for(shape))
        pixels = np.concatenate([self.engine.decoder(self.engine.take(x0, index)) for index in calls])[:batch]
        grey_levels = np.rint((np.clip(pixels, -1, 1) + np.float32(1)) * np.float32(127.5)).astype(np.uint8)
        return np.broadcast_to(grey_levels.transpose(0, 2, 3, 1), (batch, *pixels.shape[2:], 3))

    def _gather(self, codes: NDArray[np.int64], scale: float) -> Cond:
        """`cond` with one row per entry of `codes`, from rows that the conditioner made one at a time."""
        distinct, index = np.unique(codes, return_inverse=True)
        rows = [self._condition(int(code), scale) for code in distinct]
        return take(self.engine, concat(self.engine, rows), index.astype(np.int64))

    def _condition(self, code: int, scale: float) -> Cond:
        if (code, scale) not in self._cond:
            tokens, width = self.bundle.config.context_shape
            context = np.zeros((1, tokens if isinstance(tokens, int) else 1, width), np.float32)
            self._cond[code, scale] = self.engine.conditioner(
                context, np.array([code], np.int64), np.array([scale], np.float32), {}
            )
        return self._cond[code, scale]

    def _buckets_for(self, shape: Shape) -> tuple[int, ...]:
        if shape not in self._buckets:
            config = self.bundle.config
            codes = [NULL_CODE, *range(min(self.bundle.codes.num_codes, _PROBE_CODES - 1))]
            cond = concat(self.engine, [self._condition(code, config.sampling.indicator_scale) for code in codes])
            table = step_table(self.bundle.schedule, config.sampling.sampler, config.sampling.num_steps)
            self._buckets[shape] = probe(self.engine, cond, len(codes), shape, table.timesteps)
            _log.info("batch sizes for latents %s: %s", shape, self._buckets[shape])
        return self._buckets[shape]

    def _weigh(self, target: str, settings: Settings, allow_stale: bool) -> Weights:
        if names_top_codes(target):
            return by_top_codes(self._tree, target)
        found = resolve(self.bundle, target, settings, allow_stale=allow_stale)
        return by_codes(self._tree, found.target, found.code_weights, found.calibration_id)

    def _check_prompt(
        self, prompt: str | Sequence[str] | None, negative_prompt: str | None, guidance_scale: float | None
    ) -> None:
        name = self.bundle.config.name
        if not self.bundle.config.prompt_free:
            raise DdmError(f"bundle {name!r} takes prompts; text encoders are not available in this version")
        texts: Mapping[str, Sequence[str]] = {
            "prompt": [prompt or ""] if prompt is None or isinstance(prompt, str) else prompt,
            "negative_prompt": [negative_prompt or ""],
        }
        for field, values in texts.items():
            if any(values):
                raise DdmError(f"{field} is given; bundle {name!r} is prompt-free and takes none")
        if guidance_scale is not None:
            raise DdmError(
                f"guidance_scale is {guidance_scale}; bundle {name!r} is prompt-free: use indicator_guidance_scale"
            )

    def _side(self, field: str, pixels: int | None) -> int:
        config = self.bundle.config
        if pixels is None:
            return config.image_size
        if pixels < config.size_multiple or pixels % config.size_multiple:
            raise DdmError(f"{field} is {pixels}; expected a multiple of {config.size_multiple}")
        return pixels


def _branches(code: int, guidance: float) -> tuple[int, ...]:
    """Codes of the branches of one image, from which out = null + g·(code - null): only those that count."""
    if code == NULL_CODE or guidance == 0:
        return (NULL_CODE,)
    return (code,) if guidance == 1 else (NULL_CODE, code)


def _scale(field: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if not (math.isfinite(value) and value >= 0):
        raise DdmError(f"{field} is {value}; expected a finite number, not negative")
    return float(value)


def _choice(kind: type[Choice], value: str, field: str) -> Choice:
    try:
        return kind(value)
    except ValueError as error:
        raise DdmError(f"{field} is {value!r}; expected one of: {', '.join(kind)}") from error
