"""Step tables as files of a bundle, for programs that have no Python.

tables/SAMPLER-STEPS/table.json: `sampler`, `num_steps`, `init_scale`; `timesteps`, what the denoiser gets as t; and
`rows`, one for each step, whose numbers `columns` names (see `ddm_rt.schedule.StepTable` for what they do). Numbers are
float32. A limit that doesn't clip is the largest of them, since JSON has no infinity.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddm_rt.bundle import Bundle, add_directory
from ddm_rt.config import SamplerName, SamplingConfig
from ddm_rt.files import write_json
from ddm_rt.schedule import Schedule, StepTable, step_table

FOLDER, FILE = "tables", "table.json"
COLUMNS = ("a", "b", "c", "d", "e", "g", "f", "clip_min", "clip_max")


def make_tables(
    schedule: Schedule, sampling: SamplingConfig, wanted: Sequence[tuple[SamplerName, int]]
) -> tuple[StepTable, ...]:
    """The tables of these samplers and numbers of steps, with the bundle's own eta and clip.

    Raises DdmError for a number of steps that the schedule can't give.
    """
    return tuple(
        step_table(
            schedule,
            sampler,
            steps,
            eta=sampling.eta if sampler is SamplerName.DDIM else 0.0,
            clip=sampling.clip,
        )
        for sampler, steps in wanted
    )


def add_tables(bundle: Bundle, tables: Sequence[StepTable]) -> Bundle:
    """The bundle with these tables in it; its id stays."""
    for table in tables:
        name = f"{table.sampler.value.replace('+', 'p')}-{table.num_steps}"

        def fill(folder: Path, table: StepTable = table) -> None:
            write_json(folder / FILE, tree_of(table))

        bundle = add_directory(bundle, f"{FOLDER}/{name}", fill)
    return bundle


def tree_of(table: StepTable) -> dict[str, object]:
    most = np.finfo(np.float32).max
    return {
        "schema": 1,
        "sampler": table.sampler.value,
        "num_steps": table.num_steps,
        "init_scale": float(np.float32(table.init_scale)),
        "timesteps": table.timesteps.tolist(),
        "columns": list(COLUMNS),
        "rows": np.clip(table.rows(), -most, most).tolist(),
    }
