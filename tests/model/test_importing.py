"""Importing: a run that needs nothing but itself, whole or not at all."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import adapters
import pytest
import torch
from tolerances import ADAPTER_ABS

from ddm_rt.config import IndicatorMode, RunConfig, SamplerName, parse_json
from ddm_rt.errors import DdmError
from ddm_rt.model.assemble import assemble
from ddm_rt.model.checkpoint.folder import component_module, read_checkpoint
from ddm_rt.model.checkpoint.importing import import_run
from ddm_rt.model.latent import LatentDDM
from ddm_rt.runtime import Codes

ENCODERS = {"sd15": ("text_encoder",), "sd21": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}

_SLOW = pytest.mark.slow(reason="other weights; that XL's names are read is quick in test_checkpoint")
FAMILIES = ("sd15", pytest.param("sd21", marks=_SLOW), pytest.param("sdxl", marks=_SLOW))
STEPS = 6


def opened(run: Path, dtype: torch.dtype = torch.float32) -> tuple[RunConfig, LatentDDM]:
    config = parse_json(RunConfig, (run / "config.json").read_bytes(), run)
    codes = parse_json(Codes, (run / "codes.json").read_bytes(), run)
    assert (codes.origin, codes.num_codes) == ("none", 0)
    model = assemble(run, config, codes, dtype)
    assert isinstance(model, LatentDDM)
    return config, model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_checkpoint(checkpoints: Mapping[str, Path], tmp_path: Path, family: str) -> None:
    stages: list[tuple[int, int, str]] = []
    report = import_run(checkpoints[family], tmp_path / "run", progress=lambda *stage: stages.append(stage))
    assert report.adapter is None
    assert stages == [(i, 4, name) for i, name in enumerate(("reading", "merging", "writing", "hashing", "done"))]
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")
    config, model = opened(moved)
    source = read_checkpoint(checkpoints[family])
    assert config.model == source.model
    assert (config.schedule, config.sampling) == (source.schedule, source.sampling)
    assert config.train.indicator is IndicatorMode.NONE
    assert config.base is not None
    assert config.base.path == Path("base")

    theirs, again = adapters.pipeline(checkpoints[family]), adapters.pipeline(moved / "base")
    assert type(again) is type(theirs)
    assert again.scheduler.config == theirs.scheduler.config
    for name in ("unet", "vae", *ENCODERS[family]):
        want = getattr(theirs, name).state_dict()
        for found in (component_module(model, name).state_dict(), getattr(again, name).state_dict()):
            assert found.keys() == want.keys()
            assert all(torch.equal(found[key], tensor) for key, tensor in want.items()), name
    ids, ours = adapters.token_ids(theirs, family), adapters.token_ids(again, family)
    assert all(torch.equal(a, b) for a, b in zip(ids, ours, strict=True))
    for path in moved.rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044, f"{path} can be read by others"


def test_an_adapter_is_in_the_runs_own_base(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    """So diffusers makes peft's latents from it, and neither the adapter nor the checkpoint is needed any more."""
    base = Path(shutil.copytree(checkpoints["sd15"], tmp_path / "checkpoint"))
    folder = adapters.write_peft(base, tmp_path / "adapter", encoders=("text_encoder",), safe=False)
    want = adapters.latents(adapters.with_peft(base, folder), STEPS)
    report = import_run(base, tmp_path / "run", adapter=folder)
    shutil.rmtree(base)
    shutil.rmtree(folder)
    assert report.adapter is not None
    assert report.adapter.unmatched == ("unet: query", "unet: value")
    pipe = adapters.pipeline(tmp_path / "run" / "base")
    torch.testing.assert_close(adapters.latents(pipe, STEPS), want, rtol=0, atol=ADAPTER_ABS)
    adapters.put_networks(pipe, opened(tmp_path / "run")[1])
    torch.testing.assert_close(adapters.latents(pipe, STEPS), want, rtol=0, atol=ADAPTER_ABS)
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance == {
        "base": "checkpoint",
        "adapter": "adapter",
        "merged_layers": len(report.adapter.merged),
        "unmatched": ["unet: query", "unet: value"],
    }


def test_half_precision(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    import_run(checkpoints["sd15"], tmp_path / "run", dtype=torch.float16)
    _, model = opened(tmp_path / "run", torch.float16)
    want = adapters.pipeline(checkpoints["sd15"]).unet.state_dict()
    assert all(torch.equal(want[name].half(), tensor) for name, tensor in model.unet.state_dict().items())
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run/base" / name).stat().st_size < 0.6 * (checkpoints["sd15"] / name).stat().st_size


def test_a_scheduler_without_an_equal_is_told(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(checkpoints["sd15"], tmp_path / "base"))
    path = base / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}))
    report = import_run(base, tmp_path / "run")
    assert (report.sampler, report.stands_for) == (SamplerName.DDIM, "PNDMScheduler")


def refused(tmp_path: Path, base: Path, out: Path, adapter: Path | None = None) -> str:
    """The message; and nothing at or beside `out` has changed."""
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(DdmError) as error:
        import_run(base, out, adapter=adapter)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    return str(error.value)


def test_nothing_is_left_of_an_import_that_fails_late(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    adapter = adapters.write_peft(checkpoints["sdxl"], tmp_path / "adapter")
    assert "the adapter is for another base" in refused(tmp_path, checkpoints["sd15"], tmp_path / "run", adapter)
    base = Path(shutil.copytree(checkpoints["sd15"], tmp_path / "base"))
    path = base / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    assert "vae/diffusion_pytorch_model.safetensors: not a readable" in refused(tmp_path, base, tmp_path / "run")


def test_an_image_size_that_the_levels_do_not_divide(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(checkpoints["sd15"], tmp_path / "base"))
    path = base / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 9}))
    said = refused(tmp_path, base, tmp_path / "run")
    assert said.startswith(f"{base}: ")
    assert "data.image_size is 72; this model needs a multiple of 16" in said


def test_an_occupied_place(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    assert "exists and is not an empty directory" in refused(tmp_path, checkpoints["sd15"], tmp_path / "run")
