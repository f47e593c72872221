"""What OpenVINO compiled for a graph and the shapes of its calls, kept in the user's cache for the next process.

Compiling the networks of a small int8 bundle takes longer than to make its first image. Whatever is wrong with a file
here, the graph is compiled again. A file is as large as its graph or larger, so large graphs have none.
"""

import hashlib
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov

from ddm_rt.engine import user_cache
from ddm_rt.engine.machine import processor
from ddm_rt.errors import DdmError
from ddm_rt.files import sha256, write_atomic

FOLDER = "openvino"
_LARGEST = 2**26  # bytes of a graph whose compiled form is kept
_ROOM = 2**29  # bytes of all files; those that were used longest ago go first
_FORM = 1  # of what is done to a graph before it is compiled; counted up when that changes
_log = logging.getLogger(__name__)


class CompiledGraphs:
    """Of one graph: compiled forms by the shapes of a call."""

    def __init__(self, core: ov.Core, device: str, graph: Path, settings: Mapping[str, Any]) -> None:
        self._core, self._device, self._settings = core, device, dict(settings)
        parts = [path for path in (graph, graph.with_name(f"{graph.name}.data")) if path.exists()]
        self._key: list[Any] | None = None
        if sum(path.stat().st_size for path in parts) <= _LARGEST:
            self._key = [_FORM, ov.get_version(), processor(), self._settings, *map(sha256, parts)]

    def compile(self, model: ov.Model, shapes: tuple[tuple[int, ...], ...]) -> ov.CompiledModel:
        """`model`, ready to compute calls of these shapes: out of the cache, or compiled now and kept there."""
        if self._key is None:
            return self._core.compile_model(model, self._device, self._settings)
        name = hashlib.sha256(json.dumps([*self._key, shapes], default=str).encode()).hexdigest()
        try:
            path = user_cache.root() / FOLDER / name
            if (found := self._read(path)) is not None:
                return found
            made = self._core.compile_model(model, self._device, self._settings)
            content = made.export_model().getvalue()
            write_atomic(path, user_cache.sign(content) + b"\n" + content)
            _make_room(path.parent)
        except (DdmError, OSError) as error:
            _log.info("what OpenVINO compiles is not kept for the next start: %s", error)
            self._key = None
            made = self._core.compile_model(model, self._device, self._settings)
        return made

    def _read(self, path: Path) -> ov.CompiledModel | None:
        try:
            signature, _, content = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        if not user_cache.signed_here(content, signature):
            _log.warning("%s is not used, and its graph is compiled again: it is broken, or was not made here", path)
            return None
        try:
            found = self._core.import_model(io.BytesIO(content), self._device, self._settings)
        except RuntimeError as error:
            _log.warning("%s is not used, and its graph is compiled again: OpenVINO refuses it: %s", path, error)
            return None
        path.touch()
        return found


def _make_room(folder: Path) -> None:
    """Files that were used longest ago go, until the others fit."""
    there = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: -path.stat().st_mtime)
    room = _ROOM
    for path in there:
        room -= path.stat().st_size
        if room < 0:
            path.unlink(missing_ok=True)
