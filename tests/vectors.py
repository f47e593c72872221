"""Golden vectors: what Python makes of seeds, schedules, quotas, targets and manifests, for a reader in any language.

    python tests/vectors.py    # writes tests/vectors.json again

Each vector is {"op", "asked", "want"}. Only what every machine computes to the same bit is in it: tables without
logarithms, sums and quotients, no noise. `tests/csrc/core_probe.cpp` answers the same questions.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ddm_rt.config import PredictionType, SamplerName, ScheduleConfig, parse, parse_json
from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.assignment import shuffled
from ddm_rt.sample.balance.leave_alone import names_one
from ddm_rt.sample.balance.quota import Quota, TreeQuota, parse_target
from ddm_rt.sample.cache.reuse import Reuse
from ddm_rt.sample.calibration import groups
from ddm_rt.sample.loop.annealing import kept_tokens
from ddm_rt.sample.loop.guidance import guided_steps
from ddm_rt.sample.loop.noise import derive
from ddm_rt.sample.manifest import ImageRecord, Manifest
from ddm_rt.sample.request import ResolvedRequest
from ddm_rt.schedule import Schedule, StepTable, step_table

VECTORS = Path(__file__).with_name("vectors.json")
COLUMNS = ("t", "a", "b", "c", "d", "e", "g", "f", "clip_min", "clip_max", "guided", "kept")
Json = dict[str, Any]
CACHE: Json = {
    "steps": (0, 3, 4, 9),
    "rows": ((1 / 3, 0.7, 0.0, -1e-9), (1e6, -1e6, 0.1, 3), (0, 1, 0, 0), (-0.0,) * 4),
}


def digest(table: StepTable) -> Json:
    """The table's bytes, hashed: its columns in float64, the timesteps and the rows in float32."""
    arrays = [*(getattr(table, name) for name in COLUMNS), table.timesteps, table.rows()]
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return {"init_scale": table.init_scale, "sha256": hashlib.sha256(content).hexdigest()}


def full_table(
    schedule: Schedule,
    sampler: str,
    num_steps: int,
    guidance_interval: Any = None,
    noise_times: Any = None,
    cache: Any = None,
    **rest: Any,
) -> StepTable:
    """A step table with the columns that a request's options add."""
    table = step_table(schedule, SamplerName(sampler), num_steps, **rest)
    guided = guided_steps(num_steps, guidance_interval)
    table = replace(table, guided=guided, kept=kept_tokens(table.t / schedule.config.num_train_timesteps, noise_times))
    return table if cache is None else parse(Reuse, cache, "cache").of(table)


def tables(schedule: str, tables: list[Json]) -> list[Json]:
    opened = Schedule.from_json(schedule.encode(), Path("schedule"))
    return [digest(full_table(opened, **case | {"eta": float(case.get("eta", "0"))})) for case in tables]


def quota(weights: list[float], n: int) -> Json:
    made = Quota(weights)
    draws = made.assign(n)
    return {"weights": made.weights, "draws": draws, "counts": made.counts}


def tree(tops: list[float], leaves: list[list[tuple[int, float]]], n: int) -> Json:
    made = TreeQuota(tops, [dict(branch) for branch in leaves])
    draws = [code for code, _ in made.assign(n)]
    return {"draws": draws, "counts": [list(pair) for pair in made.counts.items()]}


def group_target(target: str, attributes: dict[str, list[str]]) -> list[Any]:
    known = groups.check([groups.Attribute(name=n, groups=tuple(of)) for n, of in attributes.items()], "attributes")
    return [[str(part), list(part.shares)] for part in groups.parse_target(target, known)]


ANSWERS: dict[str, Callable[..., Any]] = {
    "seeds": lambda seed, indices: [derive(seed, index) for index in indices],
    "order": shuffled,
    "tables": tables,
    "quota": quota,
    "tree": tree,
    "target": lambda target, tops: list(parse_target(target, tops)),
    "group_target": group_target,
    "manifest": lambda content: json.dumps(parse_json(Manifest, content, "manifest").tree(), indent=1) + "\n",
    "leave_alone": lambda prompt, words: names_one(prompt, words),
}


def answer(op: str, asked: Json) -> Any:
    """What Python says, as JSON has it: for what is refused, {"error": its words}."""
    try:
        return json.loads(json.dumps(ANSWERS[op](**asked)))
    except DdmError as error:
        return {"error": str(error)}


def _shares(rng: random.Random, n: int) -> list[float]:
    raw = [rng.random() for _ in range(n)]
    return [share / sum(raw) for share in raw]


