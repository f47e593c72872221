"""Bundles of format 1, as version 0.1.0 wrote them. Only tests write them; `tests/goldens` holds some of its own."""

import json
import shutil
from pathlib import Path
from typing import Any

from ddm_rt.bundle import INDEX, Bundle, FileEntry, Index, bundle_id
from ddm_rt.config import ScheduleConfig
from ddm_rt.files import sha256
from ddm_rt.runtime import FORMAT_1, RUNTIME, TRAINING
from ddm_rt.schedule import Schedule

_LATER = ("timestep_spacing", "steps_offset", "set_alpha_to_one")  # left out at their defaults


def schedule_json(schedule: Schedule) -> str:
    """schedule.json."""
    tree = {"schema_version": 1} | schedule.config.model_dump(mode="json")
    for name in _LATER:
        if tree[name] == ScheduleConfig.model_fields[name].default:
            del tree[name]
    return json.dumps(tree | {"alphas_cumprod": schedule.alphas_cumprod.tolist()}) + "\n"


def write_format_1(bundle: Bundle, out: Path, **changes: Any) -> Bundle:
    """A bundle of format 1 that says the same as `bundle`, of format 2; `changes` are fields of its config.json."""
    out.mkdir(parents=True)
    for name in set(bundle.index.files) - {RUNTIME, TRAINING}:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, out / name)
    training = json.loads((bundle.path / TRAINING).read_bytes())
    config = bundle.config.model_dump(mode="json", exclude={"takes_negative_prompt", "codes"})
    counts = {"num_codes": bundle.codes.num_codes, "num_top_codes": bundle.codes.num_top_codes}
    provenance = {"model": training["model"], "run": training["run"]}
    codes = {**training["discovery"], "leaves": bundle.codes.model_dump(mode="json")["leaves"]}
    contents = (
        json.dumps({"schema_version": 1, **config, **counts, **provenance, **changes}, indent=1),
        schedule_json(bundle.schedule),
        json.dumps(codes, indent=1),
    )
    for name, content in zip(FORMAT_1, contents, strict=True):
        (out / name).write_text(content)
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    files = {
        path.relative_to(out).as_posix(): FileEntry(sha256=sha256(path), bytes=path.stat().st_size) for path in paths
    }
    index = Index(schema_version=1, bundle_id=bundle_id(files), files=files, provenance=bundle.index.provenance)
    (out / INDEX).write_text(json.dumps(index.model_dump(mode="json", exclude={"former_ids"}), indent=1))
    return Bundle.load(out)
