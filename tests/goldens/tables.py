"""Step tables and schedules, as digests of their float64 numbers; some whole, so that a difference can be read.

Their logarithms and powers are the C library's. glibc's differ in the last place on a processor without fused
multiply-adds: there 38 columns of these 1,944 tables are others in float64, and none is in float32.
"""

import hashlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from goldens import changed

from ddm_rt.config import PredictionType, SamplerName, ScheduleConfig
from ddm_rt.errors import DdmError
from ddm_rt.schedule import SPACINGS, Schedule, Spacing, StepTable, step_table

NUM_STEPS = (1, 2, 3, 7, 20, 50)
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
_COLUMNS = ("t", "a", "b", "c", "d", "e", "g", "f", "clip_min", "clip_max")
_WHOLE = "scaled_linear/epsilon/", 3  # these tables stand whole, at so many steps


def tables() -> dict[str, Any]:
    """`digests`: name -> one for each of `NUM_STEPS`; `whole`: name -> its columns; `schedules`: beta -> its digest."""
    digests: dict[str, list[str]] = {}
    whole: dict[str, dict[str, Any]] = {}
    for name, schedule, sampler, spacing, options in _cases():
        digests[name] = []
        for num_steps in NUM_STEPS:
            try:
                made = step_table(schedule, sampler, num_steps, spacing=spacing, **options)
            except DdmError as error:
                digests[name].append(f"refused: {error}")
                continue
            columns = _compared(name, made)
            numbers = np.concatenate([np.atleast_1d(column) for column in columns.values()])
            digests[name].append(_digest(numbers))
            if name.startswith(_WHOLE[0]) and num_steps == _WHOLE[1]:
                whole[name] = {key: _plain(column) for key, column in columns.items()}
    levels = {beta: _schedule(beta).alphas_cumprod for beta in BETAS}
    return {"digests": digests, "whole": whole, "schedules": {beta: _digest(values) for beta, values in levels.items()}}


def _cases() -> Iterator[tuple[str, Schedule, SamplerName, Spacing, dict[str, Any]]]:
    for beta in BETAS:
        for kind in PredictionType:
            plain = _schedule(beta, prediction_type=kind)
            offset = _schedule(beta, prediction_type=kind, steps_offset=1)
            early = _schedule(beta, prediction_type=kind, set_alpha_to_one=False)
            for sampler, spacings in SPACINGS.items():
                for spacing in spacings:
                    name = f"{beta}/{kind}/{sampler}/{spacing}"
                    yield name, plain, sampler, spacing, {}
                    yield f"{name} clip=1", plain, sampler, spacing, {"clip": (-1.0, 1.0)}
                    if spacing == "leading":
                        yield f"{name} steps_offset=1", offset, sampler, spacing, {}
                    if sampler is SamplerName.DDIM:
                        yield f"{name} set_alpha_to_one=false", early, sampler, spacing, {}
                        yield f"{name} eta=0.5", plain, sampler, spacing, {"eta": 0.5}
                        yield f"{name} eta=1", plain, sampler, spacing, {"eta": 1.0}


def _schedule(beta: str, **more: Any) -> Schedule:
    scaled = {"beta_start": 0.00085, "beta_end": 0.012} if beta == "scaled_linear" else {}
    return Schedule.from_config(ScheduleConfig(beta_schedule=beta, **scaled, **more))


def _compared(name: str, table: StepTable) -> dict[str, Any]:
    """The columns, but for one that was changed on purpose."""
    left_out = {column for pattern, (column, _) in changed.TABLES.items() if fnmatchcase(name.split()[0], pattern)}
    columns = {"init_scale": np.float64(table.init_scale)} | {key: getattr(table, key) for key in _COLUMNS}
    return {key: column for key, column in columns.items() if key not in left_out}


def _digest(numbers: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(numbers, "<f8").tobytes()).hexdigest()[:16]


def _plain(column: Any) -> Any:
    """With infinities as text: JSON has none."""
    return [value if np.isfinite(value) else str(value) for value in np.atleast_1d(column).tolist()]
