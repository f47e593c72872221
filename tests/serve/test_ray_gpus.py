"""A replica for each GPU, on a Ray that counts 0, 1 or 8 of them as far as questions go: no run on a device."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import ray
from pydantic import ValidationError

from ddm_rt.errors import DdmError
from ddm_rt.serve import bulk, gpus
from ddm_rt.serve.cluster.deployment import check_backend, deployment_options, on_gpus
from ddm_rt.serve.settings import RaySettings, ServeSettings

THERE = (0, 1, 8)


@pytest.mark.parametrize("there", [1, 8])
@pytest.mark.parametrize("wanted", ["all", 1])
def test_ray_is_asked_for_a_whole_gpu_for_each_replica(wanted: Any, there: int) -> None:
    scale = on_gpus(RaySettings(gpus=wanted), there)
    options = deployment_options(ServeSettings(), scale)
    assert options["num_replicas"] == (there if wanted == "all" else 1)
    assert options["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 1}
    assert "autoscaling_config" not in options


@pytest.mark.parametrize("there", THERE)
def test_replicas_that_name_no_gpus_are_left_as_they_are(there: int) -> None:
    scale = RaySettings(replicas=3, gpus_per_replica=0.5)
    assert on_gpus(scale, there) == scale
    assert deployment_options(ServeSettings(), RaySettings(replicas=2))["ray_actor_options"]["num_gpus"] == 0


@pytest.mark.parametrize(
    ("wanted", "there", "said"),
    [
        (9, 8, "gpus is 9; Ray finds 8 free GPUs"),
        (2, 1, "gpus is 2; Ray finds 1 free GPU;"),
        ("all", 0, "gpus is all; Ray finds no free GPU"),
        (1, 0, "gpus is 1; Ray finds no free GPU"),
    ],
)
def test_gpus_that_are_not_there(wanted: Any, there: int, said: str) -> None:
    with pytest.raises(DdmError, match=said):
        on_gpus(RaySettings(gpus=wanted), there)


@pytest.mark.parametrize(
    "wrong",
    [{"gpus": 0}, {"gpus": "some"}, {"gpus": 1, "replicas": 2}, {"gpus": "all", "gpus_per_replica": 1}],
    ids=str,
)
def test_what_makes_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="gpus"):
        RaySettings(**wrong)


@pytest.mark.parametrize(
    ("ids", "visible", "device"),
    [
        ([], None, "cpu"),  # Ray leaves CUDA_VISIBLE_DEVICES alone where a process reserves no GPU,
        ([], "0,1", "cpu"),
        ([], "", "cpu"),  # or empties it, as it used to
        (["3"], "3", "cuda:0"),  # Ray shows a process its own
        (["3"], None, "cuda:3"),  # or was told to show all
        (["5"], "4,5,6", "cuda:1"),
        (["GPU-b"], "GPU-a,GPU-b", "cuda:1"),
        (["2", "3"], "2,3", "cuda:0"),
    ],
)
def test_a_process_computes_on_what_ray_gave_it(ids: list[str], visible: str | None, device: str) -> None:
    assert gpus.device_of(ids, visible) == device


@pytest.mark.parametrize(("ids", "visible"), [(["3"], "0,1"), (["GPU-b"], None), (["3"], "")])
def test_a_gpu_that_the_process_does_not_see_is_no_other(ids: list[str], visible: str | None) -> None:
    with pytest.raises(DdmError, match=r"Ray gave this process the GPU .* CUDA_VISIBLE_DEVICES"):
        gpus.device_of(ids, visible)


@pytest.mark.parametrize("hidden", [True, False])
def test_eight_replicas_take_eight_gpus(hidden: bool) -> None:
    devices = [gpus.device_of([str(i)], str(i) if hidden else None) for i in range(8)]
    assert devices == ["cuda:0"] * 8 if hidden else [f"cuda:{i}" for i in range(8)]


def test_what_a_process_was_given_is_asked_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        def get_accelerator_ids(self) -> dict[str, list[str]]:
            return {"GPU": ["1"], "TPU": []}

    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "0,1")
    assert gpus.own_device() == "cuda:1"
    assert gpus.own_place().startswith("cuda:1, GPU 1 of ")


@pytest.mark.slow(reason="starts Ray twice")
@pytest.mark.parametrize("hidden", [True, False])
def test_real_processes_of_ray_take_different_gpus(hidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is told of 8 GPUs that aren't there, and shows each process its own alone, or all of them."""
    if not hidden:
        monkeypatch.setenv("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    ray.init("local", num_cpus=4, num_gpus=8, object_store_memory=2**27, **quiet)
    try:
        assert gpus.count() == 8

        class Process:
            def where(self) -> tuple[str, list[str]]:
                return gpus.own_device(), gpus._own_ids()

        processes = [ray.remote(Process).options(num_cpus=0, num_gpus=share).remote() for share in (1, 1, 1, 0)]
        found: list[tuple[str, list[str]]] = ray.get([process.where.remote() for process in processes])
    finally:
        ray.shutdown()
    *on_gpu, on_cpu = found
    assert len({ids[0] for _, ids in on_gpu}) == 3
    assert [device for device, _ in on_gpu] == ["cuda:0" if hidden else f"cuda:{ids[0]}" for _, ids in on_gpu]
    assert on_cpu == ("cpu", [])


@pytest.mark.parametrize(
    ("backend", "share", "error"),
    [
        ("auto", 0, None),
        ("auto", 1, None),
        ("torch", 0, None),
        ("torch", 1, None),
        ("onnxruntime", 0, None),
        ("tensorrt", 1, None),
        ("tensorrt", 0, "the replicas reserve none; give --gpus"),
        ("openvino", 1, "backend openvino takes no GPU, and the replicas reserve some"),
    ],
)
def test_backends_and_gpus_that_do_not_go_together(backend: str, share: float, error: str | None) -> None:
    scale = RaySettings(replicas=2, gpus_per_replica=share)
    if error is None:
        check_backend(backend, scale)
    else:
        with pytest.raises(DdmError, match=error):
            check_backend(backend, scale)


@pytest.mark.parametrize(
    ("there", "workers", "pool"),
    [
        (1, None, (1, 1)),
        (8, None, (8, 1)),
        (8, 3, (3, 1)),
        (8, 16, (16, 0.5)),
        (1, 3, (3, 1 / 3)),
    ],
)
def test_shards_have_a_worker_for_each_gpu(
    there: int, workers: int | None, pool: tuple[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 8.0, "GPU": float(there)})
    assert bulk._on_gpus(workers) == {"size": pool[0], "num_gpus": pool[1]}


def test_shards_without_a_gpu_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 8.0})
    with pytest.raises(DdmError, match="takes a GPU, and Ray finds none"):
        bulk._on_gpus(None)


def test_a_worker_of_shards_loads_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    load: Callable[..., None] = lambda *given, **options: asked.append(options["device"])  # noqa: E731
    monkeypatch.setattr(bulk.Pipeline, "load", load)
    monkeypatch.setattr(bulk, "own_device", lambda: "cuda:5")
    worker = bulk._Worker.__new__(bulk._Worker)
    worker.__dict__ |= {"_bundle": None, "_manifest": type("Plan", (), {"backend": "torch", "threads": 1})}
    _ = worker._pipeline
    assert asked == ["cuda:5"]
