"""Several processes: each takes its part of a step, and together they are one."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tolerances import PROCESSES_ABS

from ddm_rt.config import RunConfig
from ddm_rt.errors import DdmError
from ddm_rt.train.distill import adversarial
from ddm_rt.train.distill.run import distill
from ddm_rt.train.distributed import ALONE, CPU, Processes
from ddm_rt.train.run import train


def launch(make: Callable[[Path], object], out: Path, count: int = 2) -> list[str]:
    """Make a run in `count` processes at once, with the environment that torchrun and accelerate give; what each
    raised.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Forked: importing torch and its friends anew would take longer than the rest.
    context = multiprocessing.get_context("fork")
    said = [out.with_name(f"{out.name}-{rank}.txt") for rank in range(count)]
    running = [
        context.Process(target=_process, args=(make, out, port, rank, count, path)) for rank, path in enumerate(said)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=300)
    assert [process.exitcode for process in running] == [0] * count
    return [path.read_text() for path in said]


def _process(make: Callable[[Path], object], out: Path, port: int, rank: int, count: int, said: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        make(out)
    except DdmError as error:
        said.write_text(str(error))
    else:
        said.write_text("")
    torch.distributed.destroy_process_group()


@pytest.mark.slow(reason="starts two processes that train")
def test_two_processes_train_the_weights_of_one(adapting: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = adapting("sd15", {"train.batch_size": 6, "train.steps": 5})
    one = load_file(train(config, tmp_path / "one") / "weights.safetensors")
    assert launch(partial(train, config), tmp_path / "two") == ["", ""]
    two = load_file(tmp_path / "two" / "weights.safetensors")
    assert max(value.abs().max().item() for name, value in one.items() if name.endswith(".B")) > 100 * PROCESSES_ABS
    assert_close(two, one)
    assert json.loads((tmp_path / "two" / "provenance.json").read_bytes())["processes"] == 2


@pytest.mark.slow(reason="starts two processes that train")
def test_two_processes_train_the_adversarial_student_of_one(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has whole pairs of images."""
    monkeypatch.setattr(adversarial, "_HEADS_FIRST", 2)
    fields = {"distill.paths": 40, "distill.phases": 2, "train.steps": 6, "train.batch_size": 8}
    make = partial(distill, tiny_run, fields=fields)
    one = load_file(make(tmp_path / "one") / "weights.safetensors")
    assert launch(make, tmp_path / "two") == ["", ""]
    assert_close(load_file(tmp_path / "two" / "weights.safetensors"), one)
    said = launch(partial(distill, tiny_run, fields=fields | {"train.batch_size": 6}), tmp_path / "odd")
    assert "is 6; expected a multiple of 4: each of 2 processes has whole pairs" in said[0]
    assert not (tmp_path / "odd").exists(), "the corrected command may go there"


def assert_close(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=PROCESSES_ABS, msg=name)


def test_bad_input_ends_every_process_and_leaves_nothing(adapting: Callable[..., RunConfig], tmp_path: Path) -> None:
    said = launch(partial(train, adapting("sd15", {"codes.micro_codes": 24})), tmp_path / "run")
    assert said[0] == "codes.micro_codes is 24, but there are only 24 images"
    assert said[1] == "the main process has stopped; it says why"
    assert not (tmp_path / "run").exists()


def test_a_step_is_shared_out_equally_or_refused() -> None:
    parts = [Processes(CPU, 3, index).part(12) for index in range(3)]
    assert [list(range(12))[part] for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(DdmError, match=r"train\.batch_size x train\.accumulate is 8; expected a multiple of 3"):
        Processes(CPU, 3, 0).part(8)


def test_alone_nothing_is_exchanged() -> None:
    tensor = torch.ones(2)
    ALONE.average([tensor])
    assert tensor.tolist() == [1, 1]
    assert ALONE.any(True)
    assert not ALONE.any(False)
    assert ALONE.main_first(lambda: 3) == 3