def _manifests() -> Iterator[str]:
    settings: Json = {"height": 16, "width": 8, "indicator_guidance_scale": 1.5, "indicator_scale": 1.0, "eta": 0.0}
    rest: Json = {"sampler": SamplerName.DPMPP_2M, "num_steps": 7, "backend": "onnxruntime", "precision": "fp32"}
    rest |= {"threads": 2, "versions": {"ddm_rt": "0", "onnxruntime": "1"}, "bundle_id": "0f" * 32}
    for request, images, more in (
        (
            {"n": 1, "clip": (-1, 1), "cache": CACHE},
            ({"file": "00000.png", "code": -1, "top_code": -1},),
            {"target": None},
        ),
        (
            {
                "n": 2,
                "prompt": ("a nurse", "\u533b\u751f \u00e9\U0001f600"),
                "guidance_scale": 7.5,
                "clip": None,
                "scope": "s",
            }
            | {"negative_prompt": "", "shuffle": True, "provenance": True, "cads": (0.1, 0.6, 0.9), "apg": (2.5, 0.0)},
            (
                {"file": "00000.png", "code": 3, "top_code": 1, "position": 5, "prompt": "a nurse"},
                {
                    "file": "00001.png",
                    "code": 0,
                    "top_code": 0,
                    "position": 6,
                    "prompt": "\u533b\u751f \u00e9\U0001f600",
                },
            ),
            {"target": "code:0=0.1,code:1=0.9", "calibration_id": "ab" * 32, "bucket": 4},
        ),
    ):
        resolved = ResolvedRequest(seed=2**64 - 1, balance="auto", **settings, **request)
        records = tuple(ImageRecord(seed=derive(2**64 - 1, i), **image) for i, image in enumerate(images))
        yield json.dumps(Manifest(request=resolved, images=records, **rest, **more).tree())


def questions() -> Iterator[tuple[str, Json]]:
    rng = random.Random(0)
    for seed in (0, 1, 2**32, 2**64 - 1, *(rng.getrandbits(64) for _ in range(4))):
        yield "seeds", {"seed": seed, "indices": [0, 1, 2, 1000, 2**32 - 1]}
        yield "order", {"seed": seed, "n": 17}
    for kind in PredictionType:
        config = ScheduleConfig(num_train_timesteps=60, prediction_type=kind)
        stored = {
            "schema_version": 1,
            **config.model_dump(),
            "alphas_cumprod": list(Schedule.from_config(config).alphas_cumprod),
        }
        cases = [
            {"sampler": sampler, "num_steps": n} for sampler in ("ddpm", "ddim", "euler", "lcm") for n in (1, 3, 10, 50)
        ]
        cases += [{"sampler": "ddim", "num_steps": 25, "eta": "0.3", "clip": (-1.0, 1.0)}]
        options = {"guidance_interval": (0.2, 0.8), "noise_times": (0.6, 0.9)}
        cases += [
            {"sampler": "ddim", "num_steps": 10, **options},
            {"sampler": "euler", "num_steps": 10, "cache": CACHE},
        ]
        cases += [
            {"sampler": "ddim", "num_steps": 10, "clip": (-1.0, 1.0), "cache": CACHE, "guidance_interval": (0.2, 0.8)}
        ]
        yield "tables", {"schedule": json.dumps(stored), "tables": cases}
    for weights in ([1.0], [0.5, 0.5], [1 / 3] * 3, [0.0, 1.0], [5e-324, 1.0], *(_shares(rng, n) for n in (2, 5, 16))):
        yield "quota", {"weights": weights, "n": 100}
    for branches in ((2, 1, 3), (8, 8), (1,)):
        codes = iter(range(sum(branches)))
        leaves = [[(next(codes), share) for share in _shares(rng, n)] for n in branches]
        yield "tree", {"tops": _shares(rng, len(branches)), "leaves": leaves, "n": 100}
    for target in (
        "uniform",
        "code:0=.3, code:2=0.7",
        "code:0=1",
        "code:1=5e-1,code:0=.5",
        "code:9=1",
        "code:0=.5",
        "x",
    ):
        yield "target", {"target": target, "tops": 3}
    known = {"gender": ["female", "male"], "race": ["asian", "black", "white"]}
    for target in ("male=.3, female=0.7", "race:white=.5,asian=.5;male=1", "asian&male=.25,female&race:white=.75",
                   "race&gender:uniform", "female=.5,male=.6", "gender:asian=1", "white=1"):  # fmt: skip
        yield "group_target", {"target": target, "attributes": known}
    for content in _manifests():
        yield "manifest", {"content": content}
    for prompt in (
        "A Woman at work",
        "womanly",
        "a \uff37\uff2f\uff2d\uff21\uff2e",
        "the man's hat",
        "stra\u00dfe",
        "",
    ):
        yield "leave_alone", {"prompt": prompt, "words": ["woman", "man", "STRASSE", "at  work"]}


if __name__ == "__main__":
    made = [{"op": op, "asked": asked, "want": answer(op, json.loads(json.dumps(asked)))} for op, asked in questions()]
    VECTORS.write_text("[\n" + ",\n".join(map(json.dumps, made)) + "\n]\n")
