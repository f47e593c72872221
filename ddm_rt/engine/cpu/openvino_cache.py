"""What OpenVINO compiled for a graph and the shapes of its calls, kept in the user's cache for the next process.

Compiling the networks of a small int8 bundle takes longer than to make its first image. Whatever is wrong with a file
here, the graph is compiled again. A file is as large as its graph or larger, so large graphs have none.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov

from ddm_rt.engine import user_cache
from ddm_rt.engine.cpu import openvino_graph
from ddm_rt.engine.machine import processor
from ddm_rt.errors import DdmError
from ddm_rt.files import sha256, write_atomic

FOLDER = "openvino"
_LARGEST = 2**26  # bytes of a graph whose compiled form is kept
_ROOM = 2**29  # bytes of all files; those that were used longest ago go first
_ISA = "ONEDNN_MAX_CPU_ISA"  # an environment variable that changes what is compiled
_log = logging.getLogger(__name__)


class CompiledGraphs:
    """Of one graph: compiled forms by the shapes of a call."""

    def __init__(self, core: ov.Core, device: str, graph: Path, bundle_id: str, settings: Mapping[str, Any]) -> None:
        """`bundle_id` stands for what else the graph is made of: its weights may lie in other files of the bundle."""
        self._core, self._device, self._settings = core, device, dict(settings)
        self._key: list[Any] | None = None
        if graph.stat().st_size <= _LARGEST:
            machine = [processor(), core.get_property(device, "OPTIMIZATION_CAPABILITIES"), os.environ.get(_ISA)]
            rewriting = sha256(Path(openvino_graph.__file__))  # what is done to a graph before it is compiled
            self._key = [ov.get_version(), *machine, self._settings, rewriting, bundle_id, graph.name, sha256(graph)]

    def compile(self, model: ov.Model, shapes: tuple[tuple[int, ...], ...]) -> ov.CompiledModel:
        """`model`, ready to compute calls of these shapes: out of the cache, or compiled now and kept there."""
        if self._key is None:
            return self._compiled(model)
        name = hashlib.sha256(json.dumps([*self._key, shapes]).encode()).hexdigest()
        try:
            path = user_cache.root() / FOLDER / name
            if (found := self._read(path)) is not None:
                return found
        except (DdmError, OSError) as error:
            return self._without(self._compiled(model), error)
        made = self._compiled(model)
        try:
            content = made.export_model().getvalue()
            if len(content) <= 2 * _LARGEST:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_atomic(path, user_cache.sign(name.encode() + content) + b"\n" + content)
                _make_room(path.parent)
        except (DdmError, OSError, RuntimeError) as error:
            return self._without(made, error)
        return made

    def _compiled(self, model: ov.Model) -> ov.CompiledModel:
        return self._core.compile_model(model, self._device, self._settings)

    def _without(self, made: ov.CompiledModel, error: Exception) -> ov.CompiledModel:
        """From now on nothing is looked for or kept."""
        _log.info("what OpenVINO compiles is not kept for the next start: %s", error)
        self._key = None
        return made

    def _read(self, path: Path) -> ov.CompiledModel | None:
        try:
            signature, _, content = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        if not user_cache.signed_here(path.name.encode() + content, signature):
            _log.warning("%s is not used, and its graph is compiled again: it is broken, or was not made here", path)
            return None
        try:
            found = self._core.import_model(io.BytesIO(content), self._device, self._settings)
        except RuntimeError as error:
            _log.warning("%s is not used, and its graph is compiled again: OpenVINO refuses it: %s", path, error)
            return None
        with contextlib.suppress(OSError):  # where others may only read, or another process has just removed it
            os.utime(path)
        return found


def _make_room(folder: Path) -> None:
    """Files that were used longest ago go, until the others fit."""
    there = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process's, renamed or removed meanwhile
            status = path.stat()
            there.append((status.st_mtime, status.st_size, path))
    room = _ROOM
    for _, size, path in sorted(there, reverse=True):
        room -= size
        if room < 0 and not path.name.startswith("."):
            path.unlink(missing_ok=True)
