"""A request: what may be asked for, how it is checked against a bundle, and what a manifest keeps of it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import numpy as np
from pydantic import Field

from ddm_rt.bundle import Bundle
from ddm_rt.config import NULL_CODE, Balance, Fraction, Frozen, Positive, SamplerName
from ddm_rt.errors import DdmError
from ddm_rt.runtime import RuntimeConfig, Shape
from ddm_rt.sample.balance.assignment import Plan, check_codes
from ddm_rt.sample.balance.leave_alone import Words, names_one, words_for
from ddm_rt.sample.cache.record import Asked, CacheSettings, find, number_of
from ddm_rt.sample.cache.reuse import Reuse
from ddm_rt.sample.checks import choice, indicator_guidance, numbers, projection, scale, side, token_noise
from ddm_rt.sample.loop.annealing import kept_tokens
from ddm_rt.sample.loop.guidance import guided_steps
from ddm_rt.sample.loop.noise import MAX_SEED
from ddm_rt.sample.loop.tokenizers import check_text
from ddm_rt.schedule import Schedule, StepTable, step_table

_SCOPE_LENGTH = 200


Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Code = Annotated[int, Field(ge=-1)]
Scale = Annotated[float, Field(ge=0)]
Above = Annotated[float, Field(gt=0)]


class ResolvedRequest(Frozen):
    """What was asked for, with every default filled in: the field `request` of a manifest."""

    prompt: str | tuple[str, ...] | None = None  # several: image i has number i % len; None: a prompt-free bundle
    negative_prompt: str | None = None
    n: Positive
    seed: Seed
    codes: tuple[Code, ...] | None = None  # None: drawn by quota, or null codes where balance is off
    balance: Balance
    leave_alone: tuple[str, ...] | None = None  # words: images whose prompt has one got the null code
    scope: str | None = None
    shuffle: bool = False  # the codes were permuted within the request
    height: Positive  # pixels
    width: Positive
    guidance_scale: Scale | None = None  # None: a prompt-free bundle
    indicator_guidance_scale: Scale  # equal to guidance_scale: joint guidance
    indicator_scale: Scale
    eta: Fraction
    clip: tuple[float, float] | None
    guidance_interval: tuple[float, float] | None = None  # None: guidance in every step
    apg: tuple[Above, Scale] | None = None  # norm and η of projected guidance; None: plain guidance
    cads: tuple[Above, Fraction, Fraction] | None = None  # noise on a prompt's tokens: scale, end, begin; None: none
    cache: Reuse | None = None  # steps that call the model, where not all do
    provenance: bool = False  # files say what made them; manifests that don't say are of files that don't
    provenance_code: bool = False  # and with which code

    @property
    def scales(self) -> tuple[float | None, float]:
        """Guidance on the text (None: the bundle takes none), and on the code."""
        return self.guidance_scale, self.indicator_guidance_scale

    def table(self, bundle: Bundle, sampler: SamplerName, num_steps: int) -> StepTable:
        """The coefficients of each step that calls the model. Raises DdmError as `step_table`, `guided_steps`,
        `kept_tokens` and `Reuse.of`.
        """
        times = None if self.cads is None else self.cads[1:]
        table = _table(bundle.schedule, sampler, num_steps, self.eta, self.clip, self.guidance_interval, times)
        return table if self.cache is None else self.cache.of(table)


@lru_cache(64, typed=True)
def _table(
    schedule: Schedule,
    sampler: SamplerName,
    num_steps: int,
    eta: float,
    clip: tuple[float, float] | None,
    interval: tuple[float, float] | None,
    noise_times: tuple[float, float] | None,
) -> StepTable:
    """Tables are kept, because making one takes a tenth of the time of an image in one step."""
    table = step_table(schedule, sampler, num_steps, eta=eta, clip=clip)
    kept = kept_tokens(table.t / schedule.config.num_train_timesteps, noise_times)
    table = replace(table, guided=guided_steps(num_steps, interval), kept=kept)
    for column in vars(table).values():
        if isinstance(column, np.ndarray):  # requests share it
            column.setflags(write=False)
    return table


class Extent(NamedTuple):
    """How large a request is."""

    n: int  # images
    steps: int  # of each image that call the model, as far as the request alone says
    shape: Shape  # of each image's latents: C, H, W


class Resolved(NamedTuple):
    """A request that fits its bundle. Its codes are not drawn yet."""

    request: ResolvedRequest  # with every default filled in
    codes: Plan  # which images get a code by quota
    num_steps: int  # of each image
    table: StepTable  # the coefficients of each step that calls the model


class Told(NamedTuple):
    """A field that the command line and HTTP offer: what it means, its name there where that differs, and the title
    under which `--help` shows it.
    """

    help: str
    name: str | None = None
    group: str = "Prompts and sampling"


_BALANCE, _FILES = "Balance", "Files"  # groups of `--help`


@dataclass(frozen=True)
class Request:
    """What is asked for: how many images, of which prompts, in which shares, by which settings.

    The command line, HTTP, shards and calibrations make the same requests. A field that is None takes the bundle's
    default. Nothing is checked before `resolve`.

    Image i has the seed `derive(seed, i)`. Where there are several prompts, it has `prompt[i % len(prompt)]`.
    `negative_prompt` takes the place of the empty prompt. `height` and `width` are multiples of the bundle's
    `size_multiple`.

    Text and code share two branches where `indicator_guidance_scale` equals `guidance_scale`, and where neither request
    nor bundle sets it. Where the two differ there are three branches, which is half as much work again.

    `guidance_interval` is (start, stop), fractions of the steps. Only the steps between have guidance. The others have
    one branch, that of the whole condition, so they cost a half or a third.

    `apg` is (norm, eta) of adaptive projected guidance: a difference between branches is no longer than `norm`, and of
    its part along the more conditioned output `eta` is kept. See `ddm_rt.kernels.projected_guidance`.

    `cads` is (scale, end, begin) of noise on the prompt's tokens, which makes the images of one prompt differ more. The
    two times are shares of the training timesteps, where 1 is pure noise. Code tokens get no noise. See
    `sample.loop.annealing`.

    `cache` is how many of the steps call the model. The others are made up for by what it gave before, as a cache of
    the bundle says that was found for the request's settings. "auto" takes the one with the fewest calls of those that
    were judged to change nothing, and calls the model in every step where there is none. See `sample.cache.reuse`.

    `codes` gives one code for each image; -1 is the null code. Without it, a quota over the bundle's code tree draws
    them in the shares of `target`. These are shares of the top codes ("uniform", or "code:0=.3,code:1=.7"), of factors
    that the bundle names ("gender:female=.5,gender:male=.5"), or of groups ("female=.5,male=.5"). A factor that the
    target doesn't name keeps the shares that it has in "uniform". Groups need a calibration for these settings, or
    `allow_stale`. Every prefix of the request is then off by less than one image per top code; `sample.balance.factors`
    has the bound for a factor. Where prompts differ, every prefix of the images of one prompt is off by at most twice
    as much.

    `balance` "off" uses the null code. "on" insists on a bundle with codes. "auto" is "on" where the bundle has codes,
    but for prompts that `leave_alone` is about: a list of words, or words by scope ("*": any). An image whose prompt
    has one of them as a whole word gets the null code and counts in no quota. The other images are balanced among
    themselves. ddm_rt brings no such list.

    `scope` names a stream of requests. Their codes go on where the last request with that scope and target stopped, so
    that the bound holds over all of them. Give each request a seed of its own: equal seeds and codes are equal images.
    `shuffle` permutes the codes within the request by its seed; the bound then holds at the ends of requests.

    `provenance` has the image files say that a trained model made them, by which bundle and from which seed, in the way
    of IPTC. `provenance_code` adds the code. Pixels don't depend on either.
    """

    prompt: Annotated[str | Sequence[str] | None, Told("Text that the images show. Several texts take turns.")] = None
    negative_prompt: Annotated[str | None, Told("Text that the images stay away from.")] = None
    n: Annotated[int, Field(ge=1), Told("Number of images.", group="Options")] = 1
    seed: Annotated[
        int,
        Field(ge=0, le=MAX_SEED),
        Told("Seed. The same seed gives the same images. Image i has derive(seed, i).", group="Options"),
    ] = 0
    codes: Sequence[int] | None = None  # one for each image, -1 for the null code; None: drawn by quota
    num_steps: Annotated[int | None, Field(ge=1), Told("Number of sampling steps of each image.", "steps")] = None
    sampler: Annotated[str | None, Told(f"Sampling algorithm, one of: {', '.join(SamplerName)}.")] = None
    guidance_scale: Annotated[float | None, Told("How strongly the images follow the prompt.")] = None
    indicator_guidance_scale: Annotated[
        float | None,
        Told("How strongly images follow their codes. Unless it is the prompt's scale, steps take half as long again."),
    ] = None
    guidance_interval: Annotated[
        Sequence[float] | None,
        Told("Two fractions of all steps: those from the first to the second are guided. The others cost less."),
    ] = None
    apg: Annotated[
        Sequence[float] | None,
        Told("Projected guidance: the largest norm of a difference, and how much of it stays along the output."),
    ] = None
    cads: Annotated[
        Sequence[float] | None,
        Told("Noise on the prompt's tokens, for images that differ more: its scale, and when it ends and begins."),
    ] = None
    cache: Annotated[
        Asked,
        Told(
            "Steps that call the model, by a cache of the bundle: a number, auto (the fewest that change nothing), off."
        ),
    ] = None
    height: Annotated[int | None, Told("Height of the images in pixels.")] = None
    width: Annotated[int | None, Told("Width of the images in pixels.")] = None
    target: Annotated[
        str,
        Told(
            "Shares: uniform; of top codes, code:0=.3,code:1=.7; of a factor of the bundle, hair:dark=.5,hair:fair=.5; "
            "or, with a calibration, of groups, a=.5,b=.5.",
            group="Options",
        ),
    ] = "uniform"
    balance: Annotated[
        Balance, Told("on: a quota draws the codes. off: all images get the null code.", group=_BALANCE)
    ] = Balance.AUTO
    scope: Annotated[
        str | None,
        Told("Stream of requests. Codes go on where its last request stopped. Give each its own seed.", group=_BALANCE),
    ] = None
    shuffle: Annotated[
        bool, Told("Put the codes in random order. Balance then holds at a request's end.", group=_BALANCE)
    ] = False
    allow_stale: Annotated[bool, Told("Use a calibration that was made for other settings.", group=_BALANCE)] = False
    leave_alone: Annotated[Words | None, Told("Prompts with one of these words get the null code.", group=_BALANCE)] = (
        None
    )
    provenance: Annotated[
        bool, Told("Write into each file that a model made it, which one, and the seed.", group=_FILES)
    ] = True
    provenance_code: Annotated[
        bool, Told("Write the code, too. Where codes follow people's groups, that labels each picture.", group=_FILES)
    ] = False

    def extent(self, bundle: Bundle) -> Extent:
        """Images, steps and the shape of the latents, with the bundle's defaults. Whether it fits is not checked."""
        config = bundle.config
        height, width = (config.image_size if side is None else side for side in (self.height, self.width))
        steps = config.sampling.num_steps if self.num_steps is None else self.num_steps
        if isinstance(self.cache, Reuse):
            steps = len(self.cache.steps)
        elif (calls := number_of(self.cache)) is not None:
            steps = min(calls, steps)
        return Extent(self.n, steps, config.latents_of((height, width)))

    def resolve(self, bundle: Bundle) -> Resolved:
        """Check the request against a bundle, and fill in the bundle's defaults. No code is drawn yet.

        Raises DdmError naming the field that doesn't fit.
        """
        config, sampling = bundle.config, bundle.config.sampling
        if self.n < 1:
            raise DdmError(f"n is {self.n}; expected at least 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise DdmError(f"seed is {self.seed}; expected 0 to 2**64 - 1")
        balance = choice(Balance, self.balance, "balance")
        sampler = sampling.sampler if self.sampler is None else choice(SamplerName, self.sampler, "sampler")
        if self.provenance_code and not self.provenance:
            raise DdmError("provenance_code is given, but provenance is off; the code is a part of it")
        texts = self.check_text(config)
        words = words_for(self.leave_alone, self.scope)
        if self.leave_alone is not None and (balance is Balance.ON or self.codes is not None):
            reason = "codes are given" if self.codes is not None else 'balance is "on"'
            raise DdmError(f'leave_alone is given, but {reason}; it goes with balance "auto"')
        several = len(set(texts)) > 1
        text_scale = (
            None if config.prompt_free else scale("guidance_scale", self.guidance_scale, sampling.guidance_scale)
        )
        codes = self._plan(bundle, balance, [names_one(text, words) for text in (texts if several else texts[:1])])
        request = ResolvedRequest(
            prompt=None if config.prompt_free else tuple(texts) if several else texts[0],
            negative_prompt=None if config.prompt_free else self.negative_prompt,
            n=int(self.n),
            seed=int(self.seed),
            codes=None if self.codes is None else codes.codes,
            balance=balance,
            leave_alone=None if self.leave_alone is None else words,
            scope=self.scope,
            shuffle=self.shuffle,
            height=side(config, "height", self.height),
            width=side(config, "width", self.width),
            guidance_scale=text_scale,
            indicator_guidance_scale=indicator_guidance(config, self.indicator_guidance_scale, text_scale),
            indicator_scale=sampling.indicator_scale,
            eta=sampling.eta if sampler is SamplerName.DDIM else 0.0,
            clip=sampling.clip,
            guidance_interval=numbers("guidance_interval", self.guidance_interval, "start", "stop"),
            apg=projection(self.apg),
            cads=token_noise(config, self.cads),
            provenance=self.provenance,
            provenance_code=self.provenance_code,
        )
        steps = sampling.num_steps if self.num_steps is None else self.num_steps
        table = request.table(bundle, sampler, steps)
        if (cache := find(bundle, self.cache, CacheSettings.of(request, sampler, steps))) is not None:
            request = request.model_copy(update={"cache": cache})
            table = cache.of(table)
        return Resolved(request, codes, steps, table)

    def _plan(self, bundle: Bundle, balance: Balance, left_alone: Sequence[bool]) -> Plan:
        """Checks what the request says about its codes; `left_alone` has an entry for each prompt, whose images get
        none.

        Each prompt has a run of the codes drawn: in the order of the images two prompts would have one of two top codes
        each. Raises DdmError naming the argument that doesn't fit.
        """
        quota = self.codes is None and balance is not Balance.OFF and bundle.codes.num_codes > 0
        if balance is Balance.ON and not quota:
            reason = "codes are given" if self.codes is not None else "the bundle has no codes"
            raise DdmError(f'balance is "on", but {reason}; expected "off" or "auto"')
        if self.scope is not None and not (0 < len(self.scope) <= _SCOPE_LENGTH and self.scope.isprintable()):
            raise DdmError(f"scope is {self.scope!r}; expected 1 to {_SCOPE_LENGTH} printable characters")
        if quota:
            runs = [range(k, self.n, len(left_alone)) for k, alone in enumerate(left_alone) if not alone]
            balanced = tuple(i for run in runs for i in run)
            return Plan(self.n, None if balanced else (NULL_CODE,) * self.n, balanced, self.scope, self.shuffle)
        for name, default in (("target", "uniform"), ("scope", None), ("shuffle", False)):
            if (value := getattr(self, name)) != default:
                raise DdmError(f"{name} is {value!r}, but no quota draws the codes of this request")
        given = (NULL_CODE,) * self.n if self.codes is None else tuple(int(code) for code in self.codes)
        if len(given) != self.n:
            raise DdmError(f"codes has {len(given)} entries; expected n = {self.n}")
        check_codes(bundle, given, "codes")
        if balance is Balance.OFF and set(given) != {NULL_CODE}:
            raise DdmError('balance is "off", which means the null code (-1); leave it at "auto" to give codes')
        return Plan(self.n, given)

    def check_text(self, config: RuntimeConfig) -> list[str]:
        """The prompts that the images take in turn. Raises DdmError naming what of the text doesn't fit."""
        if self.prompt is None or isinstance(self.prompt, str):
            texts = [self.prompt or ""]
        elif isinstance(self.prompt, Sequence):
            texts = list(self.prompt) or [""]
        else:
            raise DdmError(f"prompt is {self.prompt!r}; expected text, or a list of texts")
        if config.prompt_free:
            free = f"bundle {config.name!r} is prompt-free"
            for name, given in (("prompt", any(texts)), ("negative_prompt", bool(self.negative_prompt))):
                if given:
                    raise DdmError(f"{name} is given; {free} and takes none")
            if self.guidance_scale is not None:
                raise DdmError(f"guidance_scale is {self.guidance_scale}; {free}: use indicator_guidance_scale")
            if self.leave_alone is not None:
                raise DdmError(f"leave_alone is given; {free} and takes no prompts")
            return texts
        for text in texts:
            check_text("prompt", text)
        if self.negative_prompt is not None:
            check_text("negative_prompt", self.negative_prompt)
        if self.negative_prompt and not config.takes_negative_prompt:
            raise DdmError(f"negative_prompt is given; bundle {config.name!r} is a student: it has no branch for one")
        scale("guidance_scale", self.guidance_scale, config.sampling.guidance_scale)
        return texts


class ToldField(NamedTuple):
    """A field of `Request` that the command line and HTTP offer."""

    hint: Any
    default: Any
    limits: tuple[Any, ...]  # pydantic's
    told: Told


def told_fields() -> dict[str, ToldField]:
    """The fields of `Request` that say what they mean, by name, for those who make an option or a schema of them."""
    hints = get_type_hints(Request, include_extras=True)
    found = {}
    for each in fields(Request):
        hint, *more = get_args(hints[each.name])
        if more and isinstance(more[-1], Told):
            found[each.name] = ToldField(hint, each.default, tuple(more[:-1]), more[-1])
    return found


_ASSIGNMENT = {"n", "seed", "codes", "target", "balance", "scope", "shuffle", "allow_stale", "leave_alone"}
FILES = ("provenance", "provenance_code")
"""The fields that decide what a file says of its image."""

SETTINGS = tuple(field.name for field in fields(Request) if field.name not in (*_ASSIGNMENT, *FILES))
"""The fields that decide how an image of some seed and code looks."""
