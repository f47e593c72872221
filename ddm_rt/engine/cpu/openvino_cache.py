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

from ddm_rt.engine.cpu import openvino_graph
from ddm_rt.engine.machine import instruction_set
from ddm_rt.engine.user_cache import Folder
from ddm_rt.errors import DdmError
from ddm_rt.files import sha256

FOLDER = "openvino"
_LARGEST = 2**26  # bytes of a graph whose compiled form is kept
_ROOM = 2**29  # bytes of all files; those that were used longest ago go first
_log = logging.getLogger(__name__)


class CompiledGraphs:
    """Of one graph: compiled forms by the shapes of a call."""

    def __init__(self, core: ov.Core, device: str, graph: Path, bundle_id: str, settings: Mapping[str, Any]) -> None:
        """`bundle_id` stands for what else the graph is made of: its weights may lie in other files of the bundle."""
        self._core, self._device, self._settings = core, device, dict(settings)
        self._key: list[Any] | None = None
        if graph.stat().st_size <= _LARGEST:
            machine = [instruction_set(), core.get_property(device, "OPTIMIZATION_CAPABILITIES")]
            rewriting = sha256(Path(openvino_graph.__file__))  # what is done to a graph before it is compiled
            self._key = [ov.get_version(), *machine, self._settings, rewriting, bundle_id, graph.name, sha256(graph)]

    def compile(self, model: ov.Model, shapes: tuple[tuple[int, ...], ...]) -> ov.CompiledModel:
        """`model`, ready to compute calls of these shapes: out of the cache, or compiled now and kept there."""
        if self._key is None:
            return self._compiled(model)
        name, kept = hashlib.sha256(json.dumps([*self._key, shapes]).encode()).hexdigest(), Folder(FOLDER, _ROOM)
        try:
            content = kept.read(name)
        except (DdmError, OSError) as error:
            return self._without(self._compiled(model), error)
        if content is not None and (found := self._imported(content)) is not None:
            return found
        made = self._compiled(model)
        try:
            content = made.export_model().getvalue()
            if len(content) <= 2 * _LARGEST:
                kept.write(name, content)
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

    def _imported(self, content: bytes) -> ov.CompiledModel | None:
        try:
            return self._core.import_model(io.BytesIO(content), self._device, self._settings)
        except RuntimeError as error:
            _log.warning("a graph is compiled again: OpenVINO refuses what was kept of it: %s", error)
            return None
