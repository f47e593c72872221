"""Many images, by Ray Data: the shards of one request, made by a pool of workers with a pipeline each.

They are planned here, made there, and recorded here in the directory's manifest. Ray starts a worker that died again,
and has its shard made anew.
"""

import logging
import math
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import RayTaskError

from ddm_rt.bundle import Bundle
from ddm_rt.config import Backend, parse_json
from ddm_rt.engine.contract import usable_cores
from ddm_rt.errors import DdmError
from ddm_rt.sample.loop.tokenizers import Tokenizers
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.sample.shard_formats import ShardFormat
from ddm_rt.sample.shard_places import Place, place_of
from ddm_rt.sample.shards import (
    Shard,
    ShardDirectory,
    ShardManifest,
    ShardPlan,
    plan_shards,
    recorded_manifest,
    write_shard,
)
from ddm_rt.serve.gpus import count, own_device

SHARD_SIZE = 1000  # images

# Of one worker, in bytes: Python with its libraries, and for each byte of a graph what weights and their use take.
_PROCESS_MEMORY = 2**29
_MEMORY_PER_BYTE = 4
_OBJECT_STORE = 100 * 2**20  # bytes; images don't go through it

OnImages = Callable[[int, int, int], object]
Row = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """What a run left in its directory."""

    manifest: ShardManifest
    found: int  # images that were there when it began


def generate_shards(
    bundle: str | Path | Bundle,
    directory: str | Path,
    *,
    shard_size: int = SHARD_SIZE,
    shard_format: ShardFormat = ShardFormat.WEBDATASET,
    workers: int | None = None,
    backend: str = Backend.AUTO,
    threads: int | None = None,
    on_images: OnImages | None = None,
    request: Request | None = None,
    **fields: Any,
) -> Made:
    """The images of `request`, or of `Request(**fields)`, as shards in `directory`, but those that it holds. The
    request has no scope. `directory` may be `s3://BUCKET/PREFIX`.

    Image i has the bytes that `Pipeline.generate` gives it on the same backend and threads, whichever worker makes it.
    `workers` None takes as many as cores and memory allow, or one for each GPU. `threads` are those of each worker;
    None takes those that `directory` was begun with, or shares out the cores. A local Ray is started, unless
    RAY_ADDRESS names a cluster: its machines then need the bundle and the directory under the same paths.

    `on_images` is told the images that there are, those that were found, and all. Raises DdmError for an argument that
    doesn't fit, for a directory that was begun with other settings, and for what stops a worker; whole shards stay.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    place = place_of(directory)
    if workers is not None and workers < 1:
        raise DdmError(f"workers is {workers}; expected at least 1")
    begun = recorded_manifest(place)
    if threads is None and begun is not None:
        threads = begun.threads  # bytes depend on them
    cores = usable_cores()
    fitting = workers or _fitting(bundle, cores // (threads or 1))
    pipeline = Pipeline.load(bundle, backend, threads or max(cores // fitting, 1))
    plan = plan_shards(pipeline, shard_size, shard_format, replace(request or Request(), **fields), begun)
    on_gpu = "cuda" in pipeline.engine.versions
    del pipeline  # a worker may need its memory
    _warn_of_long_prompts(bundle, plan.manifest)

    total = plan.manifest.request.n
    with ShardDirectory.open(place, plan.manifest) as shards:
        found, missing = shards.images_done, shards.missing()
        tell: OnImages = on_images or (lambda *figures: None)
        tell(found, found, total)
        if missing:
            started: dict[int, int] = {}  # images so far, of shards that aren't whole
            with _ray(fitting * plan.manifest.threads):
                pool = _on_gpus(workers) if on_gpu else {"size": fitting, "num_gpus": 0}
                for number, made in _make(bundle, str(place), plan, missing, **pool):
                    if isinstance(made, Shard):
                        shards.add(made)
                        started.pop(number, None)
                    else:
                        started[number] = made
                    tell(shards.images_done + sum(started.values()), found, total)
        return Made(shards.manifest, found)


class _Worker:
    """A pipeline in a process of Ray's, which makes the shards of one plan."""

    def __init__(self, bundle: Path, directory: str, manifest: str) -> None:
        self._bundle, self._directory = bundle, directory
        self._manifest = parse_json(ShardManifest, manifest, "the plan of the shards")

    # Not in `__init__`: Ray has no word for what a constructor raises but that the worker died.
    @cached_property
    def _pipeline(self) -> Pipeline:
        return Pipeline.load(self._bundle, self._manifest.backend, self._manifest.threads, device=own_device())

    @cached_property
    def _place(self) -> Place:
        return place_of(self._directory)

    def __call__(self, row: Row) -> Iterator[Row]:
        number, codes = int(row["number"]), [int(code) for code in row["codes"]]
        for made in write_shard(self._pipeline, self._place, self._manifest, number, codes):
            if isinstance(made, Shard):
                yield {"number": number, "images": made.count, "shard": made.model_dump_json()}
            else:
                yield {"number": number, "images": made, "shard": ""}


