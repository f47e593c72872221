"""Noise levels and step tables: the only noise-schedule maths of the project, in numpy.

Notation: ᾱ_t is the product of (1 - β) up to t, α = √ᾱ_t and σ = √(1 - ᾱ_t), so x_t = α·x0 + σ·ε.
A primed name belongs to the noise level that a step leads to.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ddm_rt.config import PredictionType, SamplerName, SamplingConfig, ScheduleConfig, parse
from ddm_rt.errors import BundleError, DdmError

Spacing = Literal["leading", "linspace", "trailing", "karras"]
Float64 = NDArray[np.float64]

# Which spacings of the timesteps a sampler takes; the first is its default, as in diffusers. "karras" is diffusers'
# `use_karras_sigmas` with the sampler's default spacing.
SPACINGS: dict[SamplerName, tuple[Spacing, ...]] = {
    SamplerName.DDPM: ("leading", "trailing"),
    SamplerName.DDIM: ("leading", "trailing"),
    SamplerName.EULER: ("linspace", "leading", "trailing", "karras"),
    SamplerName.DPMPP_2M: ("linspace", "leading", "trailing", "karras"),
    SamplerName.LCM: ("trailing",),
}
# Timesteps that a student is trained on (`train.distill.run`) and LCM picks its steps from; diffusers' default.
LCM_GRID = 50


@dataclass(frozen=True, eq=False)
class Schedule:
    """Noise levels of every training timestep.

    `alphas_cumprod` is ᾱ, float64 [num_train_timesteps], strictly decreasing within (0, 1), read-only. Its values
    are those that diffusers holds in float32, so a checkpoint means the same noise levels there and here.
    """

    config: ScheduleConfig  # what the levels follow from
    alphas_cumprod: Float64  # ᾱ of every training timestep

    def __post_init__(self) -> None:
        self.alphas_cumprod.setflags(write=False)

    @classmethod
    def from_config(cls, config: ScheduleConfig) -> "Schedule":
        """Raises DdmError where the betas leave no strictly decreasing ᾱ within (0, 1) in float32."""
        alphas = np.float32(1) - _betas(config)
        levels = np.cumprod(alphas, dtype=np.float64).astype(np.float32).astype(np.float64)
        if problem := _problem(levels):
            raise DdmError(f"schedule: {problem}; change num_train_timesteps, beta_start or beta_end")
        return cls(config, levels)

    @classmethod
    def from_json(cls, content: str | bytes, path: str | Path) -> "Schedule":
        """schedule.json of a bundle of format 1. Raises DdmError naming `path` and the field that is wrong."""
        try:
            tree = json.loads(content)
        except ValueError as error:
            raise BundleError(f"{path}: not JSON ({error})") from error
        if not isinstance(tree, dict) or tree.pop("schema_version", None) != 1:
            raise BundleError(f"{path}: field schema_version: expected 1")
        values = tree.pop("alphas_cumprod", None)
        config = parse(ScheduleConfig, {name: tree[name] for name in ScheduleConfig.model_fields if name in tree}, path)
        return cls.stored(config, values, path, "alphas_cumprod")

    @classmethod
    def stored(cls, config: ScheduleConfig, values: Any, path: str | Path, field: str) -> "Schedule":
        """A schedule whose ᾱ stands in a file as `values`. Raises BundleError naming `path` and `field`."""
        where = f"{path}: field {field}"
        levels = _levels(values, where)
        if len(levels) != config.num_train_timesteps:
            raise BundleError(f"{where}: {len(levels)} values; num_train_timesteps is {config.num_train_timesteps}")
        if problem := _problem(levels):
            raise BundleError(f"{where}: {problem}")
        try:
            expected = cls.from_config(config)
        except DdmError as error:
            raise BundleError(f"{path}: {error}") from error
        # Machines may differ in the last place of a cosine; anything beyond that is another schedule.
        if not np.allclose(levels, expected.alphas_cumprod, rtol=1e-5, atol=0):
            raise BundleError(f"{where}: differs from what the beta fields give")
        return cls(config, levels)


@dataclass(frozen=True, eq=False)
class StepTable:
    """The coefficients of a sampler, one row per step; float64 arrays [num_steps].

        x0 = clip(a·x + b·out, clip_min, clip_max)
        x' = c·x + d·x0 + e·x0_prev + g·out + f·z

    x is the denoiser's input, out its output, x0_prev the x0 of the step before, z standard normal noise. The first
    state is `init_scale`·z and the last is the sample: no other scaling anywhere. Clip limits are ±inf without a clip.
    """

    sampler: SamplerName
    num_steps: int
    init_scale: float
    t: Float64  # training timestep, fractional where the sampler's noise levels are
    a: Float64
    b: Float64
    c: Float64
    d: Float64
    e: Float64
    g: Float64
    f: Float64
    clip_min: Float64
    clip_max: Float64
    # What a request adds: `step_table` makes tables whose steps all have guidance and keep all.
    guided: NDArray[np.bool_]  # whether the step has guidance; one without has an image's last branch alone
    kept: Float64  # how much a step keeps of a prompt's tokens, the rest of which is noise

    @property
    def timesteps(self) -> NDArray[np.float32]:
        """float32 [num_steps], what the denoiser is given."""
        return self.t.astype(np.float32)

    def rows(self) -> NDArray[np.float32]:
        """float32 [num_steps, 9]: a, b, c, d, e, g, f, clip_min, clip_max."""
        columns = (self.a, self.b, self.c, self.d, self.e, self.g, self.f, self.clip_min, self.clip_max)
        return np.stack(columns, axis=1).astype(np.float32)


def step_table(
    schedule: Schedule,
    sampler: SamplerName,
    num_steps: int,
    *,
    eta: float = 0.0,
    clip: tuple[float, float] | None = None,
    spacing: Spacing | None = None,
) -> StepTable:
    """The rows of `sampler`; equal to diffusers' scheduler of that name with the schedule's configuration.

    `eta` is DDIM's (0 deterministic, 1 as noisy as DDPM), `clip` limits x0, `spacing` picks the timesteps (see
    `SPACINGS`; None is the schedule's own where the sampler takes it, else the sampler's default). As in diffusers,
    "leading" starts below the last training timestep, and Euler's "linspace" with a single step starts at t = 0.
    Raises DdmError naming the argument that doesn't fit.
    """
    most = schedule.config.num_train_timesteps
    if not 1 <= num_steps <= most:
        raise DdmError(f"num_steps is {num_steps}; expected 1 to {most}, the number of training timesteps")
    if sampler is SamplerName.LCM and num_steps > LCM_GRID:
        raise DdmError(f"num_steps is {num_steps}; {sampler.value} takes at most {LCM_GRID}")
    if not 0 <= eta <= 1:
        raise DdmError(f"eta is {eta}; expected 0 to 1")
    if eta and sampler is not SamplerName.DDIM:
        raise DdmError(f"eta is {eta}; only {SamplerName.DDIM.value} takes one, not {sampler.value}")
    if clip is not None and not clip[0] < clip[1]:
        raise DdmError(f"clip is {clip}; expected a lower and a higher limit for x0")
    if spacing is None:
        own = schedule.config.timestep_spacing
        spacing = own if own in SPACINGS[sampler] else SPACINGS[sampler][0]
    if spacing not in SPACINGS[sampler]:
        raise DdmError(f"spacing is {spacing!r}; {sampler.value} takes: {', '.join(SPACINGS[sampler])}")
    t, sigma_ratio = _noise_levels(schedule, sampler, num_steps, spacing)
    if (np.diff(sigma_ratio[:-1]) >= 0).any():
        raise DdmError(f"num_steps is {num_steps}; too many for {sampler.value}: two steps share a timestep")
    alpha = 1 / np.sqrt(sigma_ratio**2 + 1)  # [S + 1]; the last entry is where the sample ends: α = 1, σ = 0 when clean
    sigma = sigma_ratio * alpha
    a, b, p, q = _prediction(schedule.config.prediction_type, alpha[:-1], sigma[:-1])
    zero = np.zeros(num_steps)
    c, d, e, g, f = _UPDATES[sampler](alpha, sigma, p, q, eta)
    if sampler is SamplerName.LCM:
        skip, out = boundary(t)
        c, d = d * skip, d * out
    low, high = clip or (-np.inf, np.inf)
    # Euler starts from z·σ/α in its own units, where x is its state times α; with "leading", from z·√((σ/α)² + 1).
    init_scale = float(sigma[0]) if sampler is SamplerName.EULER and spacing != "leading" else 1.0
    limits = {"clip_min": zero + low, "clip_max": zero + high}
    return StepTable(sampler, num_steps, init_scale, t, a, b, c, d, e, g, f, **limits, guided=zero == 0, kept=zero + 1)


def default_table(schedule: ScheduleConfig, sampling: SamplingConfig) -> StepTable:
    """The rows that a bundle with this configuration samples by unless a request asks for others."""
    return step_table(
        Schedule.from_config(schedule), sampling.sampler, sampling.num_steps, eta=sampling.eta, clip=sampling.clip
    )


def _ddpm(alpha: Float64, sigma: Float64, p: Float64, q: Float64, eta: float) -> tuple[Float64, ...]:
    """Posterior mean and the smaller of its two variances: Ho et al. 2020 (arXiv 2006.11239), eq. 7."""
    ratio = (alpha[:-1] / alpha[1:]) ** 2  # product of (1 - β) over the step
    c = np.sqrt(ratio) * sigma[1:] ** 2 / sigma[:-1] ** 2
    d = alpha[1:] * (1 - ratio) / sigma[:-1] ** 2
    f = np.sqrt(sigma[1:] ** 2 / sigma[:-1] ** 2 * (1 - ratio))
    return c, d, np.zeros_like(c), np.zeros_like(c), f


def _ddim(alpha: Float64, sigma: Float64, p: Float64, q: Float64, eta: float) -> tuple[Float64, ...]:
    """Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16; ε is the denoiser's own, not that of a clipped x0."""
    f = eta * sigma[1:] / sigma[:-1] * np.sqrt(1 - (alpha[:-1] / alpha[1:]) ** 2)
    direction = np.sqrt(np.maximum(sigma[1:] ** 2 - f**2, 0))  # rounding alone takes it below zero
    return direction * p, alpha[1:], np.zeros_like(f), direction * q, f


