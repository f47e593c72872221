"""What training does on a CUDA device, as far as a machine without one can show it: what it computes in, that the run
says so, that convolutions get channels-last tensors, and that the forward compiles in one piece. No run on a device.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from tolerances import CHECKPOINTING_REL
from torch import Tensor, nn

from ddm_rt.config import Precision, RunConfig, parse_json
from ddm_rt.errors import DdmError
from ddm_rt.model.checkpoint.folder import read_checkpoint
from ddm_rt.model.latent import LatentDDM
from ddm_rt.model.unet import DDM, keep_channels_last
from ddm_rt.presets import resolve
from ddm_rt.train import loop, pixels, run
from ddm_rt.train.checkpoint import model as checkpoint_model
from ddm_rt.train.distributed import CPU, in_channels_last
from ddm_rt.train.loop import Trainer
from ddm_rt.train.run import Interrupted, device_fields, prepare
from ddm_rt.workflows import train as workflow

CUDA = torch.device("cuda")
SHARED_OF = ((0,), (0,), (1,), (1,))
Make = Callable[..., RunConfig]


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device with bf16, triton and a C compiler, as far as questions go."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(run, "find_spec", lambda name: name)
    monkeypatch.setattr(run.shutil, "which", lambda name: name)


@pytest.mark.usefixtures("a_gpu")
def test_a_new_run_computes_in_what_its_device_is_fast_in(tmp_path: Path) -> None:
    assert device_fields(tmp_path, CUDA) == {"train.precision": "bf16", "train.compile": True}
    assert device_fields(tmp_path, CUDA, pixels=True) == {"train.precision": "bf16"}
    assert device_fields(tmp_path, CPU) == {}


def test_what_the_device_lacks_is_not_asked_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(run, "find_spec", lambda name: name)
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    assert device_fields(tmp_path, CUDA) == {}
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    monkeypatch.setattr(run.shutil, "which", lambda name: name)
    assert device_fields(tmp_path, CUDA) == {}


@pytest.mark.usefixtures("a_gpu")
def test_a_run_keeps_what_it_was_begun_in_wherever_it_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[RunConfig] = []

    def stopped(config: RunConfig, out: Path, **options: Any) -> Path:
        run._claim(config, out)
        begun.append(config)
        raise Interrupted(out, 1)

    def train(device: torch.device, fields: dict[str, Any]) -> RunConfig:
        monkeypatch.setattr(workflow, "chosen_device", lambda: device)
        with pytest.raises(Interrupted):
            workflow.train(tmp_path / "run", {"data.source": str(folder)} | fields, preset="tiny")
        return begun[-1]

    monkeypatch.setattr(workflow.run, "train", stopped)
    assert train(CUDA, {}).train.precision is Precision.BF16
    recorded = parse_json(RunConfig, (tmp_path / "run" / "config.json").read_bytes(), "config.json")
    assert recorded.train.precision is Precision.BF16
    assert train(CPU, {}) == recorded
    with pytest.raises(DdmError, match=r"field train\.precision differs from this command; choose another --out"):
        train(CPU, {"train.precision": "fp32"})


def test_a_run_on_the_cpu_has_the_file_that_it_had_before() -> None:
    text = resolve("tiny").model_dump_json()
    assert '"precision":"fp32"' in text
    assert "compile" not in text
    assert '"compile":true' in resolve("tiny", {"train.compile": True}).model_dump_json()


def test_half_precision_on_a_cuda_device_is_channels_last() -> None:
    found = {(d.type, p.value) for d in (CPU, CUDA) for p in Precision if in_channels_last(d, p)}
    assert found == {("cuda", "bf16"), ("cuda", "fp16")}


def unlike_channels_last(model: nn.Module, pass_once: Callable[[], object]) -> list[str]:
    """Convolutions of the model that get something else in this pass, and those whose weights are something else."""
    found = []

    def look(name: str, given: torch.Tensor) -> None:
        if not given.is_contiguous(memory_format=torch.channels_last):
            found.append(name)

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            look(f"{name}.weight", module.weight)
            # Behind the hooks that are there: what the convolution itself gets.
            module.register_forward_pre_hook(lambda _, given, name=name: look(name, given[0]))
    pass_once()
    return found


@pytest.mark.parametrize("family", ["pixel", "sd15", "sdxl"])
def test_every_convolution_gets_channels_last(family: str, checkpoints: Mapping[str, Path]) -> None:
    if family == "pixel":
        config = resolve("tiny")
        shape = config.model.latent_shape(config.data)
        model: DDM | LatentDDM = DDM(config.model, shape, SHARED_OF)
    else:
        model = LatentDDM(read_checkpoint(checkpoints[family]).model, SHARED_OF)
        side = model.unet.config.sample_size
        shape = (4, side, side)
    added = None
    if model.added_names:
        pooled = model.text_encoders[-1].config.projection_dim  # type: ignore[union-attr]
        added = {"text_embeds": torch.randn(2, pooled), "time_ids": torch.zeros(2, 6)}
    keep_channels_last(model.unet)
    cond = model.condition(torch.randn(2, 7, model.context_dim), torch.tensor([0, 3]), torch.ones(2), added)
    x_t, t = torch.randn(2, *shape), torch.tensor([1.0, 900.0])
    assert unlike_channels_last(model.unet, lambda: model(x_t, t, cond).sum().backward()) == []


@pytest.fixture
def channels_last_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subjects are laid out as on a CUDA device in half precision."""
    for module in (pixels, checkpoint_model):
        monkeypatch.setattr(module, "in_channels_last", lambda device, precision: True)