def _fitting(bundle: Bundle, most: int) -> int:
    """How many workers this machine has memory for, from 1 to `most`."""
    graphs = sum(entry.bytes for name, entry in bundle.index.files.items() if ".onnx" in name)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(min(most, memory // (_PROCESS_MEMORY + _MEMORY_PER_BYTE * graphs)), 1)


def _on_gpus(workers: int | None) -> dict[str, Any]:
    """The pool's size and each worker's share of a GPU; more workers than GPUs share them."""
    there = count()
    if there == 0:
        raise DdmError("workers: this backend takes a GPU, and Ray finds none; see CUDA_VISIBLE_DEVICES")
    size = workers or there
    return {"size": size, "num_gpus": 1 / math.ceil(size / there)}


def _warn_of_long_prompts(bundle: Bundle, manifest: ShardManifest) -> None:
    """Here, once: what workers log isn't shown."""
    if bundle.config.prompt_free:
        return
    prompt, tokenizers = manifest.request.prompt, Tokenizers(bundle)
    for text in (*(prompt if isinstance(prompt, tuple) else (prompt,)), manifest.request.negative_prompt):
        tokenizers.ids(text or "")


@contextmanager
def _ray(cpus: int) -> Iterator[None]:
    """A quiet Ray: the cluster of RAY_ADDRESS, or one on this machine with room for `cpus` threads, which ends here."""
    if ray.is_initialized():
        raise DdmError("Ray runs in this process already; expected none, or ray.shutdown() first")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to anyone
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: other processes would take nearly all the time
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it praises itself at each start
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the other one writes Ray's own log
            handler.setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if "RAY_ADDRESS" not in os.environ:
        # Ray's ports are open on every interface: who doesn't know this is not let in. Ray reads it once in a process.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        own = {"address": "local", "num_cpus": cpus, "object_store_memory": _OBJECT_STORE}
        options |= own | {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(**options)
    except Exception as error:  # the library raises nothing more exact
        raise DdmError(f"Ray doesn't start: {error}") from error
    try:
        with _sigterm_ends():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _sigterm_ends() -> Iterator[None]:
    """SIGTERM ends the process as an interrupt does; Ray's own handler writes a trace of its stack."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _make(
    bundle: Bundle, directory: str, plan: ShardPlan, missing: list[int], size: int, num_gpus: float
) -> Iterator[tuple[int, int | Shard]]:
    """The number of a shard with its images so far, or with the whole shard, as workers report them."""
    rows = ray.data.from_items(
        [{"number": number, "codes": list(plan.codes_of(number))} for number in missing],
        override_num_blocks=len(missing),
    )
    rows.context.enable_progress_bars = False
    rows.context.target_max_block_size = 1  # byte: each row that a worker yields is told at once
    reports = rows.flat_map(
        _Worker,
        fn_constructor_args=(bundle.path.absolute(), directory, plan.manifest.model_dump_json(by_alias=True)),
        # One shard at a time: one that waits for its worker would keep another worker idle.
        compute=ray.data.ActorPoolStrategy(size=min(size, len(missing)), max_tasks_in_flight_per_actor=1),
        num_cpus=plan.manifest.threads,
        num_gpus=num_gpus,
    )
    try:
        for row in reports.iter_rows():
            shard = row["shard"]
            yield row["number"], parse_json(Shard, shard, "a worker's report") if shard else row["images"]
    except RayTaskError as error:
        if isinstance(error.cause, DdmError):
            raise DdmError(str(error.cause)) from error
        if isinstance(error.cause, OSError):
            place, reason = error.cause.filename or directory, error.cause.strerror
            raise DdmError(f"{place}: {reason}; whole shards stay, and the same command goes on") from error
        raise