def _euler(alpha: Float64, sigma: Float64, p: Float64, q: Float64, eta: float) -> tuple[Float64, ...]:
    """Euler's step y' = y + (y - x0)·(s'/s - 1), s = σ/α (Karras et al. 2022, alg. 1), for x = α·y."""
    c = sigma[1:] / sigma[:-1]
    d = alpha[1:] - alpha[:-1] * c
    zero = np.zeros_like(c)
    return c, d, zero, zero, zero


def _dpmpp_2m(alpha: Float64, sigma: Float64, p: Float64, q: Float64, eta: float) -> tuple[Float64, ...]:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), alg. 2; first order in the first and the last step.

    With λ = log(α/σ) and h = λ' - λ: x' = (σ'/σ)·x - α'(e^{-h} - 1)·D, D = x0 + (x0 - x0_prev)·h/(2·h_prev).
    """
    c, d, zero, _, _ = _euler(alpha, sigma, p, q, eta)  # α'(1 - e^{-h}) is Euler's d
    e = np.zeros_like(c)
    h = np.diff(_log(alpha[:-1] / sigma[:-1]))  # h of every step but the last, where it is infinite
    extrapolation = d[1:-1] * h[1:] / (2 * h[:-1])
    e[1:-1] = -extrapolation
    d[1:-1] += extrapolation
    return c, d, e, zero, zero


def _lcm(alpha: Float64, sigma: Float64, p: Float64, q: Float64, eta: float) -> tuple[Float64, ...]:
    """Luo et al. 2023 (arXiv 2310.04378), alg. 3: x0, noised afresh to the next level; see `boundary` for the rest."""
    zero = np.zeros(len(alpha) - 1)
    return zero, alpha[1:], zero, zero, sigma[1:]


def jumps(schedule: Schedule, t: Float64, to: Float64, clip: tuple[float, float] | None = None) -> NDArray[np.float32]:
    """Rows float32 [S, 9] of DDIM steps, each from a timestep of `t` [S] to the one of `to` [S]; -1 is the clean end.

    `t` and `to` hold whole timesteps. Unlike a table's rows, these take ε from the clipped x0: x' = c·x + d·x0. What a
    clip cuts off then doesn't stay in x, and one long jump is what many short ones with its x0 are.
    """
    bar = np.append(schedule.alphas_cumprod, 1.0)  # so that -1 is clean
    (alpha, sigma), (alpha_to, sigma_to) = (
        (np.sqrt(bar[i]), np.sqrt(1 - bar[i])) for i in (t.astype(int), to.astype(int))
    )
    a, b, _, _ = _prediction(schedule.config.prediction_type, alpha, sigma)
    c, zero = sigma_to / sigma, np.zeros_like(alpha)
    low, high = clip or (-np.inf, np.inf)
    columns = (a, b, c, alpha_to - alpha * c, zero, zero, zero, zero + low, zero + high)
    return np.stack(columns, axis=1).astype(np.float32)


def boundary(t: Float64) -> tuple[Float64, Float64]:
    """c_skip and c_out of the consistency function f(x, t) = c_skip·x + c_out·x0, for which f(x, 0) = x.

    arXiv 2310.04378, eq. 9, with σ_data = .5 and timesteps times 10, as diffusers has it: c_skip is below 1e-5 from
    the first timestep of a grid of 50 on.
    """
    square = (10 * t / 0.5) ** 2
    return 1 / (square + 1), np.sqrt(square / (square + 1))


_Update = Callable[[Float64, Float64, Float64, Float64, float], tuple[Float64, ...]]

_UPDATES: dict[SamplerName, _Update] = {
    SamplerName.DDPM: _ddpm,
    SamplerName.DDIM: _ddim,
    SamplerName.EULER: _euler,
    SamplerName.DPMPP_2M: _dpmpp_2m,
    SamplerName.LCM: _lcm,
}


def _prediction(kind: PredictionType, alpha: Float64, sigma: Float64) -> tuple[Float64, ...]:
    """a, b, p, q with x0 = a·x + b·out and ε = p·x + q·out."""
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)
    if kind is PredictionType.EPSILON:
        return 1 / alpha, -sigma / alpha, zero, one
    if kind is PredictionType.V_PREDICTION:
        return alpha, -sigma, sigma, alpha
    return zero, one, 1 / sigma, -alpha / sigma


def _noise_levels(
    schedule: Schedule, sampler: SamplerName, num_steps: int, spacing: Spacing
) -> tuple[Float64, Float64]:
    """Timesteps [S] and noise-to-signal ratios σ/α [S + 1], the last of which is 0 but for DDIM (`_end`)."""
    last = schedule.config.num_train_timesteps - 1
    every = np.sqrt((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod)  # [num_train_timesteps]
    euler = sampler is SamplerName.EULER
    i = np.arange(num_steps, dtype=np.float64)
    t: Float64
    if sampler is SamplerName.LCM:
        t = _trailing(last + 1, LCM_GRID)[np.floor(np.linspace(0, LCM_GRID, num_steps, endpoint=False)).astype(int)]
    elif spacing == "leading":
        # DPM-Solver++ leaves out t = 0 here too.
        first, intervals = (1, num_steps + 1) if sampler is SamplerName.DPMPP_2M else (0, num_steps)
        t = (i[::-1] + first) * ((last + 1) // intervals) + schedule.config.steps_offset
    elif spacing == "trailing":
        t = _trailing(last + 1, num_steps)
    elif euler:
        t = np.linspace(0, last, num_steps)[::-1].astype(np.float32).astype(np.float64)
    else:  # DPM-Solver++ leaves out t = 0 and uses whole timesteps
        t = np.rint(np.linspace(0, last, num_steps + 1))[:0:-1]
    levels: Float64 = np.interp(t, np.arange(last + 1), every)
    if spacing == "karras":
        high, low = (levels[0], levels[-1]) if euler else (every[-1], every[0])
        levels = _karras(high, low, num_steps)
        exact = np.interp(_log(levels), _log(every), np.arange(last + 1))
        t = exact if euler else _whole_timesteps(schedule, num_steps)
    return t, np.append(levels, _end(schedule.config, sampler, t, spacing, float(every[0])))


def _karras(high: float, low: float, num_steps: int) -> Float64:
    """σ/α [S] from `high` to `low`: Karras et al. 2022 (arXiv 2206.00364), eq. 5, ρ = 7."""
    first, final = _power(np.array([high, low]), 1 / 7)
    return _power(np.linspace(first, final, num_steps), 7)


def _whole_timesteps(schedule: Schedule, num_steps: int) -> Float64:
    """Timesteps [S] of DPM-Solver++ at Karras's levels, which diffusers stores whole: rounded, or cut for the cosine.

    diffusers looks them up among levels and logarithms that it holds in float32. So does this: with the cosine
    schedule that rounding decides whether the first one, at the noisiest level of all, is the last timestep or the one
    before it.
    """
    bar = schedule.alphas_cumprod.astype(np.float32)
    every = np.sqrt((1 - bar) / bar).astype(np.float64)
    logs = _log(every).astype(np.float32)
    t = np.interp(_log(_karras(every[-1], every[0], num_steps)), logs, np.arange(len(every)))
    whole: Float64 = np.floor(t) if schedule.config.beta_schedule == "squaredcos_cap_v2" else np.rint(t)
    return whole


# By the C library's functions, one by one: numpy's own differ from them in the last place on some processors, and the
# tables of `csrc` must be these.


def _log(values: Float64) -> Float64:
    return np.array([math.log(value) for value in values.tolist()])


def _power(values: Float64, exponent: float) -> Float64:
    return np.array([math.pow(value, exponent) for value in values.tolist()])


def _trailing(timesteps: int, num_steps: int) -> Float64:
    t: Float64 = np.rint(timesteps - np.arange(num_steps) * (timesteps / num_steps)) - 1
    return t


def _end(config: ScheduleConfig, sampler: SamplerName, t: Float64, spacing: Spacing, lowest: float) -> float:
    """σ/α that the last step leads to: 0, the clean end; for DDIM `lowest`, that of t = 0, when configured so.

    diffusers' DDIM also ends there when the step below its last timestep is t = 0 (an offset and unit steps).
    """
    if sampler is not SamplerName.DDIM:
        return 0.0
    lands_on_first = spacing == "leading" and t[-1] == config.num_train_timesteps // len(t)
    return lowest if lands_on_first or not config.set_alpha_to_one else 0.0


def _betas(config: ScheduleConfig) -> NDArray[np.float32]:
    """β of every training timestep, float32 as diffusers makes them."""
    n = config.num_train_timesteps
    if config.beta_schedule == "linear":
        return _linspace(config.beta_start, config.beta_end, n)
    if config.beta_schedule == "scaled_linear":
        return _linspace(config.beta_start**0.5, config.beta_end**0.5, n) ** 2
    # Nichol and Dhariwal 2021 (arXiv 2102.09672), eq. 17.
    bar = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
    return np.array([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(n)], np.float32)


def _linspace(start: float, end: float, n: int) -> NDArray[np.float32]:
    """`torch.linspace` in float32, to the bit: each half counts from its own end with a fused multiply-add."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(n - 1))
    i = np.arange(n)
    return np.where(i < n // 2, first + step * i, last - step * (n - 1 - i)).astype(np.float32)


def _problem(levels: Float64) -> str | None:
    if not np.isfinite(levels).all():
        return "alphas_cumprod must be finite"
    if levels[0] >= 1 or levels[-1] <= 0 or (np.diff(levels) >= 0).any():
        return "alphas_cumprod must decrease strictly within (0, 1)"
    return None


def _levels(values: Any, where: str) -> Float64:
    """`values` as float64 [n], n >= 1."""
    if not isinstance(values, list) or not values or not all(type(value) in (int, float) for value in values):
        raise BundleError(f"{where}: expected a list of numbers")
    try:
        return np.array([float(value) for value in values])
    except OverflowError as error:
        raise BundleError(f"{where}: a number is too large") from error