@pytest.mark.usefixtures("channels_last_here")
def test_a_checkpoint_of_tensors_in_that_layout_loses_nothing(tiny: Make, tmp_path: Path) -> None:
    def trainer() -> Trainer:
        config = tiny()
        return Trainer(config, prepare(config, out, CPU, {}))

    out = tmp_path / "run"
    out.mkdir()
    straight = trainer()
    losses = [straight.advance() for _ in range(4)]
    stopped = trainer()
    assert [stopped.advance() for _ in range(2)] == losses[:2]
    resumed = trainer()
    resumed.load_checkpoint(stopped.save_checkpoint(tmp_path, "digest"), "digest")
    layouts = {
        (parameter.stride(), state.stride())
        for parameter in resumed.parameters
        for state in resumed.optimizer.state[parameter].values()
        if state.shape == parameter.shape
    }
    assert all(own == of_state for own, of_state in layouts), "a fused optimizer wants one layout"
    assert any(parameter.dim() == 4 and not parameter.is_contiguous() for parameter in resumed.trained)
    assert [resumed.advance() for _ in range(2)] == losses[2:]
    assert all(tensor.is_contiguous() for tensor in resumed.weights().values())


def losses_of(configs: Sequence[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Two steps of each. What is compiled is traced in one piece or refused, and then done step by step."""
    compile_ = torch.compile
    monkeypatch.setattr(loop.torch, "compile", lambda model, **options: compile_(model, backend="aot_eager", **options))
    found = []
    for number, config in enumerate(configs):
        out = tmp_path / str(number)
        out.mkdir()
        trainer = Trainer(config, prepare(config, out, CPU, {}))
        assert (trainer.passed is not trainer.model) == config.train.compile
        found.append([trainer.advance() for _ in range(2)])
        assert not isinstance(trainer.passed, loop.Compiled) or trainer.passed.compiled
    return found


def test_training_goes_on_where_torch_can_not_compile(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> NoReturn:
        raise RuntimeError("no C++ compiler is there")

    compile_ = torch.compile
    monkeypatch.setattr(loop.torch, "compile", lambda model, **options: compile_(model, backend=refuse, **options))
    config = tiny({"train.compile": True})
    trainer = Trainer(config, prepare(config, tmp_path, CPU, {}))
    assert all(math.isfinite(trainer.advance()) for _ in range(2))
    (said,) = [record.getMessage() for record in caplog.records if "torch.compile" in record.getMessage()]
    assert "training goes on without torch.compile" in said
    assert "no C++ compiler is there" in said


@pytest.mark.slow(reason="traces a network forwards and backwards: 40 s")
@pytest.mark.usefixtures("channels_last_here")
def test_the_pass_compiles_in_one_piece(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compiled = losses_of([tiny({"train.compile": on}) for on in (False, True)], tmp_path, monkeypatch)
    assert compiled == pytest.approx(plain, rel=CHECKPOINTING_REL)


@pytest.mark.slow(reason="as above, with larger networks")
@pytest.mark.usefixtures("channels_last_here")
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_pass_on_a_checkpoint_compiles_in_one_piece(
    family: str, adapting: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With factors, codes and recomputed activations."""
    more = {"train.gradient_checkpointing": True, "train.batch_size": 2}
    configs = [adapting(family, more | {"train.compile": compiled}) for compiled in (False, True)]
    plain, compiled = losses_of(configs, tmp_path, monkeypatch)
    assert compiled == pytest.approx(plain, rel=CHECKPOINTING_REL)
