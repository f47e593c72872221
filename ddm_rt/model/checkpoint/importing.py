"""A checkpoint, with an adapter merged into it or as it is, as a run: ready to be exported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddm_rt.config import BaseConfig, IndicatorMode, RunConfig, SamplerName, TrainConfig, parse
from ddm_rt.files import atomic_directory, write_json
from ddm_rt.model.checkpoint.adapter import AdapterReport, merge_adapter
from ddm_rt.model.checkpoint.folder import Checkpoint, load_base, read_checkpoint, save_checkpoint
from ddm_rt.model.latent import LatentDDM
from ddm_rt.progress import OnStage
from ddm_rt.runtime import Codes

PRESET = "imported"
BASE = "base"  # folder of the checkpoint in the run
_STAGES = ("reading", "merging", "writing", "hashing")


@dataclass(frozen=True)
class ImportReport:
    """What became of the checkpoint's parts that aren't taken over as they are."""

    adapter: AdapterReport | None
    sampler: SamplerName
    stands_for: str | None  # diffusers' scheduler, where `sampler` is its nearest but not its equal


def import_run(
    base: Path,
    out: Path,
    *,
    adapter: Path | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: OnStage | None = None,
) -> ImportReport:
    """Write the run `out`, whole or not at all: config.json, codes.json without codes, base/ in `dtype`.

    `adapter` is merged into base/, so that nothing of what was imported is needed later. Raises BundleError for a
    checkpoint or adapter that doesn't fit, DdmError where `out` is occupied.
    """

    def stage(number: int) -> None:
        if progress is not None:
            progress(number, len(_STAGES), (*_STAGES, "done")[number])

    with atomic_directory(out) as directory:
        stage(0)
        checkpoint = read_checkpoint(base, variant)
        with torch.device("meta"):
            model = LatentDDM(checkpoint.model)
        load_base(model, checkpoint, dtype)
        stage(1)
        merged = None if adapter is None else merge_adapter(model, adapter)
        stage(2)
        (directory / BASE).mkdir()
        save_checkpoint(model, checkpoint, directory / BASE, dtype)
        stage(3)
        written = read_checkpoint(directory / BASE)
        write_json(directory / "config.json", _config(written, base).model_dump(mode="json"))
        write_json(directory / "codes.json", Codes(origin="none").model_dump(mode="json"))
        write_json(directory / "provenance.json", _provenance(base, adapter, merged))
    stage(len(_STAGES))
    return ImportReport(merged, checkpoint.sampling.sampler, checkpoint.stands_for)


def _config(written: Checkpoint, source: Path) -> RunConfig:
    tree = {
        "preset": PRESET,
        "data": {"source": "none", "image_size": written.image_size, "channels": 3},
        "model": written.model,
        "schedule": written.schedule,
        "train": TrainConfig(indicator=IndicatorMode.NONE),
        "sampling": written.sampling,
        "base": BaseConfig(path=Path(BASE), sha256=written.base.sha256),
    }
    return parse(RunConfig, tree, source)


def _provenance(base: Path, adapter: Path | None, report: AdapterReport | None) -> dict[str, Any]:
    return {
        "base": base.resolve().name,
        "adapter": None if adapter is None else adapter.resolve().name,
        "merged_layers": len(report.merged) if report else 0,
        "unmatched": list(report.unmatched) if report else [],
    }
