"""A bundle's caches: tables/NAME/cache.json, each with the settings that it was found for and what was judged of it."""

import logging
from typing import Any, Literal

from ddm_rt.bundle import Bundle, add_directory, check_name
from ddm_rt.config import Frozen, Positive, SamplerName, Sha256, parse_json
from ddm_rt.engine.gates import MAX_FRECHET_RATIO
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.files import write_atomic
from ddm_rt.sample.cache.reuse import LEAST, Reuse

_log = logging.getLogger(__name__)

FOLDER, FILE = "tables", "cache.json"
OFF, AUTO = "off", "auto"
_DIGITS = 5  # of a number of calls
# Of a verdict that `auto` goes by: what `ddm-rt compare` takes for no difference, and what a gate lets through.
MOST_MARGIN, MOST_FRECHET_RATIO = 0.03, MAX_FRECHET_RATIO

Decision = Literal["equivalent", "changed", "undecided"]
Asked = str | int | Reuse | None  # of a request: None and "off": none


class CacheSettings(Frozen):
    """What the outputs of a request's steps follow from beside prompts, codes and seeds: a cache holds for these."""

    sampler: SamplerName
    num_steps: Positive
    height: Positive
    width: Positive
    guidance_scale: float | None = None
    indicator_guidance_scale: float
    indicator_scale: float
    clip: tuple[float, float] | None = None
    guidance_interval: tuple[float, float] | None = None
    apg: tuple[float, float] | None = None
    cads: tuple[float, float, float] | None = None  # of a request; no cache is found with it

    @classmethod
    def of(cls, request: Any, sampler: SamplerName, num_steps: int) -> "CacheSettings":
        """Those of a `ResolvedRequest`."""
        own = {name: getattr(request, name) for name in cls.model_fields if name not in ("sampler", "num_steps")}
        return cls(**own, sampler=sampler, num_steps=num_steps)

    def differences(self, asked: "CacheSettings") -> list[str]:
        """What a request asks for that isn't as it was found for: "num_steps is 8 (found for 25)"."""
        found = []
        for name in type(self).model_fields:
            was, now = getattr(self, name), getattr(asked, name)
            if was != now:
                found.append(f"{name} is {now} (found for {was})")
        return found


class Judged(Frozen):
    """What `compare` said of the images with the cache against those without, from the same seeds and codes."""

    judge: str
    groups: tuple[str, ...]
    reference: str
    n: int
    seed: int
    margin: float  # of a share
    frechet_ratio: float
    balance: Literal["equivalent", "drift", "undecided"]
    quality: Decision | None = None  # None: too few images of a group, or no reference
    diversity: Decision | None = None

    @property
    def passed(self) -> bool:
        """Whether it changes nothing that was judged, by its own bounds."""
        return self.balance == self.quality == self.diversity == "equivalent"

    @property
    def convinces(self) -> bool:
        """Whether `auto` goes by it: it passed, and by bounds that mean something."""
        return self.passed and self.margin <= MOST_MARGIN and self.frechet_ratio <= MOST_FRECHET_RATIO


class Fit(Frozen):
    """How it was found."""

    n: int  # images
    seed: int
    error: float  # root mean square over the latents, of samples with the cache against those without
    spread: float  # standard deviation of those without


class Cache(Frozen):
    """cache.json."""

    schema_version: Literal[1] = 1
    bundle_id: Sha256
    settings: CacheSettings
    reuse: Reuse
    fit: Fit
    judged: Judged | None = None

    @property
    def calls(self) -> int:
        """Of the model, for each image and branch."""
        return len(self.reuse.steps)


def store(bundle: Bundle, cache: Cache, name: str) -> Bundle:
    """The bundle with the cache added as `name`; one of that name is replaced. Raises DdmError as
    `check_name`.
    """
    check_name("cache", name)
    content = cache.model_dump_json(indent=1, exclude_none=True) + "\n"
    return add_directory(bundle, f"{FOLDER}/{name}", lambda folder: write_atomic(folder / FILE, content))


def load_all(bundle: Bundle) -> dict[str, Cache | DdmError]:
    """Caches by name; in place of one that is damaged or was replaced meanwhile, what is wrong with it."""
    found: dict[str, Cache | DdmError] = {}
    for name, where in bundle.records(FOLDER, FILE).items():
        try:
            bundle.check_directory(f"{FOLDER}/{name}")
            found[name] = parse_json(Cache, where.read_bytes(), where)
        except DdmError as error:
            found[name] = error
        except OSError as error:
            found[name] = BundleError(f"{where}: can't be read ({error.strerror})")
    return found


def find(bundle: Bundle, asked: Asked, settings: CacheSettings) -> Reuse | None:
    """The cache that a request asks for: a number of calls; "auto": the one with the fewest calls of those that were
    judged to change nothing; "off" or None: none. One that was found already is given back.

    Raises DdmError for a number of calls that no cache has for these settings.
    """
    if isinstance(asked, Reuse):
        return asked
    wanted = _checked(asked)
    if wanted is None:
        return None
    fitting, others = [], {}
    for name, cache in load_all(bundle).items():
        if isinstance(cache, DdmError):
            _log.warning("cache %s is passed over: %s", name, cache)
            others[name] = "it can't be read"
            continue
        different = cache.settings.differences(settings)
        if not bundle.is_of(cache.bundle_id):
            different.insert(0, f"it is of another bundle, {cache.bundle_id[:12]}")
        if different:
            others[name] = ", ".join(different)
        elif wanted == AUTO and not (cache.judged is not None and cache.judged.convinces):
            others[name] = "it wasn't judged to change nothing"
        elif wanted not in (AUTO, cache.calls):
            others[name] = f"it has {cache.calls} calls"
        else:
            fitting.append(cache)
    if fitting:
        return min(fitting, key=lambda cache: cache.calls).reuse
    there = "; ".join(f"{name}: {why}" for name, why in others.items()) or "the bundle has none"
    if wanted == AUTO:
        _log.info("cache auto: every step calls the model (%s)", there)
        return None
    raise DdmError(
        f"cache is {wanted}: no cache of so many calls for these settings ({there}); "
        f"`ddm-rt cache BUNDLE --calls {wanted}` finds one"
    )


def _checked(asked: str | int | None) -> int | str | None:
    if asked is None or asked == OFF:
        return None
    if asked == AUTO:
        return AUTO
    if (calls := number_of(asked)) is None:
        raise DdmError(f"cache is {asked!r}; expected auto, off, or a number of calls, at least 2")
    return calls


def number_of(asked: Asked) -> int | None:
    """The number of calls that a request asks for; None where it names none, or not one that there could be."""
    text = str(asked)
    if isinstance(asked, bool) or not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        return None
    return int(text) if LEAST <= int(text) <= 10 ** (_DIGITS - 1) else None
